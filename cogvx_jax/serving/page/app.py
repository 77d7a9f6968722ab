"""The page as a part of the server's app: mounted below `/ui`, with bounds of what may be uploaded."""

import json
import os
import secrets
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from cogvx_jax.serving.guards import App, Receive, Scope, Send
from cogvx_jax.serving.page.actions import Desk
from cogvx_jax.serving.page.events import FOLLOWED, Events
from cogvx_jax.serving.page.layout import lay_out
from cogvx_jax.serving.page.style import CSS
from cogvx_jax.serving.page.words import LANGUAGES, say
from cogvx_jax.serving.refusals import Refused
from cogvx_jax.serving.service import ROOM
from cogvx_jax.serving.store import Store

PATH = "/ui"
UPLOADS = "uploads"  # in the store
MOST_UPLOADED = 2 * 2**30  # bytes of all files that are kept of uploads
TIDY, KEPT = 600, 3600  # seconds between two times, and after which a file that was uploaded goes
WAITING = 300  # events of all pages that wait for their turn


def mount(app: FastAPI, desk: Desk, limit: int) -> None:
    """Adds the page to an app, and makes `/` lead to it.

    Args:
      limit: bytes of a file that is uploaded.
    """
    uploads = desk.service.store.folder / UPLOADS
    uploads.mkdir(exist_ok=True)
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)  # Gradio has no argument for it
    app.add_api_route("/", _to_page, include_in_schema=False)
    room: Any = Room
    app.add_middleware(room, store=desk.service.store, uploads=uploads)
    prefix = (desk.service.rules.public_url or "").rstrip("/")
    gr.mount_gradio_app(
        app,
        blocks_of(desk, uploads),
        PATH,
        auth=None if desk.keys.open else lambda name, key: is_signed_in(desk, name, key),
        auth_message=None if desk.keys.open else "<br>".join(say("sign in", lang) for lang in LANGUAGES),
        root_path=f"{prefix}{PATH}" if prefix else None,
        max_file_size=limit,
        footer_links=["settings"],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
    )


def blocks_of(desk: Desk, uploads: Path) -> gr.Blocks:
    """The page by itself."""
    secret = desk.service.queue.kept("page", lambda: secrets.token_hex(16))
    title = say("title", model=desk.service.model)
    with gr.Blocks(analytics_enabled=False, title=title, delete_cache=(TIDY, KEPT)) as blocks:
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
    return RedirectResponse(f"{request.scope.get('root_path', '')}{PATH}/")


class Room:
    """Refuses uploads of the page where there is no room for them; Gradio bounds each, and their age."""

    def __init__(self, app: App, store: Store, uploads: Path):
        self._app, self._store, self._uploads = app, store, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        uploading = scope["type"] == "http" and scope["method"] == "POST" and scope["path"].startswith(f"{PATH}/")
        if not uploading or not scope["path"].rstrip("/").endswith("/upload") or self._has_room():
            await self._app(scope, receive, send)
            return
        refused = Refused("disk_full", "the server has no room for uploads now; try again later")
        status, body, headers = refused.answer(scope["path"])
        answer: Any = Response(json.dumps(body), status, headers, "application/json")
        await answer(scope, receive, send)

    def _has_room(self) -> bool:
        kept = sum(path.stat().st_size for path in self._uploads.rglob("*") if path.is_file())
        return kept < MOST_UPLOADED and self._store.free() >= ROOM
