"""serve.py --watch: a folder of runs in a real browser, as they train; nothing in it changes."""

import json
import os
import time

import numpy as np
import pytest
import soundfile
import yaml
from PIL import Image
from playwright.sync_api import expect

from tests.browser import open_browser
from tests.serving import served
from tests.test_serve import get

pytestmark = pytest.mark.slow


def record(step: int, loss: float) -> str:
    return json.dumps({"step": step, "loss": loss, "seconds_step": 2.0, "memory_gib": 3.25}) + "\n"


def write_run(folder, name: str, steps: int = 60) -> None:
    run = folder / name
    (run / "validation").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"max_train_steps": 100}))
    (run / "metrics.jsonl").write_text("".join(record(step, 1 / (1 + step)) for step in range(1, steps + 1)))
    Image.new("RGB", (64, 32), (200, 30, 30)).save(run / "validation/step-000050.png")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched") / "runs"
    write_run(folder, "shoes")
    (folder / "notes").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken/config.yaml").write_text("a: [")
    (folder / "broken/metrics.jsonl").write_text("{}\n")
    return folder


def content(folder) -> dict[str, tuple[bytes, float]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def server(runs, tmp_path_factory):
    with served(tmp_path_factory.mktemp("server"), "--watch", runs) as one:
        yield one


@pytest.fixture(scope="module")
def browser():
    with open_browser() as one:
        yield one


@pytest.fixture
def page(server, browser):
    context = browser.new_context(viewport={"width": 360, "height": 800}, locale="en-GB")
    context.set_default_timeout(15_000)
    page = context.new_page()
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(server.url)
    yield page
    context.close()
    assert not faults


def test_runs_are_shown_as_they_train_on_a_phone_and_nothing_changes(page, runs):
    before = content(runs)
    assert page.url.endswith("/watch") and page.get_by_role("heading", level=1).inner_text() == "Runs in runs"
    section = page.locator("#run-shoes")
    expect(section).to_contain_text("training · step 60 of 100 · ")
    expect(section).to_contain_text("left · 3.25 GiB of memory")
    assert section.locator("progress").evaluate("one => one.position") == 0.6
    assert section.locator("img").evaluate("one => one.decode().then(() => one.naturalWidth)") == 64
    points = section.locator("polyline").first.get_attribute("points").split()
    assert len(points) == 60 and points[-1].startswith("600.0,")
    assert section.get_by_role("listitem").count() > 0  # the report in words
    expect(page.locator("#run-broken")).to_contain_text("This run can't be read: config.yaml is damaged.")
    assert page.locator("#run-notes").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert content(runs) == before


def test_the_page_follows_a_run_and_a_new_one(page, runs):
    section = page.locator("#run-boots")
    assert section.count() == 0
    write_run(runs, "boots")
    soundfile.write(runs / "boots/validation/step-000050_0.wav", np.sin(np.arange(8000) / 9), 16_000)
    expect(section).to_contain_text("step 60 of 100", timeout=15_000)
    expect(section.locator("audio")).to_have_count(1)
    with open(runs / "boots/metrics.jsonl", "a") as file:
        file.write(record(75, 0.01))
    expect(section).to_contain_text("step 75 of 100", timeout=15_000)
    old = time.time() - 3600
    os.utime(runs / "boots/metrics.jsonl", (old, old))
    expect(section).to_contain_text("no news for over 15 minutes", timeout=15_000)


def test_no_path_of_a_request_is_read(page, runs):
    address = page.url
    for name in ("config.yaml", "..%2Fconfig.yaml", "%2Fetc%2Fpasswd", "shoes%2Fconfig.yaml"):
        status, answer, _ = get(f"{address}/files/{name}")
        assert status == 404 and json.loads(answer)["error"]["message"]
    source = page.locator("#run-shoes img").get_attribute("src")
    status, _, headers = get(address.removesuffix("/watch") + source)
    assert status == 200 and headers["content-type"] == "image/png"
