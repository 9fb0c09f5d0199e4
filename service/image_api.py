"""POST /v1/images/generations: OpenAI's request and answer, and what this server adds to them."""

import asyncio
import base64
import io
import json
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from families.image_facts import describe_made, describe_model
from families.sampler import ImageRequest, Sampling
from families.sampling import guidance_problem, negative_prompt_problem, reads_negative_prompt, takes_negative_prompt
from service.answers import TimedStream, unless_client_leaves
from service.errors import ApiError
from service.image_model import ImageModel
from service.image_queue import ImageQueue, Job, Made, Progress, Settings
from service.kept_files import KeptFiles
from utils.cli import name_some, suggest
from utils.devices import HIGHEST_SEED, nth_seed
from utils.images import png_header

MOST_WEIGHT = 10.0
READING = 5.0  # seconds for a client to read the last events, of which one may be that the time is over


class ImageBody(BaseModel):
    """Fields of OpenAI's API, and negative_prompt, steps, guidance_scale, seed and lora, which are this server's."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: str = Field(min_length=1, max_length=4000, description="What the images show.")
    model: str | None = Field(None, description="A name of /v1/models; by default the first LoRA, or the base model.")
    n: int = Field(1, ge=1, description="How many images; each has the next seed.")
    size: str | None = Field(None, description="Such as 512x512, or auto; by default the model's own.")
    response_format: Literal["url", "b64_json"] = Field("url", description="An address that expires, or the content.")
    stream: bool = Field(False, description="Progress and images as server-sent events.")
    seed: int | None = Field(None, ge=0, le=HIGHEST_SEED, description="Of the first image; by default a random one.")
    negative_prompt: str = Field("", max_length=4000, description="What no image should show.")
    steps: int | None = Field(None, ge=1, description="Of the scheduler; by default the model's own.")
    guidance_scale: float | None = Field(None, ge=0, le=100, description="By default the model's own.")
    lora: dict[str, Annotated[float, Field(ge=-MOST_WEIGHT, le=MOST_WEIGHT)]] | None = Field(
        None, description="Weights of LoRAs by their names, in place of the model's; {} for the base model alone."
    )
    # What clients of OpenAI send though it can only have one value here.
    quality: Literal["auto", "standard"] | None = None
    background: Literal["auto", "opaque"] | None = None
    output_format: Literal["png"] | None = None
    moderation: Literal["auto", "low"] | None = None
    partial_images: Literal[0] | None = None
    user: str | None = Field(None, max_length=200)


@dataclass(frozen=True)
class ImageLimits:
    """What one request may ask for."""

    size: int  # the largest side, in pixels
    steps: int
    images: int
    seconds: float  # until its answer


@dataclass(frozen=True)
class ImageService:
    """What images are made with; `loras` are the names and the weights that they have by default."""

    model: ImageModel
    queue: ImageQueue
    kept: KeptFiles
    base: str
    family: str
    has_guidance: bool
    loras: dict[str, float]
    defaults: Sampling
    multiple: int  # of which a side is
    limits: ImageLimits
    clip_skip: int = 0
    describes: bool = True  # prompt and settings in the images

    @property
    def default_loras(self) -> dict[str, float]:
        return dict(list(self.loras.items())[:1])

    @property
    def takes_negative_prompt(self) -> bool:
        return takes_negative_prompt(self.family, self.has_guidance)


def image_routes(service: ImageService) -> APIRouter:
    routes = APIRouter(tags=["images"])

    @routes.post("/v1/images/generations")
    async def generate(body: ImageBody, request: Request) -> Response:
        """Make images of a prompt. The same seed gives the same image as generate.py."""
        seed = secrets.randbelow(HIGHEST_SEED - service.limits.images) if body.seed is None else body.seed
        job = make_job(service, body, seed)
        ahead = service.queue.submit(job)
        root = str(request.base_url)
        if body.stream:
            events = stream_events(service, body, job, ahead, root)
            end = asyncio.get_running_loop().time() + service.limits.seconds + READING
            return TimedStream(await anext(events), events, "text/event-stream", end)
        try:
            images = await unless_client_leaves(request, collect_images(service, job))
        finally:
            service.queue.cancel(job)
        if images is None:
            return Response(status_code=499)  # which nobody reads
        seeds = [one.seed for one in job.requests]
        data = [describe_image(service, body, *one, root) for one in zip(seeds, images)]
        warnings = find_warnings(service, body)
        answer = {"created": int(time.time()), "data": data} | ({"warnings": warnings} if warnings else {})
        return Response(json.dumps(answer), media_type="application/json")

    @routes.get("/files/{name}.png", include_in_schema=False)
    async def get_file(name: str) -> Response:
        content = service.kept.find(name)
        if content is None:
            raise ApiError(404, "there is no such image, or its address has expired; generate it again", "expired")
        return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    return routes


def make_job(service: ImageService, body: ImageBody, seed: int) -> Job:
    """The images of a request; one that is not possible here is refused."""
    limits, defaults = service.limits, service.defaults
    steps = body.steps or defaults.steps
    for name, value, most in (("n", body.n, limits.images), ("steps", steps, limits.steps)):
        if value > most:
            raise ApiError(400, f"`{name}` {value}: at most {most} here", "too_large", name)
    if seed + body.n - 1 > HIGHEST_SEED:
        what = f"the last of {body.n} images would have a seed above {HIGHEST_SEED}"
        raise ApiError(400, f"`seed` {seed}: {what}; give at most {HIGHEST_SEED - body.n + 1}", "too_large", "seed")
    guidance = defaults.guidance_scale if body.guidance_scale is None else body.guidance_scale
    if guidance != defaults.guidance_scale and not service.has_guidance:
        what = f"`guidance_scale` {guidance:g}: {guidance_problem(service.family)}"
        raise ApiError(400, what, "invalid_value", "guidance_scale")
    if body.negative_prompt and not reads_negative_prompt(service.family, guidance):
        problem = negative_prompt_problem(service.family, service.has_guidance, guidance)
        raise ApiError(400, f"`negative_prompt`: {problem}", "invalid_value", "negative_prompt")
    sampling = replace(
        defaults,
        steps=steps,
        guidance_scale=guidance,
        size=read_size(service, body.size),
        negative_prompt=body.negative_prompt,
    )
    settings = Settings(sampling, tuple(sorted(choose_loras(service, body).items())))
    return Job(settings, [ImageRequest(body.prompt, nth_seed(seed, index, 0)) for index in range(body.n)])


def read_size(service: ImageService, size: str | None) -> int:
    if size in (None, "auto"):
        return service.defaults.size
    width, _, height = size.partition("x")
    step, most = service.multiple, service.limits.size
    side = int(width) if re.fullmatch("[0-9]{1,5}", width) else 0
    if width == height and 0 < side <= most and side % step == 0:
        return side
    what = f"a square with sides of {step} to {most} pixels, in steps of {step}, such as {service.defaults.size}"
    raise ApiError(400, f"`size` {size[:20]}: expected {what}x{service.defaults.size}", "invalid_value", "size")


def choose_loras(service: ImageService, body: ImageBody) -> dict[str, float]:
    """The weights of the LoRAs that a request asks for, by `lora` or by `model`."""
    if body.model not in (None, service.base, *service.loras):
        known = [service.base, *service.loras]
        what = f"`model` {body.model[:60]}: there is {name_some(known)}{suggest(body.model[:60], known)}"
        raise ApiError(404, what, "model_not_found", "model")
    if body.lora is None:
        if body.model is None:
            return service.default_loras
        return {body.model: service.loras[body.model]} if body.model in service.loras else {}
    if unknown := [name for name in body.lora if name not in service.loras]:
        there = f"there is {name_some(list(service.loras))}" if service.loras else "this server has none"
        raise ApiError(400, f"`lora` {unknown[0][:60]}: {there}", "lora_not_found", "lora")
    return {name: weight for name, weight in body.lora.items() if weight}


def find_warnings(service: ImageService, body: ImageBody) -> list[str]:
    texts = {"prompt": body.prompt, "negative_prompt": body.negative_prompt}
    cut = [name for name, text in texts.items() if text and service.model.is_cut(text)]
    return [f"`{name}` is longer than the model reads; its end was not seen" for name in cut]


async def collect_images(service: ImageService, job: Job) -> list[bytes]:
    """The images of a job as PNG, all of them."""
    found: dict[int, bytes] = {}
    async for event in follow(service, job):
        if isinstance(event, Made):
            found[event.number] = await asyncio.to_thread(encode_png, service, job, event)
    return [found[index] for index in range(len(job.requests))]


async def follow(service: ImageService, job: Job) -> AsyncIterator[Progress | Made]:
    """What becomes of a job, until its last image; what fails is raised, and so is the end of its time."""
    left = len(job.requests)
    end = asyncio.get_running_loop().time() + service.limits.seconds
    while left:
        try:
            async with asyncio.timeout_at(end):
                event = await job.events.get()
        except TimeoutError:
            what = f"not made within {service.limits.seconds:g} s; ask for fewer images or steps, or try again later"
            raise ApiError(504, what, "timeout") from None
        if isinstance(event, ApiError):
            raise event
        left -= isinstance(event, Made)
        yield event


def encode_png(service: ImageService, job: Job, made: Made) -> bytes:
    """An image as PNG, with what it says of itself."""
    if not made.image.is_finite:
        raise ApiError(500, "the model gave an invalid image (NaN); try another seed or fewer LoRAs", "invalid_image")
    facts = {}
    if service.describes:
        more = describe_model(service.base, job.settings.loras, service.clip_skip)
        facts = describe_made(job.requests[made.number], job.settings.sampling, service.family, more)
    file = io.BytesIO()
    made.image.image.save(file, "PNG", pnginfo=png_header(facts))
    return file.getvalue()


def describe_image(service: ImageService, body: ImageBody, seed: int, image: bytes, root: str) -> dict[str, Any]:
    """An image as OpenAI's answer has it, and its seed."""
    if body.response_format == "b64_json":
        return {"b64_json": base64.b64encode(image).decode(), "seed": seed}
    return {"url": f"{root}files/{service.kept.add(image)}.png", "seed": seed}


async def stream_events(
    service: ImageService, body: ImageBody, job: Job, ahead: int, root: str
) -> AsyncGenerator[str, None]:
    """Server-sent events: the place in the queue, each step, each image; once the client leaves, the job ends."""
    head = {"created_at": int(time.time()), "size": f"{job.settings.sampling.size}x{job.settings.sampling.size}"}
    try:
        yield write_event("image_generation.queued", {"ahead": ahead, "warnings": find_warnings(service, body)})
        async for event in follow(service, job):
            if isinstance(event, Progress):
                yield write_event("image_generation.progress", event._asdict())
                continue
            content = await asyncio.to_thread(encode_png, service, job, event)
            shown = describe_image(service, body, job.requests[event.number].seed, content, root)
            yield write_event("image_generation.completed", {**head, **shown, "index": event.number})
    except ApiError as error:
        yield f"event: error\ndata: {json.dumps(error.body)}\n\n"
    finally:
        service.queue.cancel(job)


def write_event(kind: str, facts: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **facts})}\n\n"
