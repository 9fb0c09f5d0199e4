"""What every request passes first: the host it names, its token, the size of its body; and the count of its answer."""

import asyncio
import hmac
import re
import secrets
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ApiError
from service.measures import Measures

COOKIE = "serve_session"
OPEN = ("/health", "/login", "/page.css")  # paths that need no token
FILES = "/files/"  # nor do the addresses of images, which are secrets
BODY_SECONDS = 30.0  # for a body to arrive
SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer a form's origin would be `null`
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class Access:
    """Who may send what."""

    token: str  # "" on loopback alone
    most_bytes: int  # of a body
    origins: tuple[str, ...] = ()  # of other servers' pages that may


class Guard:
    """An ASGI application around another one.

    With a token every request needs it, as `Authorization: Bearer …`, or the cookie that /login gives for it. Without
    one the server listens on loopback alone; then a request must name such a host, or any web page that a browser
    shows could reach the server by a name of its own.
    """

    def __init__(self, app: ASGIApp, access: Access, measures: Measures):
        self._app, self._access, self._token = app, access, access.token
        self._measures = measures
        self._session = secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
                if self._access.origins and scope["path"].startswith(FILES):
                    headers["Cross-Origin-Resource-Policy"] = "cross-origin"
                route = getattr(scope.get("route"), "path", "other")
                self._measures.count("requests_total", route=route, status=message["status"])
            await send(message)

        try:
            self._check_caller(scope)
            body = await self._read_body(scope, receive)
        except ApiError as error:
            login = error.status == 401 and "text/html" in Headers(scope=scope).get("accept", "")
            if login:
                await RedirectResponse("/login", 303)(scope, receive, counted_send)
            else:
                await error.response()(scope, receive, counted_send)
            return
        await self._app(scope, _replay(body, receive), counted_send)

    def is_token(self, given: str) -> bool:
        """In a time that says nothing about where the two differ."""
        return hmac.compare_digest(given.encode(), self._token.encode())

    def login(self, body: bytes) -> str | None:
        """The cookie for a form with the token; None where it is another one."""
        given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0]
        return self._session if self._token and self.is_token(given) else None

    def _check_caller(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._token and not is_loopback(_host_name(host)):
            raise ApiError(403, f"host {host[:60]}: without a token this server answers to localhost alone", "bad_host")
        origin = headers.get("origin")
        is_own = origin is None or origin.partition("://")[2] == host or origin in self._access.origins
        if not is_own and scope["method"] not in ("GET", "HEAD"):
            raise ApiError(403, f"origin {origin[:60]}: pages of other servers may send nothing here", "bad_origin")
        path = scope["path"]
        if not self._token or path in OPEN or path.startswith(FILES):
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.is_token(given.strip()):
            return
        if hmac.compare_digest(_read_cookie(headers.get("cookie", "")).encode(), self._session.encode()):
            return
        raise ApiError(401, "the token is missing or wrong; send it as `Authorization: Bearer …`", "invalid_api_key")

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        headers = Headers(scope=scope)
        stated = headers.get("content-length", "0")
        too_large = ApiError(413, f"the body has more than {self._access.most_bytes:,} bytes; send less", "too_large")
        if not stated.isdigit() or int(stated) > self._access.most_bytes:
            raise too_large
        chunks, size, more = [], 0, scope["method"] not in ("GET", "HEAD", "OPTIONS")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more:
                    message = await receive()
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    more = message.get("more_body", False)
                    if size > self._access.most_bytes:
                        raise too_large
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {BODY_SECONDS:g} s", "timeout") from None
        return b"".join(chunks)


async def require_json(request: Request) -> None:
    """For the routes of the API: refuse a body of another type, as a form of another page would be."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.url.path.startswith("/v1/") and kind != "application/json" and await request.body():
        raise ApiError(415, "send the body as Content-Type: application/json", "invalid_content_type")


def is_loopback(host: str) -> bool:
    return host.lower() in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


def _host_name(host: str) -> str:
    """Without the port, and without the brackets of IPv6."""
    return (host.rpartition(":")[0] if ":" in host.rpartition("]")[2] else host).strip("[]")


def _read_cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _replay(body: bytes, receive: Receive) -> Receive:
    """A body that was read already, then what comes from the client: that it leaves."""
    is_read = False

    async def again() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
