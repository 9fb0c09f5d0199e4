"""A stand-in for the hub on this machine, to which a run is pushed."""

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload speaks to."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        seen = self.server.seen
        seen.append((self.path, self.headers.get("Authorization"), body))
        if self.path == "/api/repos/create":
            answer = {"url": f"{constants.ENDPOINT}/me/shoes", "id": "me/shoes"}
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer = {
                "files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            }
        elif "/commit/" in self.path:
            answer = {
                "success": True,
                "commitOid": "0" * 40,
                "commitUrl": f"{constants.ENDPOINT}/me/shoes/commit/0",
                "hookOutput": "",
            }
        else:
            answer = {}
        self.reply(answer)

    def do_GET(self):
        self.reply({"id": "me/shoes", "sha": "0" * 40, "siblings": []})

    def reply(self, answer):
        data = json.dumps(answer).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words):
        pass


@contextlib.contextmanager
def hub_server() -> Iterator[ThreadingHTTPServer]:
    """`seen` has what it was asked: (path, token, content); `status` is what it answers."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server, pytest.MonkeyPatch.context() as patch:
        server.seen, server.status = [], 200
        patch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setenv("HF_TOKEN", "hf_testtoken")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def pushed_files(server: ThreadingHTTPServer) -> dict[str, bytes]:
    """The files of the one commit that was made, by name."""
    (commit,) = [body for path, _, body in server.seen if "/commit/" in path]
    lines = [json.loads(line) for line in commit.splitlines()]
    files = [line["value"] for line in lines if line["key"] == "file"]
    return {one["path"]: base64.b64decode(one["content"]) for one in files}
