"""The server's routes around a model that makes none: who may ask, what fails, and addresses that expire."""

import asyncio
import io
import json
import re
import time
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from families.sampler import GeneratedImage, Sampling
from service import guard, site
from service.guard import Access, Guard
from service.image_api import ImageLimits, ImageService
from service.image_queue import ImageQueue, QueueLimits
from service.kept_files import KeptFiles
from service.measures import Measures
from service.page_api import page_routes
from service.site import Site

TOKEN, MINE = "a-token-of-a-test-42", "https://mine.example"
IMAGES = "/v1/images/generations"


def make_images(settings, requests, on_step):
    """Of one colour, by the seed; the prompt says what happens."""
    if requests[0].prompt == "slow":
        time.sleep(0.4)
    return [GeneratedImage(Image.new("L", (8, 8), one.seed), one.prompt != "invalid") for one in requests]


@pytest.fixture
def what():
    """A site without speech, whose answers have a fifth of a second."""
    measures = Measures()
    queue = ImageQueue(make_images, QueueLimits(4, 8, 0), measures)
    model, limits = SimpleNamespace(is_cut=lambda text: len(text) > 20), ImageLimits(64, 50, 4, 0.2)
    kept, defaults = KeptFiles(1 << 20, 60), Sampling(4, 7.5, 64)
    images = ImageService(model, queue, kept, "base", "sd1", True, {"shoes": 0.7}, defaults, 8, limits)
    one = Site(measures, images)
    yield one
    queue.close()


def client_of(what: Site, token: str = "", origins: tuple[str, ...] = ()) -> TestClient:
    app = site.build_app(what, Access(token, 1 << 16, origins), [page_routes(what, {})])
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


def ask(client: TestClient, prompt: str = "boots", **more) -> tuple[int, dict]:
    answer = client.post(IMAGES, json={"prompt": prompt, "seed": 7, **more})
    return answer.status_code, answer.json()


# Images


def test_an_image_has_an_address_that_expires(what):
    client = client_of(what)
    what.images.kept._seconds = 0.3
    status, answer = ask(client)
    assert status == 200 and answer["data"][0]["seed"] == 7 and "warnings" not in answer
    content = client.get(answer["data"][0]["url"]).content
    assert Image.open(io.BytesIO(content)).getpixel((0, 0)) == 7
    time.sleep(0.4)
    gone = client.get(answer["data"][0]["url"])
    assert gone.status_code == 404 and gone.json()["error"]["code"] == "expired" and what.images.kept.bytes == 0


def test_the_oldest_files_go_where_memory_is_full_but_never_the_newest():
    kept = KeptFiles(10, 60)
    names = [kept.add(bytes(4)) for _ in range(3)]
    assert [kept.find(name) is not None for name in names] == [False, True, True] and kept.bytes == 8
    large = kept.add(bytes(99))
    assert kept.find(large) == bytes(99) and kept.bytes == 99


@pytest.mark.parametrize(("prompt", "status", "code"), [("slow", 504, "timeout"), ("invalid", 500, "invalid_image")])
def test_what_takes_too_long_or_is_invalid_is_an_error_also_as_an_event(what, prompt, status, code):
    client = client_of(what)
    found, answer = ask(client, prompt)
    assert found == status and answer["error"]["code"] == code
    events = client.post(IMAGES, json={"prompt": prompt, "stream": True}).text
    assert f'"code": "{code}"' in events and "completed" not in events
    assert ask(client)[0] in (200, 504)  # it may wait for the slow one
    assert what.images.queue.is_alive


def test_a_prompt_that_is_cut_off_is_a_warning(what):
    status, answer = ask(client_of(what), "red " * 10)
    assert status == 200 and answer["warnings"] == ["`prompt` is longer than the model reads; its end was not seen"]


@pytest.mark.parametrize(("family", "has_guidance"), [("sd1", True), ("flux1", True), ("flux2_klein", False)])
def test_the_page_has_the_fields_that_the_model_reads(what, family, has_guidance):
    what.images = ImageService(**{**vars(what.images), "family": family, "has_guidance": has_guidance})
    page = client_of(what).get("/").text
    assert ("name=guidance_scale" in page) == has_guidance
    assert ("name=negative_prompt" in page) == (family == "sd1")


def test_a_full_queue_says_when_to_come_back(what):
    what.images.queue._limits = QueueLimits(4, 2, 0)
    answer = client_of(what).post(IMAGES, json={"prompt": "boots", "n": 3})
    assert answer.status_code == 429 and 1 <= int(answer.headers["retry-after"]) <= 60
    assert answer.json()["error"]["type"] == "rate_limit_error" and ask(client_of(what), n=2)[0] == 200


# Who may ask


def flatten(routes):
    """The routes, also those of the routers that FastAPI keeps as they were included."""
    for one in routes:
        yield from flatten(one.original_router.routes) if hasattr(one, "original_router") else (one,)


def routes_of(what: Site) -> list[tuple[str, str]]:
    """(method, path) of all that the site answers, but for what needs no token."""
    app = site.build_app(what, Access(TOKEN, 1 << 16), [page_routes(what, {})])._app
    found = [(method, re.sub(r"\{.*?\}", "x", route.path)) for route in flatten(app.routes) for method in route.methods]
    return [(method, path) for method, path in found if path not in guard.OPEN and not path.startswith(guard.FILES)]


def test_with_a_token_every_route_needs_it(what):
    client, routes = client_of(what, TOKEN), routes_of(what)
    assert {("POST", IMAGES), ("POST", "/page/prompt"), ("GET", "/metrics"), ("GET", "/openapi.json")} < set(routes)
    for method, path in routes:
        for given in (None, f"Bearer {TOKEN}x", TOKEN, f"Bearer {TOKEN}é".encode("latin-1")):
            answer = client.request(method, path, headers={} if given is None else {"Authorization": given})
            assert answer.status_code == 401, (method, path, given)
        assert client.request(method, path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code != 401
    assert client.get("/health").status_code == 200


def test_a_form_takes_the_token_where_there_is_one(what):
    assert client_of(what).get("/login").status_code == 404
    client = client_of(what, TOKEN)
    assert client.get("/", headers={"Accept": "text/html"}).url.path == "/login"
    assert client.post("/login", data={"token": "wrong"}).status_code == 401 and not client.cookies
    assert client.post("/login", data={"token": TOKEN}).url.path == "/"
    assert client.get("/v1/models").status_code == 200


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        *((host, True) for host in ("127.0.0.1", "127.0.0.2:8000", "LOCALHOST:1", "localhost", "[::1]:8000", "[::1]")),
        *((host, False) for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil", "1127.0.0.1", "")),
    ],
)
def test_without_a_token_only_names_of_this_machine_are_answered(what, host, is_own):
    assert client_of(what).get("/v1/models", headers={"Host": host}).status_code == (200 if is_own else 403)


def test_pages_of_a_named_origin_may_send_what_openais_client_sends_and_show_images(what):
    client, origin = client_of(what, TOKEN, (MINE,)), {"Origin": MINE}
    sent = "authorization,content-type,x-stainless-os"
    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": sent}
    answer = client.options(IMAGES, headers={**origin, **wanted})
    assert answer.status_code == 200 and answer.headers["access-control-allow-headers"] == sent
    assert client.options(IMAGES, headers={**wanted, "Origin": "https://evil.example"}).status_code == 400
    made = client.post(IMAGES, json={"prompt": "x"}, headers={**origin, "Authorization": f"Bearer {TOKEN}"})
    assert made.headers["access-control-allow-origin"] == MINE and made.status_code == 200
    assert made.headers["access-control-expose-headers"] == "Retry-After"
    assert made.headers["cross-origin-resource-policy"] == "same-origin"
    address = made.json()["data"][0]["url"]
    assert client.get(address).headers["cross-origin-resource-policy"] == "cross-origin"
    assert client_of(what).get(address).headers["cross-origin-resource-policy"] == "same-origin"


def test_a_body_that_does_not_arrive_is_given_up(monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.05)
    sent = []

    async def receive():
        await asyncio.sleep(30)

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", b"9")]
    scope = {"type": "http", "method": "POST", "path": IMAGES, "headers": headers}
    asyncio.run(Guard(None, Access("", 1 << 16), Measures())(scope, receive, send))
    assert sent[0]["status"] == 408 and json.loads(sent[1]["body"])["error"]["code"] == "timeout"
