"""POST /v1/audio/speech: OpenAI's request, answered sentence by sentence."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal, Protocol

import numpy as np
from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from service.errors import ApiError
from service.measures import Measures
from utils.cli import UserError, counted, name_some, suggest

logger = logging.getLogger(__name__)
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

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    input: str = Field(min_length=1, max_length=MOST_CHARACTERS, description="What is spoken.")
    voice: str = Field(max_length=200, description="A name of /v1/audio/voices.")
    model: str | None = Field(None, max_length=200, description="The voice's model; by default the one it belongs to.")
    response_format: Literal["mp3", "opus", "flac", "wav", "pcm"] = Field("mp3", description="pcm: 24 kHz, 16 bits.")
    speed: float = Field(1.0, ge=0.25, le=4.0, description="2: twice as fast as the voice's own.")
    seed: int = Field(0, ge=0, le=10**9 - 1, description="The same seed gives the same sound as synthesize.py.")
    stream_format: Literal["audio"] | None = None


class SpeechService:
    """The voices, and threads that speak: one sentence each at a time. At most so many requests are in work or wait."""

    def __init__(self, voices: dict[str, ServedVoice], threads: ThreadPoolExecutor, most: int, seconds: float):
        self.voices, self._threads, self._most, self._seconds = voices, threads, most, seconds
        self.now = 0

    def enter(self) -> None:
        if self.now >= self._most:
            what = f"{counted(self.now, 'request')} are being spoken or wait, and at most {self._most} may"
            raise ApiError(429, f"{what}; try again in 2 s", "queue_full", None, 2)
        self.now += 1

    async def speak(self, body: SpeechBody, measures: Measures) -> AsyncIterator[bytes]:
        """The sound's bytes; the next sentence is spoken once the one before has been sent."""
        voice = self.voices[body.voice]
        parts, encoder = voice.say(body.input, body.seed, body.speed), voice.encode(body.response_format)
        end = asyncio.get_running_loop().time() + self._seconds
        try:
            while (part := await self._next(parts, end, measures)) is not None:
                if content := encoder.add(part):
                    yield content
            yield encoder.end()
        finally:
            self.now -= 1

    async def _next(self, parts: Iterator[np.ndarray], end: float, measures: Measures) -> np.ndarray | None:
        def speak() -> np.ndarray | None:
            began = perf_counter()
            part = next(parts, None)
            measures.count("speaking_seconds_total", perf_counter() - began)
            measures.count("sentences_total", part is not None)
            return part

        try:
            async with asyncio.timeout_at(end):
                return await asyncio.get_running_loop().run_in_executor(self._threads, speak)
        except TimeoutError:
            raise ApiError(504, f"not spoken within {self._seconds:g} s; send less text", "timeout") from None
        except UserError as error:
            raise ApiError(400, f"`input`: {error}", "invalid_value", "input") from None


def speech_routes(service: SpeechService, measures: Measures) -> APIRouter:
    routes = APIRouter(tags=["speech"])
    measures.watch("speech_requests_now", lambda: service.now)

    @routes.post("/v1/audio/speech", response_class=StreamingResponse)
    async def speak(body: SpeechBody) -> StreamingResponse:
        """Speak a text; the sound is sent as it is made, sentence by sentence (FLAC as a whole)."""
        check_voice(service, body)
        service.enter()
        parts = service.speak(body, measures)
        first = await anext(parts)  # an error of the first sentence has a status of its own
        return StreamingResponse(continue_with(first, parts), media_type=MEDIA_TYPES[body.response_format])

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


async def continue_with(first: bytes, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The first bytes and the rest. What fails by now ends the connection before the end, which clients report."""
    yield first
    try:
        async for content in parts:
            yield content
    except ApiError as error:
        logger.warning("speech ended before its end: %s", error)
        raise
