"""A video from its request to its bytes, while ComfyUI shows how far it is, and may interrupt."""

import contextlib
import queue
import threading
import uuid
from typing import Any, Protocol

from .server import COMPLETED, DELETED, ENDED, Server, ServerError

LOOK = 0.2  # seconds between two looks whether ComfyUI interrupts


class Shows(Protocol):
    """Where it is shown how far a video is."""

    def tell(self, video: dict[str, Any]) -> None:
        """Shows what an event says."""

    def check(self) -> None:
        """Raises what ComfyUI raises where the user interrupts."""


def make_video(server: Server, fields: dict[str, Any], shows: Shows) -> tuple[bytes, dict[str, Any]]:
    """Has a video made; gives its mp4 and what the server says of it.

    Where anything is raised meanwhile, an interrupt too, the server's job is cancelled.
    Args:
      fields: of `POST /v1/videos`.
    Raises: ServerError, in the server's words where it has some; what `shows.check` raises.
    """
    shows.check()
    id = server.post("/v1/videos", fields, once=uuid.uuid4().hex)["id"]
    try:
        video = _follow(server, id, shows)
    except BaseException:
        with contextlib.suppress(ServerError):
            server.post(f"/v1/videos/{id}/cancel")
        raise
    if video["status"] == DELETED:
        raise ServerError(f"the video {id} was deleted on the server while it was made")
    if video["status"] != COMPLETED:
        raise ServerError((video.get("error") or {}).get("message") or f"the video {id} could not be made")
    return server.content(id), video


def _follow(server: Server, id: str, shows: Shows) -> dict[str, Any]:
    """What the last event says. Events are read in a thread: reading blocks, and an interrupt must not wait."""
    events: queue.Queue[dict[str, Any] | Exception] = queue.Queue()

    def read() -> None:
        try:
            for told in server.events(id):
                events.put(told)
        except Exception as error:
            events.put(error)

    threading.Thread(target=read, name=f"cogvx-{id}", daemon=True).start()
    while True:
        shows.check()
        try:
            told = events.get(timeout=LOOK)
        except queue.Empty:
            continue
        if isinstance(told, Exception):
            raise told
        shows.tell(told)
        if told["status"] in ENDED:
            return told
