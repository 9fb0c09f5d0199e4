"""Speech by a voice that gives tones: clients that leave, that don't read, and the ends of their time."""

import contextlib
import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from service import site
from service.guard import Access
from service.measures import Measures
from service.site import Site
from service.speech_api import ServedVoice, SpeechBody, SpeechService
from speech.streaming import SoundStream, wav_header

RATE = 16_000
TONE = (0.3 * np.sin(np.arange(RATE) / 9)).astype(np.float32)


def say(seconds: float, body: SpeechBody):
    """A second of sound for each word, that takes so long."""
    for _ in body.input.split():
        time.sleep(seconds)
        yield TONE


@contextlib.contextmanager
def speaking(seconds_a_word: float, limit: float = 5, most: int = 1):
    """A server in a thread, with one thread that speaks; its service and its port."""
    voice = ServedVoice(partial(say, seconds_a_word), partial(SoundStream, rate=RATE), "tones", "en")
    service = SpeechService({"tones": voice}, ThreadPoolExecutor(1), most, limit)
    app = site.build_app(Site(Measures(), speech=service), Access("", 1 << 16))
    server = site.make_server(app, service.close, 100)
    listening = site.open_socket("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield service, listening.getsockname()[1], server
    finally:
        server.should_exit = True
        thread.join()


def post(port: int, words: int, kind: str = "pcm") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    body = json.dumps({"input": "word " * words, "voice": "tones", "response_format": kind})
    connection.request("POST", "/v1/audio/speech", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    try:
        return answer.status, answer.read()
    finally:
        connection.close()


def send(port: int, words: int, kind: str) -> socket.socket:
    """A request whose answer is not read."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.connect(("127.0.0.1", port))
    body = json.dumps({"input": "word " * words, "voice": "tones", "response_format": kind}).encode()
    head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
    one.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    return one


def wait_until(condition, seconds: float = 3) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("kind", ["flac", "pcm"])
def test_a_client_that_leaves_frees_its_place_before_its_sound_is_made(kind):
    with speaking(0.05) as (service, port, _):
        with send(port, 90, kind):
            wait_until(lambda: service.now == 1)
        wait_until(lambda: service.now == 0, 1)
        assert post(port, 1, kind)[0] == 200


def test_a_client_that_does_not_read_frees_its_place_at_the_end_of_its_time():
    with speaking(0, limit=0.6) as (service, port, _), send(port, 800, "pcm"):
        wait_until(lambda: service.now == 1)
        assert post(port, 1)[0] == 429
        wait_until(lambda: service.now == 0, 2)
        assert post(port, 1)[0] == 200


def test_what_is_not_spoken_in_time_is_refused_before_its_first_byte_and_cut_off_after_it():
    with speaking(0.2, limit=0.3) as (service, port, _):
        status, content = post(port, 5, "flac")
        assert status == 504 and json.loads(content)["error"]["code"] == "timeout"
    with speaking(0.2, limit=0.3) as (service, port, _):
        with pytest.raises(http.client.IncompleteRead):
            post(port, 5, "pcm")
        wait_until(lambda: service.now == 0)


def test_speech_is_the_voices_sound():
    with speaking(0) as (_, port, _):
        found = np.frombuffer(post(port, 3, "wav")[1][len(wav_header(RATE)) :], "<i2") / 32768
    assert found.shape == (3 * RATE,) and np.abs(found - np.tile(TONE, 3)).max() < 1e-4


def test_a_stop_refuses_who_waits_and_finishes_what_is_being_spoken():
    with speaking(0.1, most=2) as (service, port, server), ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, port, 1, "flac")
        wait_until(lambda: service.now == 1)
        second = pool.submit(post, port, 9, "flac")
        wait_until(lambda: service.now == 2)
        server.should_exit = True
        assert first.result()[0] == 200
        status, content = second.result()
        assert status == 503 and json.loads(content)["error"]["code"] == "stopping"
