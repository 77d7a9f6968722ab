"""The app: both APIs and what belongs to them, errors in each one's shape, and how it is run."""

import asyncio
import contextlib
import importlib.metadata
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from cogvx_jax.serving import openai_api, own_api, zhipu_api
from cogvx_jax.serving.guards import App, Guard, ImpatientProtocol, Message, Receive, Scope, Send
from cogvx_jax.serving.keys import Keys
from cogvx_jax.serving.looks import Looks
from cogvx_jax.serving.measures import Measures
from cogvx_jax.serving.queue import Full, KeyUsed
from cogvx_jax.serving.reference import page
from cogvx_jax.serving.refusals import Refused, refusal_of
from cogvx_jax.serving.service import Service
from cogvx_jax.serving.site import Site
from cogvx_jax.serving.watching import Watcher
from cogvx_jax.serving.worker import is_full

PARTS = (openai_api, zhipu_api, own_api)
LIMIT = 128 * 2**20  # bytes of a body
PATIENCE = 2.0  # seconds for answers that are under way when the server ends
# What clients ask again and again. FastAPI takes longer to find such a route and to fill in its arguments than the
# answer takes; its own routes of these paths describe them.
POLLED = {"/v1/videos/{id}": openai_api.retrieve, "/api/paas/v4/async-result/{id}": zhipu_api.async_result}
CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large", 415: "unsupported_media_type"}


def make_app(service: Service, keys: Keys, *, limit: int = LIMIT, **guarded: Any) -> FastAPI:
    """The app of a server. A page may be mounted beside its routes.

    Args:
      limit: bytes of a body.
      guarded: further arguments of `guards.Guard`.
    """
    app = FastAPI(
        title="cogvx_jax",
        version=importlib.metadata.version("cogvx_jax"),
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.add_api_route("/docs", _reference, include_in_schema=False)
    queue = service.queue
    found: Any = dict(watcher=Watcher(queue), looks=Looks(queue), measures=Measures())
    app.state.site = Site(service=service, keys=keys, **found)
    app.router.routes.extend(_polled(path, endpoint) for path, endpoint in POLLED.items())
    for part in PARTS:
        app.include_router(part.router)
    guard: Any = Guard
    app.add_middleware(guard, limit=limit, **guarded)
    measured: Any = Measured  # the last one is outermost: what a guard refuses counts, too
    app.add_middleware(measured, measures=app.state.site.measures)
    for kind in (Refused, Full, KeyUsed, OSError):
        app.add_exception_handler(kind, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)
    return app


def _polled(path: str, endpoint: Callable[[Request, str], Awaitable[Response]]) -> Route:
    """A route of Starlette's own, which comes before FastAPI's."""

    async def answer(request: Request) -> Response:
        request.scope["route"] = route
        return await endpoint(request, request.path_params["id"])

    route = Route(path, answer, include_in_schema=False)
    route.methods = {"GET"}  # Starlette adds HEAD
    return route


async def _reference(request: Request) -> Response:
    return HTMLResponse(page(request.app.openapi()))


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    site: Site = app.state.site
    tidying = asyncio.create_task(site.tidy())
    try:
        yield
    finally:
        tidying.cancel()
        await site.watcher.close()


class Measured:
    """Counts requests, by the template of their path."""

    def __init__(self, app: App, measures: Measures):
        self._app, self._measures = app, measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                self._measures.answered(scope["method"], route, message["status"], time.monotonic() - began)
            await send(message)

        await self._app(scope, receive, sent)


def _refused(request: Request, error: Exception) -> Response:
    refused = error if isinstance(error, Refused) else refusal_of(error, is_full(error))
    assert refused is not None
    if isinstance(error, OSError):
        print(f"cogvx: {error}", file=sys.stderr)
    return _answer(request, refused)


def _http_error(request: Request, error: Exception) -> Response:
    """What Starlette refuses by itself, such as a path that is not there."""
    assert isinstance(error, HTTPException)
    words = {404: f"there is no {request.url.path[:100]}", 405: f"{request.method} is not for this path"}
    said = words.get(error.status_code, str(error.detail))
    answer = _answer(request, Refused(CODES.get(error.status_code, "invalid_request"), said))
    answer.headers.update(error.headers or {})
    if error.status_code == 405:
        answer.headers["Allow"] = ", ".join(sorted(_methods(request.url.path)))
    return answer


def _methods(path: str) -> set[str]:
    """Of all routes of a path; Starlette names those of the first alone."""
    routes = [route for part in PARTS for route in part.router.routes if isinstance(route, APIRoute)]
    found = [route for route in routes if route.path == path] or [r for r in routes if r.path_regex.match(path)]
    return {method for route in found for method in route.methods or ()}


def _bug(request: Request, error: Exception) -> Response:
    traceback.print_exception(error)
    return _answer(request, Refused("server_error", "the server made a mistake; its log says which"))


def _answer(request: Request, refused: Refused) -> Response:
    status, body, headers = refused.answer(request.url.path)
    return JSONResponse(body, status, headers)


class Server(uvicorn.Server):
    """uvicorn's, which ends although clients follow videos or have the page open: their streams have no end."""

    async def shutdown(self, sockets: Any = None) -> None:
        asyncio.get_running_loop().call_later(PATIENCE, self._hang_up)
        await super().shutdown(sockets)

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            transport: Any = getattr(connection, "transport", None)
            transport.close()


def run(app: FastAPI, host: str, port: int, **how: Any) -> uvicorn.Server:
    """A server of the app, to be started by its `run` or `serve`."""
    http: Any = ImpatientProtocol
    config = uvicorn.Config(
        app, host=host, port=port, http=http, access_log=False, log_level="warning", timeout_graceful_shutdown=5, **how
    )
    return Server(config)
