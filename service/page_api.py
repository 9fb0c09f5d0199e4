"""The page at /: forms for what the API makes."""

import json
import math
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
from service.speech_api import MOST_CHARACTERS, MOST_ENERGY, MOST_PITCH

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
# What it says of the API's errors, by their codes; `other`: of those that need what the API says.
ERRORS = (
    "error.queue_full",
    "error.timeout",
    "error.stopping",
    "error.internal_error",
    "error.invalid_image",
    "error.invalid_api_key",
    "error.unreachable",
    "error.other",
)
USUAL_WEIGHTS = (0.0, 1.5)  # of a LoRA


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
        if not site.title:
            return RedirectResponse("/watch", 303)
        language = page_language(request, site.language)
        return render(request, "page.html", language, title=site.title, **page_values(site, pickers, language))

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
    said = {key.partition(".")[2]: translate(language, key, n="{n}") for key in OF_SCRIPT}
    errors = {key.partition(".")[2]: translate(language, key, message="{message}") for key in ERRORS}
    voices = site.speech.voices if site.speech else {}
    return {
        "texts": json.dumps(said | {"errors": errors}),
        "images": site.images,
        "slider_of": slider_of,
        "voices": voices,
        "styles": dict.fromkeys(style for one in voices.values() for style in one.styles),
        "most_pitch": MOST_PITCH,
        "most_energy": MOST_ENERGY,
        "pickers": group_pickers(pickers),
        "example": next((one.example for one in pickers.values()), ""),
        "most_characters": MOST_CHARACTERS,
        "watches": site.watches,
    }


def group_pickers(pickers: Mapping[str, Pickers]) -> list[tuple[list[str], Pickers]]:
    """Those that leave a choice, each with the LoRAs whose captions are composed alike."""
    groups: list[tuple[list[str], Pickers]] = []
    for name, one in pickers.items():
        same = next((names for names, known in groups if known.composes_as(one)), None)
        if same:
            same.append(name)
        elif any(len(found) > 1 for found in one.values.values()):
            groups.append(([name], one))
    return groups


def slider_of(weight: float) -> dict[str, float | str]:
    """The range of a LoRA's weight, which has the weight that was given, also where it is no multiple of the step."""
    low, high = min(USUAL_WEIGHTS[0], weight), max(USUAL_WEIGHTS[1], weight)
    return {"min": low, "max": high, "step": 0.05 if math.isclose(weight * 20, round(weight * 20)) else "any"}
