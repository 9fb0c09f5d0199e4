"""Pages in the reader's language, as HTML that loads nothing from elsewhere."""

from functools import partial
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse

from service.language import choose_language, translate, write_number
from utils.wording import PAGES, make_environment

TEMPLATES = Path(__file__).parent / "templates"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
ENVIRONMENT = make_environment(TEMPLATES, PAGES)


def render(request: Request, template: str, language: str | None, status: int = 200, /, **values: Any) -> HTMLResponse:
    """The page in this language, or else in the browser's."""
    lang = page_language(request, language)
    content = ENVIRONMENT.get_template(template).render(
        t=partial(translate, lang), number=partial(write_number, lang), lang=lang, name="serve.py", **values
    )
    return HTMLResponse(content, status, HEADERS)


def page_language(request: Request, language: str | None) -> str:
    return language or choose_language(accepted=request.headers.get("accept-language", ""))


def styles() -> str:
    """The reports' style, and what the server's pages have besides."""
    return (PAGES / "page.css").read_text("utf-8") + (TEMPLATES / "site.css").read_text("utf-8")
