"""POST /v1/audio/speech: OpenAI's request, answered sentence by sentence."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal, Protocol

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
MEDIA_TYPES = {"wav": "audio/wav", "mp3": "audio/mpeg", "flac": "audio/flac", "opus": "audio/ogg", "pcm": "audio/pcm"}


class Encoder(Protocol):
    """Sound as bytes, as it comes."""

    def add(self, samples: np.ndarray) -> bytes: ...

    def end(self) -> bytes: ...


@dataclass(frozen=True)
class ServedVoice:
    """A voice, or one speaker of it: `say` gives a text's sound in parts, by its seed and its speed."""

    say: Callable[[str, int, float], Iterator[np.ndarray]]
    encode: Callable[[str], Encoder]  # by the name of a format
    model: str  # the voice's name in /v1/models
    language: str


class SpeechBody(BaseModel):
    """Fields of OpenAI's API, and seed, which is this server's."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    input: str = Field(min_length=1, max_length=MOST_CHARACTERS, description="What is spoken.")
    voice: str = Field(max_length=200, description="A name of /v1/audio/voices.")
    model: str | None = Field(None, max_length=200, description="The voice's model; by default the one it belongs to.")
    response_format: Literal["mp3", "opus", "flac", "wav", "pcm"] = Field("mp3", description="pcm: 24 kHz, 16 bits.")
    speed: float = Field(1.0, ge=0.25, le=4.0, description="Divides durations, then rounded up to whole frames.")
    seed: int = Field(0, ge=0, le=HIGHEST_SEED, description="The same seed gives the same sound as synthesize.py.")
    stream_format: Literal["audio"] | None = None


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

    async def speak(self, body: SpeechBody, measures: Measures, end: float) -> AsyncGenerator[bytes, None]:
        """The sound's bytes; the next sentence is spoken once the one before has been sent."""
        if self._is_closed:
            raise stopping_error()
        if self.now >= self._most:
            what = f"{counted(self.now, 'request')} are being spoken or wait, and at most {self._most} may"
            raise ApiError(429, f"{what}; try again in 2 s", "queue_full", None, 2)
        self.now += 1
        parts = self._make_parts(body, measures)
        try:
            while (content := await self._next(parts, end)) is not None:
                if content:
                    yield content
        finally:
            self.now -= 1

    def _make_parts(self, body: SpeechBody, measures: Measures) -> Iterator[bytes]:
        """The bytes that each sentence adds, which may be none, and those of the end. Runs in the threads."""
        if self._is_closed:
            raise stopping_error()
        voice = self.voices[body.voice]
        encoder, began = voice.encode(body.response_format), perf_counter()
        for samples in voice.say(body.input, body.seed, body.speed):
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
            raise ApiError(400, f"`input`: {error}", "invalid_value", "input") from None


def speech_routes(service: SpeechService, measures: Measures) -> APIRouter:
    routes = APIRouter(tags=["speech"])
    measures.watch("speech_requests_now", lambda: service.now)

    @routes.post("/v1/audio/speech", response_class=StreamingResponse)
    async def speak(body: SpeechBody, request: Request) -> Response:
        """Speak a text; the sound is sent as it is made, sentence by sentence (FLAC as a whole)."""
        check_voice(service, body)
        end = asyncio.get_running_loop().time() + service.seconds
        sound = service.speak(body, measures, end)
        first = await unless_client_leaves(request, anext(sound))  # an error of it has a status of its own
        if first is None:
            return Response(status_code=499)  # which nobody reads
        return TimedStream(first, sound, MEDIA_TYPES[body.response_format], end)

    @routes.get("/v1/audio/voices")
    async def list_voices() -> dict[str, Any]:
        """The voices that can speak."""
        voices = [
            {"id": name, "name": name, "model": one.model, "language": one.language}
            for name, one in service.voices.items()
        ]
        return {"voices": voices}

    return routes


def check_voice(service: SpeechService, body: SpeechBody) -> None:
    if body.voice not in service.voices:
        known = list(service.voices)
        what = f"`voice` {body.voice[:60]}: there is {name_some(known)}{suggest(body.voice[:60], known)}"
        raise ApiError(400, what, "voice_not_found", "voice")
    model = service.voices[body.voice].model
    if body.model not in (None, model):
        raise ApiError(404, f"`model` {body.model[:60]}: this voice is of {model}", "model_not_found", "model")
