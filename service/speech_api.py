"""POST /v1/audio/speech: OpenAI's request, answered sentence by sentence."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from service.answers import TimedStream, unless_client_leaves
from service.errors import ApiError, stopping_error
from service.measures import Measures
from utils.cli import UserError, counted, name_some, suggest
from utils.devices import HIGHEST_SEED

MOST_CHARACTERS = 4096
MOST_PITCH, MOST_ENERGY = 24, 40  # semitones and dB, up or down
MEDIA_TYPES = {"wav": "audio/wav", "mp3": "audio/mpeg", "flac": "audio/flac", "opus": "audio/ogg", "pcm": "audio/pcm"}


class Encoder(Protocol):
    """Sound as bytes, as it comes."""

    def add(self, samples: np.ndarray) -> bytes: ...

    def end(self) -> bytes: ...


@dataclass(frozen=True)
class ServedVoice:
    """A voice, or one speaker of it.

    `say` gives the sound of a request in parts. When called, it refuses by UserError what the voice has not learnt.
    """

    say: Callable[["SpeechBody"], Iterator[np.ndarray]]
    encode: Callable[[str], Encoder]  # by the name of a format
    model: str  # the voice's name in /v1/models
    language: str
    takes: tuple[str, ...] = ()  # of the fields that not every voice takes
    styles: tuple[str, ...] = ()  # the names that `style_reference` may have


class SpeechBody(BaseModel):
    """Fields of OpenAI's API, and from seed to sentence_pause those of this server, named as synthesize.py's flags."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    input: str = Field(min_length=1, max_length=MOST_CHARACTERS, description="What is spoken.")
    voice: str = Field(max_length=200, description="A name of /v1/audio/voices.")
    model: str | None = Field(None, max_length=200, description="The voice's model; by default the one it belongs to.")
    response_format: Literal["mp3", "opus", "flac", "wav", "pcm"] = Field("mp3", description="pcm: 24 kHz, 16 bits.")
    speed: float = Field(1.0, ge=0.25, le=4.0, description="Divides durations, then rounded up to whole frames.")
    seed: int = Field(0, ge=0, le=HIGHEST_SEED, description="The same seed gives the same sound as synthesize.py.")
    pitch: float = Field(
        0.0, ge=-MOST_PITCH, le=MOST_PITCH, description="Semitones above the voice's own; of a voice that takes it."
    )
    energy: float = Field(
        0.0, ge=-MOST_ENERGY, le=MOST_ENERGY, description="dB above the voice's own level; of a voice that takes it."
    )
    style_token: dict[Annotated[str, Field(pattern="^[0-9]{1,4}$")], float] = Field(
        {}, description="Weights of style tokens by their numbers; of a voice that takes it."
    )
    style_reference: str | None = Field(
        None, max_length=100, description="A recording to speak like, by its name in the list of voices."
    )
    noise_scale: float | None = Field(
        None, ge=0, le=10, description="Variety of the sound; by default the voice's own."
    )
    noise_scale_duration: float | None = Field(
        None, ge=0, le=10, description="Variety of the rhythm; by default the voice's own."
    )
    language: str | None = Field(
        None, max_length=20, description="Whose rules read numbers: pt-br, en or none; by default the voice's."
    )
    sentence_pause: float = Field(0.4, ge=0, le=10, description="Seconds between two sentences, divided by speed.")
    stream_format: Literal["audio"] | None = None  # of OpenAI's; it can only have this value here


class SpeechService:
    """The voices, and threads that speak: one sentence each at a time. At most so many requests are in work or wait."""

    def __init__(self, voices: dict[str, ServedVoice], threads: ThreadPoolExecutor, most: int, seconds: float):
        self.voices, self.seconds = voices, seconds
        self._threads, self._most = threads, most
        self._is_closed = False
        self.now = 0

    def close(self) -> None:
        """Take no more requests, and refuse those of which nothing is spoken yet."""
        self._is_closed = True

    async def speak(
        self, body: SpeechBody, spoken: Iterator[np.ndarray], measures: Measures, end: float
    ) -> AsyncGenerator[bytes, None]:
        """The sound's bytes; the next sentence is spoken once the one before has been sent."""
        if self._is_closed:
            raise stopping_error()
        if self.now >= self._most:
            what = f"{counted(self.now, 'request')} are being spoken or wait, and at most {self._most} may"
            raise ApiError(429, f"{what}; try again in 2 s", "queue_full", None, 2)
        self.now += 1
        parts = self._make_parts(body, spoken, measures)
        try:
            while (content := await self._next(parts, end)) is not None:
                if content:
                    yield content
        finally:
            self.now -= 1

    def _make_parts(self, body: SpeechBody, spoken: Iterator[np.ndarray], measures: Measures) -> Iterator[bytes]:
        """The bytes that each sentence adds, which may be none, and those of the end. Runs in the threads."""
        if self._is_closed:
            raise stopping_error()
        encoder, began = self.voices[body.voice].encode(body.response_format), perf_counter()
        for samples in spoken:
            content = encoder.add(samples)
            measures.count("speaking_seconds_total", perf_counter() - began)
            measures.count("sentences_total")
            yield content
            began = perf_counter()
        yield encoder.end()

    async def _next(self, parts: Iterator[bytes], end: float) -> bytes | None:
        try:
            async with asyncio.timeout_at(end):
                return await asyncio.get_running_loop().run_in_executor(self._threads, next, parts, None)
        except TimeoutError:
            raise ApiError(504, f"not spoken within {self.seconds:g} s; send less text", "timeout") from None
        except UserError as error:
            raise field_error(error) from None


def speech_routes(service: SpeechService, measures: Measures) -> APIRouter:
    routes = APIRouter(tags=["speech"])
    measures.watch("speech_requests_now", lambda: service.now)

    @routes.post("/v1/audio/speech", response_class=StreamingResponse)
    async def speak(body: SpeechBody, request: Request) -> Response:
        """Speak a text; the sound is sent as it is made, sentence by sentence (FLAC as a whole)."""
        check_voice(service, body)
        try:
            spoken = service.voices[body.voice].say(body)
        except UserError as error:
            raise field_error(error) from None
        end = asyncio.get_running_loop().time() + service.seconds
        sound = service.speak(body, spoken, measures, end)
        first = await unless_client_leaves(request, anext(sound))  # an error of it has a status of its own
        if first is None:
            return Response(status_code=499)  # which nobody reads
        return TimedStream(first, sound, MEDIA_TYPES[body.response_format], end)

    @routes.get("/v1/audio/voices")
    async def list_voices() -> dict[str, Any]:
        """The voices that can speak, the fields that each takes beyond those of all, and its style references."""
        voices = [
            {"id": name, "name": name, "model": one.model, "language": one.language}
            | {"takes": list(one.takes), "styles": list(one.styles)}
            for name, one in service.voices.items()
        ]
        return {"voices": voices}

    return routes


def field_error(error: UserError) -> ApiError:
    """The error with its flags as the fields of their names; of the one that it begins with, or else of `input`."""

    def as_field(flag: re.Match[str]) -> str:
        return f"`{flag[1]}`" if flag[1] in SpeechBody.model_fields else flag[0]

    said = re.sub(r"--(\w+)", as_field, str(error))
    if found := re.match(r"`(\w+)`", said):
        return ApiError(400, said, "invalid_value", found[1])
    return ApiError(400, f"`input`: {said}", "invalid_value", "input")


def check_voice(service: SpeechService, body: SpeechBody) -> None:
    if body.voice not in service.voices:
        known = list(service.voices)
        what = f"`voice` {body.voice[:60]}: there is {name_some(known)}{suggest(body.voice[:60], known)}"
        raise ApiError(400, what, "voice_not_found", "voice")
    model = service.voices[body.voice].model
    if body.model not in (None, model):
        raise ApiError(404, f"`model` {body.model[:60]}: this voice is of {model}", "model_not_found", "model")
