"""How far a video is, as ComfyUI shows it: a bar, a preview, and words on the node."""

import base64
import io
import logging
from typing import Any

import PIL.Image


class Progress:
    """The progress of one node. Outside ComfyUI it shows nothing."""

    def __init__(self, node: Any):
        self._node, self._bar, self._said = node, None, ""
        try:
            from comfy.utils import ProgressBar

            self._bar = ProgressBar(1)
        except ImportError:
            pass

    def tell(self, video: dict[str, Any]) -> None:
        """Shows what an event of the server says."""
        steps = video.get("steps") or 0
        if self._bar is not None and steps:
            self._bar.update_absolute(video.get("step") or 0, steps, picture(video.get("preview")))
        said = words(video)
        if said != self._said:
            self._said = said
            logging.info("cogvx: %s: %s", video.get("id"), said)
            self._send(said)

    def check(self) -> None:
        """Raises what ComfyUI raises where the user interrupts."""
        try:
            from comfy.model_management import throw_exception_if_processing_interrupted
        except ImportError:
            return
        throw_exception_if_processing_interrupted()

    def _send(self, said: str) -> None:
        try:
            from server import PromptServer  # ComfyUI's own

            PromptServer.instance.send_progress_text(said, self._node)
        except Exception:  # words on a node are a nicety that not every version has
            return


def words(video: dict[str, Any]) -> str:
    """Where a video stands."""
    if video["status"] == "queued":
        return f"waiting, {video.get('queue_position', 0)} before it"
    if video["status"] == "in_progress":
        return str(video.get("stage") or "begun")
    notes = video.get("notes") or []
    return "; ".join([str(video["status"]), *map(str, notes)])


def picture(url: str | None) -> tuple[str, PIL.Image.Image, None] | None:
    """A preview as ComfyUI takes it: of one that moves, the frame in the middle."""
    if not url:
        return None
    try:
        image = PIL.Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])), formats=("WEBP", "JPEG", "PNG"))
        image.seek(getattr(image, "n_frames", 1) // 2)
        return "JPEG", image.convert("RGB"), None
    except (OSError, ValueError, EOFError):  # the next one, perhaps
        return None
