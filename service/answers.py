"""How answers are sent: they end when the client leaves, or when their time is over."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.errors import ApiError

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
Content = TypeVar("Content", str, bytes)


async def unless_client_leaves(request: Request, work: Awaitable[Result]) -> Result | None:
    """What the work returns; None, and the work is stopped, once the client has closed its connection."""

    async def wait_for_end() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(wait_for_end())
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        for task in (doing, leaving):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ApiError):
                await task


class TimedStream(StreamingResponse):
    """An answer in parts, of which the first is there already.

    Once the client leaves or the time is over, also because the client doesn't read, what makes the parts is closed.
    What fails by now ends the connection before the end of the answer, which clients report.
    """

    def __init__(self, first: Content, rest: AsyncGenerator[Content, None], media_type: str, end: float):
        super().__init__(_join(first, rest), media_type=media_type, headers={"Cache-Control": "no-store"})
        self._rest: AsyncGenerator[Any, None] = rest
        self._end = end  # in the event loop's time

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with contextlib.aclosing(self._rest), asyncio.timeout_at(self._end):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            logger.warning("an answer was cut off: it was not made and read within its time (--timeout)")
        except ApiError as error:
            logger.warning("an answer was cut off: %s", error)


async def _join(first: Content, rest: AsyncGenerator[Content, None]) -> AsyncGenerator[Content, None]:
    yield first
    async for content in rest:
        yield content
