"""The answer to a request that fails, in the shape of OpenAI's API."""

import json
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

logger = logging.getLogger(__name__)


def as_utf8(text: str) -> str:
    """A text with each half of a character, which JSON can name and no UTF-8 can hold, as JSON writes it: \\ud800."""
    return text.encode(errors="backslashreplace").decode()


class ApiError(Exception):
    """A request that is refused or fails: the HTTP status, what is wrong and what to do."""

    def __init__(self, status: int, message: str, code: str = "", param: str | None = None, retry_after: int = 0):
        super().__init__(message)
        self.message = as_utf8(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        what = {"message": self.message, "type": kind, "param": self.param, "code": self.code or None}
        return {"error": what}

    def response(self) -> JSONResponse:
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


def internal_error() -> ApiError:
    """The answer after a fault of this program, whose traceback is in the server's log alone."""
    return ApiError(500, "the server failed at this request; its log says why", "internal_error")


def stopping_error() -> ApiError:
    """For a request that waits, or comes, while the server stops."""
    return ApiError(503, "the server is stopping; try again once it has started", "stopping", None, 5)


def invalid_json() -> ApiError:
    what = "the body is not a JSON object; send one in braces, in UTF-8 and uncompressed"
    return ApiError(400, what, "invalid_json")


def add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def tell(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def tell_first_fault(request: Request, error: RequestValidationError) -> JSONResponse:
        return _describe_fault(error).response()

    @app.exception_handler(HTTPException)
    async def tell_status(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # FastAPI's answer to bytes that Python's json fails at
            return invalid_json().response()
        return ApiError(error.status_code, f"{request.method} {request.url.path[:100]}: {error.detail}").response()

    @app.exception_handler(Exception)
    async def tell_nothing(request: Request, error: Exception) -> JSONResponse:
        return internal_error().response()


def _describe_fault(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a request's body."""
    first = error.errors()[0]
    param = ".".join(str(one) for one in first["loc"][1:])[:100]
    if first["type"] == "json_invalid" or not param:
        return invalid_json()
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"`{param}`: not supported here; leave it out (see /docs)", "unknown_parameter", param)
    if first["type"] == "missing":
        return ApiError(400, f"`{param}`: is missing; see /docs", "invalid_value", param)
    found = json.dumps(first["input"], ensure_ascii=False)[:60]
    problem = first["msg"].removeprefix("Input ").removeprefix("String ")  # which begin pydantic's "… should be …"
    return ApiError(400, f"`{param}` {found}: {problem}; see /docs", "invalid_value", param)
