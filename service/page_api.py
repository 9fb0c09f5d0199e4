"""The page at /: forms for what the API makes."""

import json
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, ConfigDict

from service.errors import ApiError
from service.language import translate
from service.pages import TEMPLATES, page_language, render
from service.pickers import Pickers
from service.site import Site
from service.speech_api import MOST_CHARACTERS

# What the page's script says.
OF_SCRIPT = (
    "pages.seed",
    "pages.steps",
    "pages.guidance",
    "pages.negative",
    "pages.expired",
    "pages.without",
    "pages.working",
    "pages.ahead",
    "pages.done",
    "pages.stopped",
)


class ComposeBody(BaseModel):
    """The attributes that are chosen of one LoRA's dataset."""

    model_config = ConfigDict(extra="forbid")

    lora: str
    attributes: dict[str, str]


def page_routes(site: Site, pickers: Mapping[str, Pickers]) -> APIRouter:
    """`pickers` by the name of the LoRA that they belong to."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    async def page(request: Request) -> Response:
        if not (site.images or site.speech):
            return RedirectResponse("/watch", 303)
        language = page_language(request, site.language)
        return render(request, "page.html", language, **page_values(site, pickers, language))

    @routes.get("/page.js")
    async def script() -> Response:
        content = (TEMPLATES / "page.js").read_text("utf-8")
        return Response(content, media_type="text/javascript", headers={"Cache-Control": "no-cache"})

    @routes.post("/page/prompt")
    async def compose(body: ComposeBody) -> dict[str, str]:
        if body.lora not in pickers:
            raise ApiError(400, f"`lora` {body.lora[:60]}: has no attributes to choose", "lora_not_found", "lora")
        return {"prompt": pickers[body.lora].compose(body.attributes)}

    return routes


def page_values(site: Site, pickers: Mapping[str, Pickers], language: str) -> dict[str, Any]:
    both = site.images and site.speech
    title = "pages.both" if both else "pages.images" if site.images else "pages.speech"
    said = {key.partition(".")[2]: translate(language, key, n="{n}") for key in OF_SCRIPT}
    return {
        "title": translate(language, title),
        "texts": json.dumps(said),
        "images": site.images,
        "voices": list(site.speech.voices) if site.speech else [],
        "pickers": {name: one for name, one in pickers.items() if any(len(found) > 1 for found in one.values.values())},
        "example": next((one.example for one in pickers.values()), ""),
        "most_characters": MOST_CHARACTERS,
        "watches": site.watches,
    }
