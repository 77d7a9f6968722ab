"""The body of `POST /v1/videos` for what a workflow asks for."""

import base64
import mimetypes
from pathlib import Path
from typing import Any

from cogvx_jax.pipelines.options import DIFFUSERS_NAMES
from cogvx_jax.workflows.requests import Imported

FILES = ("image", "last_image", "video")
MAX_FILE = 100 * 2**20  # bytes, which a server takes at most


def body_of(found: Imported) -> dict[str, Any]:
    """Fields of the server's API; files are data URLs, and LoRAs the names of their files.

    Raises: ValueError for a file that is not there.
    """
    theirs = {ours: name for name, ours in DIFFUSERS_NAMES.items()}
    body: dict[str, Any] = {"prompt": found.prompt}
    for name, value in found.options.items():
        if name == "size":
            height, width = value
            body["size"] = f"{width}x{height}"
        else:
            body[theirs.get(name, name)] = _data_url(name, value) if name in FILES else value
    if found.loras:
        body["loras"] = [{"name": Path(path).stem, "weight": weight} for path, weight in found.loras]
    return body


def _data_url(name: str, path: str) -> str:
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"the {name} {path!r} is not there; --comfyui says in which folder ComfyUI has it")
    if file.stat().st_size > MAX_FILE:
        raise ValueError(f"the {name} {path!r} has more than {MAX_FILE:,} bytes, which no server takes")
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
