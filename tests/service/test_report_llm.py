"""Reports by a language model, over HTTP from a server that speaks the protocol, well or badly."""

import base64
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

import report_run
from tests.drawn_runs import falling, write_run
from utils.cli import UserError

KEY = "a-key-that-nobody-may-see"
ROOT = Path(__file__).resolve().parent.parent.parent


def completion(text: object, **more) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | more
    return json.dumps({"choices": [choice], "usage": {"total_tokens": 900}}).encode()


class Server(ThreadingHTTPServer):
    """Answers each request with what `answers` has for its model, the last one for ever; keeps what it was sent."""

    daemon_threads = True

    def __init__(self, answers: dict[str, list[Callable[[BaseHTTPRequestHandler], None]]]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.seen, self.times = answers, [], []

    def handle_error(self, request, client_address):
        """A client that has left is no error."""

    @property
    def models(self) -> list[str]:
        return [body["model"] for _, body in self.seen]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions"
        self.server.seen.append((dict(self.headers), body))
        self.server.times.append(time.monotonic())
        answers = self.server.answers[body["model"]]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        answer(self)

    def log_message(self, *words):
        pass


def reply(status: int, content: bytes = b"{}", **headers) -> Callable[[BaseHTTPRequestHandler], None]:
    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return send


def drip(handler: BaseHTTPRequestHandler) -> None:
    """A byte now and then, for ever: no single read takes long."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)
    except OSError:  # the client has left
        pass


def drip_headers(handler: BaseHTTPRequestHandler) -> None:
    """The answer's head, a letter now and then, for ever."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    try:
        while True:
            handler.wfile.write(b"x")
            threading.Event().wait(0.05)  # time.sleep is replaced here
    except OSError:  # the client has left
        pass


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    handler.connection.close()


@contextmanager
def serving(**answers):
    server = Server({name: one if isinstance(one, list) else [one] for name, one in answers.items()})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


GOOD = "The held-out loss fell from 0.3 to 0.1013 in 1,000 steps. It is 0.1987 lower."


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_API_KEY", KEY)
    monkeypatch.setattr("service.report.llm.time.sleep", lambda seconds: None)
    write_run(tmp_path / "runs/another_secret_name", held_out=lambda step: falling(step) / 2)
    return write_run(tmp_path / "runs/secret_name", held_out=falling)


def report(capsys, run: Path, server: Server, *words: object) -> str:
    models = [] if "--llm_models" in words else ["--llm_models", *server.answers]
    address = f"http://127.0.0.1:{server.server_port}/v1/"
    given = ["--run", run, "--lang", "en", "--llm_base_url", address, "--llm_timeout", 5, *models, *words]
    assert report_run.main(report_run.parse_args([str(word) for word in given])) == 0
    return capsys.readouterr().out


def test_a_good_answer_stands_above_the_report_by_rules(run, capsys):
    with serving(one=reply(200, completion(GOOD))) as server:
        text = report(capsys, run, server)
    assert text.index(GOOD) < text.index("Written by one; every number in it follows") < text.index("## What happened")
    assert "The held-out loss fell by 66%" in text
    assert [one["Authorization"] for one, _ in server.seen] == [f"Bearer {KEY}"]


def test_an_answer_in_portuguese_has_its_own_decimal_comma(run, capsys):
    with serving(one=reply(200, completion("Caiu de 0,3 para 0,1013 em 1.000 passos."))) as server:
        text = report(capsys, run, server, "--lang", "pt")
        assert "Nas palavras de um modelo" in text and "0,1013" in text
    assert "Write in Brazilian Portuguese" in server.seen[0][1]["messages"][0]["content"]


def test_it_is_given_neither_a_path_nor_a_name_nor_a_secret(run, capsys):
    with serving(one=reply(200, completion(GOOD))) as server:
        text = report(capsys, run, server)
    sent = json.dumps(server.seen[0][1])
    assert "another_secret_name" in text and "secret" not in sent and str(run) not in sent and KEY not in sent
    assert "/" not in server.seen[0][1]["messages"][1]["content"].replace("best/", "") and "held_out_falls" in sent


def test_invented_numbers_send_it_to_the_next_model_and_then_back_to_the_rules(run, capsys):
    invented = reply(200, completion("The loss fell by 87 % to 0.0421."))
    with serving(one=invented, two=reply(200, completion(GOOD))) as server:
        assert GOOD in report(capsys, run, server) and server.models == ["one", "two"]
    with serving(one=invented) as server:
        text = report(capsys, run, server)
    assert "left out: the answer has numbers that follow from nothing it was given (87 %; 0.0421)" in text
    assert "## What happened" in text and "fell by 87 %" not in text


def test_an_answer_without_a_number_or_in_another_language_is_left_out(run, capsys):
    portuguese = "A perda de validação caiu de 0,3 para 0,1013 em 1.000 passos."
    for language, text, reason in (
        ("en", "It is all in the hands of the banana.", "none of the numbers"),
        ("en", "banana 0.3 banana blorp", "not in English"),
        ("en", portuguese, "not in English"),
        ("pt", GOOD, "não está em português"),
        ("pt", "La pérdida de validación bajó de 0,3 a 0,1013 en 1.000 pasos con el modelo.", "não está em português"),
        ("en", "0.3 1e-4", "not in English"),
    ):
        with serving(one=reply(200, completion(text))) as server:
            written = report(capsys, run, server, "--lang", language)
        assert reason in written and text not in written


def test_a_key_that_is_refused_ends_the_asking_at_once(run, capsys):
    with serving(one=reply(401), two=reply(200, completion(GOOD))) as server:
        text = report(capsys, run, server)
    assert "the endpoint refuses the key (HTTP 401); check LLM_API_KEY" in text and server.models == ["one"]
    assert KEY not in text


def test_too_many_requests_are_repeated_after_the_time_that_is_asked_for(run, capsys, monkeypatch):
    waits = []
    monkeypatch.setattr("service.report.llm.time.sleep", waits.append)
    with serving(one=[reply(429, Retry_After="7"), reply(429), reply(200, completion(GOOD))]) as server:
        assert GOOD in report(capsys, run, server)
    assert waits == [7.0, 2.0] and server.models == ["one"] * 3
    waits.clear()
    late = reply(429, Retry_After="3600")
    with serving(one=late, two=reply(200, completion(GOOD))) as server:  # not to be waited for
        assert GOOD in report(capsys, run, server) and server.models == ["one", "two"]
    with serving(one=reply(429)) as server:
        assert "too many requests (HTTP 429)" in report(capsys, run, server) and server.models == ["one"] * 3
    assert waits == [1.0, 2.0]


@pytest.mark.slow
def test_an_answer_that_comes_too_late_or_in_drops_is_given_up(run, capsys):
    with serving(one=lambda handler: time.sleep(3)) as server:
        began = time.monotonic()
        text = report(capsys, run, server, "--llm_timeout", 1, "--llm_max_calls", 1)
        assert "no answer within 1 second" in text and time.monotonic() - began < 2.5
    for slow in (drip, drip_headers):
        with serving(one=slow) as server:
            began = time.monotonic()
            assert "no answer within" in report(capsys, run, server, "--llm_timeout", 1, "--llm_max_calls", 1)
            assert time.monotonic() - began < 2.5


@pytest.mark.parametrize(
    "content",
    [
        b"<html>not here</html>",
        b"[]",
        b'{"choices": []}',
        b'{"choices": [{"message": null}]}',
        b"[" * 100_000,
        completion(None),
        completion(""),
        completion([{"type": "text", "text": "x"}]),
        completion("word " * 5000),
        b" " * (1 << 21),
    ],
)
def test_nonsense_is_named_and_the_rules_report_stands(content, run, capsys):
    with serving(one=reply(200, content)) as server:
        text = report(capsys, run, server)
    assert "the answer is not what the protocol says" in text and "## What happened" in text


@pytest.mark.parametrize(
    ("answer", "reason", "asked"),
    [
        (reply(500), "HTTP 500", 3),
        (reply(404), "HTTP 404", 1),
        (reply(302, Location="http://127.0.0.1:1/v1"), "HTTP 302", 1),  # the key is not taken elsewhere
        (hang_up, "can't be reached", 3),
        (reply(200, completion("The loss is 0.3 and", finish_reason="length")), "cut off at the budget", 1),
        (reply(200, b"\x1f\x8b broken", Content_Encoding="gzip"), "not what the protocol says", 1),
    ],
)
def test_each_failure_has_its_reason_and_only_some_are_repeated(answer, reason, asked, run, capsys):
    with serving(one=answer) as server:
        assert reason in report(capsys, run, server)
    assert len(server.seen) == asked


def test_the_budgets_in_calls_and_tokens_end_the_asking(run, capsys):
    with serving(one=reply(500), two=reply(200, completion(GOOD))) as server:
        text = report(capsys, run, server, "--llm_max_calls", 2)
    assert server.models == ["one", "one"] and "the budget of tokens or calls is spent" in text
    with serving(one=reply(200, completion(GOOD))) as server:
        text = report(capsys, run, server, "--llm_max_tokens", 600)
    assert server.seen == [] and "the budget of tokens or calls is spent" in text
    invented = reply(200, completion("0.777"))
    with serving(one=invented, two=invented, three=invented) as server:  # 900 tokens each, as the server says
        report(capsys, run, server, "--llm_max_tokens", 3000, "--llm_max_calls", 9)
    spent = [body["max_tokens"] for _, body in server.seen]
    assert spent[0] == 1200 and spent == sorted(spent, reverse=True) and spent[-1] < 1200


def test_markup_of_an_answer_is_no_markup_of_the_report(run, capsys):
    sly = "# Fine\nIt is at 0.1013 in the end of it. <script>alert()</script> [here](http://example.org) ![x](y)"
    with serving(one=reply(200, completion(sly))) as server:
        text = report(capsys, run, server)
    assert "\nFine\n" in text and "&lt;script&gt;" in text and "\\[here]" in text and "!\\[x]" in text


def test_the_newest_validation_image_is_shown_small_and_without_its_metadata(run, capsys):
    (run / "validation").mkdir()
    for step, colour in ((500, "red"), (1000, "blue")):
        Image.new("RGB", (2000, 500), colour).save(run / f"validation/step-{step:06d}.png")
    with serving(one=reply(200, completion(GOOD))) as server:
        assert GOOD in report(capsys, run, server, "--llm_images")
    text, shown = server.seen[0][1]["messages"][1]["content"]
    kind, _, content = shown["image_url"]["url"].partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == "data:image/jpeg;base64" and image.size == (768, 192) and not image.getexif()
    assert image.getpixel((9, 9))[2] > 200 and text["type"] == "text"


def test_a_dry_run_shows_what_would_be_sent_and_asks_nobody(run, capsys):
    with serving(one=reply(200, completion(GOOD))) as server:
        shown = json.loads(report(capsys, run, server, "--dry_run"))
        assert server.seen == [] and {"finding", "severity", "says", "numbers", "advice"} == shown[0].keys()
        report(capsys, run, server)
    assert json.loads(server.seen[0][1]["messages"][1]["content"]) == shown


def test_a_key_for_this_machine_goes_through_no_proxy(run, capsys, monkeypatch):
    with serving(one=reply(200, completion(GOOD))) as server, serving() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.server_port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert GOOD in report(capsys, run, server)
    assert len(server.seen) == 1 and proxy.seen == []


def asked(run: Path, *words: str) -> int:
    return report_run.main(report_run.parse_args(["--run", str(run), "--llm_models", "x", *words]))


def test_a_key_goes_nowhere_without_tls_but_to_this_machine(run):
    with pytest.raises(UserError, match="--llm_base_url http://example.org/v1: would send LLM_API_KEY unencrypted"):
        asked(run, "--llm_base_url", "http://example.org/v1")


def test_what_is_missing_or_no_address_is_said_before_anything_is_sent(run, monkeypatch, capsys):
    for address in ("ftp://x", "http://x:99999/v1", "http://[::1/v1", "https://a b/v1", "https://me:word@x/v1", "x"):
        with pytest.raises(UserError, match="--llm_base_url .*: expected http"):
            asked(run, "--llm_base_url", address)
    with pytest.raises(UserError, match="--llm_images: .* has no validation image"):
        asked(run, "--llm_base_url", "http://127.0.0.1:9/v1", "--llm_images")
    with pytest.raises(SystemExit):
        report_run.parse_args(["--run", str(run), "--llm_timeout", "9"])
    assert "--llm_timeout 9.0: does nothing without --llm_models" in capsys.readouterr().err


def test_without_a_key_the_report_is_by_rules_and_says_so(run, monkeypatch, capsys):
    monkeypatch.delenv("LLM_API_KEY")
    assert asked(run, "--lang", "en") == 0
    text = capsys.readouterr().out
    assert "left out: LLM_API_KEY is not set; export a key" in text and "## What happened" in text


@pytest.mark.slow
def test_the_script_reports_in_the_environments_language_and_its_rules_need_no_network(run):
    words = [sys.executable, "report_run.py", "--run", run]
    environment = {"LANG": "pt_BR.UTF-8", "PATH": "", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "# Relatório de secret_name" in done.stdout, done.stderr
    words[-1] = run / "nowhere"
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode and done.stderr.count("\n") == 1 and "nowhere: no such folder" in done.stderr
