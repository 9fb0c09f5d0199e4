"""A real headless browser for the tests of pages; without one they are skipped, or with REQUIRE_BROWSER=1 fail."""

import contextlib
import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def open_browser():
    """Chromium, started once for a whole file of tests."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        missing = f"no browser: none of {', '.join(NAMES)} is on the PATH"
        pytest.fail(missing) if os.environ.get("REQUIRE_BROWSER") else pytest.skip(missing)
    from playwright import sync_api

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def open_page(browser, path, width: int, **options):
    """A page that no request may leave and in which no script may fail, with a storage of its own."""
    faults, asked = [], []
    context = browser.new_context(viewport={"width": width, "height": 844}, **options)
    page = context.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.resolve().as_uri())
    yield page
    assert not faults and all(url.startswith(("file:", "data:", "blob:")) for url in asked), (faults, asked)
    context.close()
