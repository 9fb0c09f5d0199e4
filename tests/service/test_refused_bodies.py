"""Bodies of requests that are refused: by the route, with a code, and naming the field."""

import gzip

import pytest
from starlette.testclient import TestClient

from service import site
from service.guard import Access
from service.measures import Measures
from service.site import Site
from tests.service.test_image_requests import service_of

IMAGES = "/v1/images/generations"


@pytest.fixture(scope="module")
def client():
    app = site.build_app(Site(Measures(), images=service_of("sd1", True, 7.5)), Access("", 1 << 16))
    return TestClient(app, "http://localhost")


def refuse(client: TestClient, body: bytes, path: str = IMAGES, kind: str = "application/json"):
    answer = client.post(path, content=body, headers={"Content-Type": kind})
    return answer.status_code, answer.json()["error"]


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b"3", b"{", b'{"prompt": "\xff"}', gzip.compress(b'{"prompt": "x"}', mtime=0), b"[" * 30_000],
)
def test_what_is_no_object_of_json_has_that_code(client, body):
    status, error = refuse(client, body)
    assert (status, error["code"], error["param"]) == (400, "invalid_json", None)
    assert error["message"].startswith("the body is not a JSON object; send one in braces")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ('"n": true', "`n` true: should be a valid integer"),
        ('"n": "2"', '`n` "2": should be a valid integer'),
        ('"n": 0', "`n` 0: should be greater than or equal to 1"),
        ('"stream": "yes"', '`stream` "yes": should be a valid boolean'),
        ('"n": null', "`n` null: should be a valid integer"),
        ('"partial_images": 2', "`partial_images` 2: should be 0"),
        ('"seed": 999999999, "n": 3', "`seed` 999999999: the last of 3 images would have a seed above 999999999; give"),
        ('"style": "vivid"', "`style`: not supported here"),
        (r'"size": "\ud800"', r"`size` \ud800: expected a square"),
        (r'"negative_prompt": "\ud800"', r'`negative_prompt` "\ud800": should be a valid string'),
    ],
)
def test_a_refusal_names_field_value_and_what_is_expected(client, fields, message):
    status, error = refuse(client, f'{{"prompt": "boots", {fields}}}'.encode())
    assert status == 400 and error["message"].startswith(message)
    assert f"`{error['param']}`" in message


def test_a_field_that_is_missing_is_named(client):
    assert refuse(client, b'{"n": 1}')[1]["message"] == "`prompt`: is missing; see /docs"


def test_a_form_is_refused_where_there_is_a_route_and_not_found_where_there_is_none(client):
    form = "multipart/form-data; boundary=x"
    status, error = refuse(client, b"--x--", kind=form)
    assert (status, error["code"]) == (415, "invalid_content_type")
    assert client.post(IMAGES, content=b'{"prompt": "x"}').status_code == 415
    for path in ("/v1/images/edits", "/v1/audio/transcriptions"):
        assert refuse(client, b"--x--", path, form)[0] == 404
