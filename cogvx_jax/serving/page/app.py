"""The page as a part of the server's app: mounted below `/ui`, with bounds of what may be uploaded."""

import json
import os
import secrets
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from cogvx_jax.serving.guards import App, Receive, Scope, Send
from cogvx_jax.serving.page.actions import Desk
from cogvx_jax.serving.page.events import FOLLOWED, Events
from cogvx_jax.serving.page.layout import lay_out
from cogvx_jax.serving.page.refused import refused_words
from cogvx_jax.serving.page.style import CSS
from cogvx_jax.serving.page.uploads import KEPT, Uploads
from cogvx_jax.serving.page.words import LANGUAGES, language_of, say
from cogvx_jax.serving.refusals import Refused

PATH = "/ui"
TIDY = 600  # seconds between two times that Gradio looks for old files
WAITING = 300  # events of all pages that wait for their turn


def mount(app: FastAPI, desk: Desk, limit: int) -> None:
    """Adds the page to an app, and makes `/` lead to it.

    Args:
      limit: bytes of a file that is uploaded.
    """
    uploads = Uploads(desk.service.store)
    os.environ["GRADIO_TEMP_DIR"] = str(uploads.folder)  # Gradio has no argument for it
    app.add_api_route("/", _to_page, include_in_schema=False)
    entrance: Any = Entrance
    app.add_middleware(entrance, uploads=uploads, public_url=desk.service.rules.public_url)
    gr.mount_gradio_app(
        app,
        blocks_of(desk, uploads),
        PATH,
        auth=None if desk.keys.open else lambda name, key: is_signed_in(desk, name, key),
        auth_message=None if desk.keys.open else "<br>".join(say("sign in", lang) for lang in LANGUAGES),
        max_file_size=limit,
        footer_links=["settings"],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
    )


def blocks_of(desk: Desk, uploads: Uploads) -> gr.Blocks:
    """The page by itself."""
    secret = desk.service.queue.kept("page", lambda: secrets.token_hex(16))
    title = say("title", model=desk.service.model)
    with gr.Blocks(analytics_enabled=False, title=title, delete_cache=(TIDY, int(KEPT))) as blocks:
        browser = gr.BrowserState({"ids": [], "shown": []}, storage_key="cogvx", secret=secret)
        Events(desk, lay_out(desk), browser, uploads).bind(blocks)
    blocks.queue(max_size=WAITING, default_concurrency_limit=FOLLOWED)
    return blocks


def is_signed_in(desk: Desk, name: str, key: str) -> bool:
    """Whether a key is the one of an owner."""
    try:
        return desk.keys.of(f"Bearer {key}").name == name
    except Refused:
        return False


async def _to_page(request: Request) -> Response:
    prefix = request.app.state.site.service.rules.public_url or request.scope.get("root_path", "")
    return RedirectResponse(f"{prefix.rstrip('/')}{PATH}/")


class Entrance:
    """What requests to the page go through first: uploads are refused where there is no room for them.

    Args:
      public_url: where a proxy has the server. Gradio reads it from the headers of proxies, which not all of them send.
    """

    def __init__(self, app: App, uploads: Uploads, public_url: str | None):
        self._app, self._uploads = app, uploads
        self._public = None if public_url is None else urlsplit(public_url)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not f"{scope['path']}/".startswith(f"{PATH}/"):
            await self._app(scope, receive, send)
        elif not _uploads(scope) or await run_in_threadpool(self._uploads.has_room):
            await self._app(self._seen_from_outside(scope), receive, send)
        else:
            spoken = dict(scope["headers"]).get(b"accept-language", b"").decode("latin-1")
            said = "the server has no room for uploads now; try again later"
            refused = Refused("disk_full", refused_words("disk_full", said, language_of(spoken)))
            status, body, headers = refused.answer(scope["path"])
            answer: Any = Response(json.dumps(body), status, headers, "application/json")
            await answer(scope, receive, send)

    def _seen_from_outside(self, scope: Scope) -> Scope:
        if self._public is None:
            return scope
        told = {b"x-forwarded-host": self._public.netloc.encode(), b"x-forwarded-proto": self._public.scheme.encode()}
        headers = [(name, value) for name, value in scope["headers"] if name not in told]
        prefix = self._public.path.rstrip("/")
        return scope | {"headers": [*headers, *told.items()], "root_path": prefix, "path": f"{prefix}{scope['path']}"}


def _uploads(scope: Scope) -> bool:
    return scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/upload")
