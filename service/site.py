"""The server as a whole: what it offers, its routes, and the socket that it listens on."""

import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from service.errors import ApiError, add_error_handlers
from service.guard import COOKIE, Access, Guard, is_loopback, require_json
from service.image_api import ImageService, image_routes
from service.measures import Measures
from service.pages import render, styles
from service.speech_api import SpeechService, speech_routes
from utils.cli import UserError

TOKEN = "SERVE_API_TOKEN"  # the environment's variable
LEAST_TOKEN = 16  # characters
GRACE = 10  # seconds for requests in work once the server is asked to stop


@dataclass
class Site:
    """What is served."""

    measures: Measures
    images: ImageService | None = None
    speech: SpeechService | None = None
    language: str | None = None  # of the pages; None: the browser's
    has_token: bool = False
    watches: bool = False  # a folder of runs
    started: int = field(default_factory=lambda: int(time.time()))

    @property
    def title(self) -> str | None:
        """The key of the title of the page at /; None where nothing is made."""
        if self.images and self.speech:
            return "pages.both"
        if self.images:
            return "pages.images"
        return "pages.speech" if self.speech else None


def read_token(host: str) -> str:
    """The token of the environment; refuses a host beyond loopback without one, and one that can be guessed."""
    token = os.environ.get(TOKEN, "")
    if not token and not is_loopback(host):
        raise UserError(
            f"--host {host}: others can reach it, so the environment must have {TOKEN}, a secret of {LEAST_TOKEN} "
            "characters or more, such as `openssl rand -hex 24` prints; or leave --host out"
        )
    if token and (len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token):
        raise UserError(f"{TOKEN}: expected {LEAST_TOKEN} or more letters, digits and signs without blanks")
    return token


def build_app(site: Site, access: Access, pages: Sequence[APIRouter] = ()) -> ASGIApp:
    app = FastAPI(title="serve.py", docs_url=None, redoc_url=None, dependencies=[Depends(require_json)])
    add_error_handlers(app)
    app.include_router(common_routes(site))
    if site.images:
        app.include_router(image_routes(site.images))
    if site.speech:
        app.include_router(speech_routes(site.speech, site.measures))
    for routes in pages:
        app.include_router(routes)
    guard = Guard(app, access, site.measures)
    if access.token:
        add_login(app, guard, site)
    if not access.origins:
        return guard
    return CORSMiddleware(
        guard,
        allow_origins=access.origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],  # OpenAI's client in a browser sends some of its own
        expose_headers=["Retry-After"],
    )


def common_routes(site: Site) -> APIRouter:
    routes = APIRouter(tags=["server"])
    site.measures.watch("memory_bytes", lambda: psutil.Process().memory_info().rss)
    if site.images:
        site.measures.watch("kept_bytes", lambda: site.images.kept.bytes)

    @routes.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """The base model, the LoRAs and the voices: what `model` may name."""
        made = {"object": "model", "created": site.started}
        return {"object": "list", "data": [{**made, "id": name, "owned_by": kind} for name, kind in find_models(site)]}

    @routes.get("/v1/models/{name:path}")
    async def describe_model(name: str) -> Response:
        """One of them."""
        for one, kind in find_models(site):
            if one == name:
                return JSONResponse({"id": one, "object": "model", "created": site.started, "owned_by": kind})
        raise ApiError(404, f"`model` {name[:60]}: there is none of this name; see /v1/models", "model_not_found")

    @routes.get("/health")
    async def health() -> Response:
        """Whether the server can make what it offers."""
        is_well = site.images is None or site.images.queue.is_alive
        return JSONResponse({"status": "ok" if is_well else "failed"}, 200 if is_well else 503)

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Numbers since the start, for Prometheus."""
        return PlainTextResponse(site.measures.write(), media_type="text/plain; version=0.0.4")

    @routes.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return render_docs(request, site)

    @routes.get("/page.css", include_in_schema=False)
    async def page_css() -> Response:
        return Response(styles(), media_type="text/css", headers={"Cache-Control": "no-cache"})

    return routes


def render_docs(request: Request, site: Site) -> HTMLResponse:
    """The API's page: what each route takes, and commands to try."""
    values = {"bodies": find_bodies, "describe": describe_field, "commands": example_commands(site, request)}
    return render(request, "docs.html", site.language, schema=request.app.openapi(), **values)


def example_commands(site: Site, request: Request) -> list[str]:
    bodies: dict[str, dict[str, Any]] = {}
    if site.images:
        bodies["v1/images/generations"] = {"prompt": "a product photo of red casual shoes"}
    if site.speech:
        bodies["v1/audio/speech"] = {"input": "Bom dia!", "voice": next(iter(site.speech.voices))}
    token = f' -H "Authorization: Bearer ${TOKEN}"' if site.has_token else ""
    posts = [
        f"{path}{token} -H 'Content-Type: application/json' -d '{json.dumps(body)}'" for path, body in bodies.items()
    ]
    return [f"curl {request.base_url}{rest}" for rest in (f"v1/models{token}", *posts)]


def find_bodies(route: dict[str, Any]) -> list[str]:
    """The name of the schema of a route's body, if it takes one."""
    content = route.get("requestBody", {}).get("content", {}).get("application/json", {})
    return [content["schema"]["$ref"].rpartition("/")[2]] if "$ref" in content.get("schema", {}) else []


def describe_field(facts: dict[str, Any]) -> str:
    """The type of a field, its range and its default."""
    kinds = [one for one in facts.get("anyOf", [facts]) if one.get("type") != "null"]
    found = []
    for one in kinds:
        found.append(" | ".join(one["enum"]) if "enum" in one else one.get("const") or one.get("type", ""))
        low, high = (one.get(name) for name in ("minimum", "maximum"))
        found[-1] += "" if low is None else f" {low:g}…" + ("" if high is None else f"{high:g}")
    default = facts.get("default")
    return ", ".join(filter(None, found)) + ("" if default in (None, "") else f" = {json.dumps(default)}")


def find_models(site: Site) -> list[tuple[str, str]]:
    """Names, and what each is."""
    found = []
    if site.images:
        found += [(site.images.base, "base model"), *((name, "lora") for name in site.images.loras)]
    if site.speech:
        found += [(name, "voice") for name in dict.fromkeys(one.model for one in site.speech.voices.values())]
    return found


def add_login(app: FastAPI, guard: Guard, site: Site) -> None:
    """A form for the token, in place of the header that a browser can't send by itself."""

    @app.get("/login", include_in_schema=False)
    async def show_form(request: Request) -> HTMLResponse:
        return render(request, "login.html", site.language, is_wrong=False)

    @app.post("/login", include_in_schema=False)
    async def log_in(request: Request) -> Response:
        cookie = guard.login(await request.body())
        if cookie is None:
            return render(request, "login.html", site.language, 401, is_wrong=True)
        answer = Response(status_code=303, headers={"Location": "/"})
        answer.set_cookie(COOKIE, cookie, httponly=True, samesite="strict", secure=request.url.scheme == "https")
        return answer


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any free one."""
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=kind, backlog=512)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} --port {port}: {reason}; give others, or stop what listens there") from None


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]):
        super().__init__(config)
        self._on_stop = on_stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stop()  # those who wait get their answer while connections are still served
        await super().shutdown(sockets)


def make_server(app: ASGIApp, on_stop: Callable[[], None], most_connections: int) -> uvicorn.Server:
    """It answers until SIGINT or SIGTERM; then requests in work have a moment to end."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
        ws="none",
        limit_concurrency=most_connections,
    )
    return _Server(config, on_stop)
