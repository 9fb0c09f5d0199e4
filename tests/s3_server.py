"""A local S3 server, over real HTTP, that can refuse, delay, lose or cut what it is sent."""

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

HANG_UP, CUT = -1, -2


@dataclass
class S3Server:
    """`fault` is asked before each request: None to serve it, the status to answer, HANG_UP, or CUT half-way.

    It may also wait.
    """

    url: str
    fault: Callable[[dict[str, Any]], int | None] = lambda request: None
    requests: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "AKIATESTTESTTESTTEST",
            "AWS_SECRET_ACCESS_KEY": "a-secret-that-nobody-may-see",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


def hang_up(request: dict[str, Any]) -> NoReturn:
    request["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError  # of which werkzeug says nothing


def send_half(body: bytes, request: dict[str, Any]) -> Iterator[bytes]:
    yield body[: len(body) // 2]
    hang_up(request)


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server on a free port, with one bucket."""
    backend = DomainDispatcherApplication(create_backend_app)
    server = S3Server("")

    def serve(request: dict[str, Any], start_response: Callable) -> Any:
        server.requests.append(f"{request['REQUEST_METHOD']} {request['PATH_INFO']}")
        status = server.fault(request)
        if status == HANG_UP:
            hang_up(request)
        if status not in (None, CUT):
            request["wsgi.input"].read(int(request.get("CONTENT_LENGTH") or 0))
            start_response(f"{status} Fault", [("Content-Type", "application/xml")])
            said = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            return [said] if status == 403 and request["REQUEST_METHOD"] != "HEAD" else []
        answer = backend(request, start_response)
        return send_half(b"".join(answer), request) if status == CUT else answer

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    http = make_server("127.0.0.1", 0, serve, threaded=True)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{http.server_port}"
    try:
        yield server
    finally:
        http.shutdown()
