"""Pictures and clips that come with a request: told by their bytes, bounded before they are decoded."""

import base64
import binascii
import contextlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import PIL.Image

from cogvx_jax.data.decode import stream_video
from cogvx_jax.data.pictures import BROKEN
from cogvx_jax.json_files import quoted
from cogvx_jax.serving.bodies import Upload
from cogvx_jax.serving.fetching import fetch
from cogvx_jax.serving.refusals import Refused

MAX_PICTURE, MAX_CLIP = 20 * 2**20, 100 * 2**20  # bytes of a file
MAX_PIXELS = 2**25  # of a picture: 100 MB of RGB
MAX_FRAME = 2**21 + 2**16  # pixels of a clip's frame: 1920x1088
PICTURE, CLIP, ARRAY, POINTS = "picture", "clip", "array", "list of points"
CLIPS = (".gif", ".mp4", ".webm")
TAKES = {  # option -> kinds of files
    "image": (PICTURE,),
    "last_image": (PICTURE,),
    "video": (CLIP,),
    "mask": (PICTURE, CLIP),
    "control": (CLIP,),
    "edit": (CLIP,),
    "extend": (CLIP,),
    "keyframes": (PICTURE,),
    "region": (PICTURE, CLIP),
    "noises": (ARRAY,),
    "flow": (ARRAY,),
    "trajectory": (POINTS,),
}
WORDS = {  # kind -> what it is called, and what is to be given
    PICTURE: ("picture", "a PNG, JPEG or WebP picture"),
    CLIP: ("video", "an mp4, webm or gif video"),
    ARRAY: ("array", "a .npy file"),
    POINTS: ("list of points", "points x,y"),
}
URL_KEYS = ("image_url", "video_url", "url")


def kind_of(data: bytes) -> tuple[str, str] | None:
    """Which kind of file it is, and its suffix; None for others, SVG among them."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PICTURE, ".png"
    if data.startswith(b"\xff\xd8\xff"):
        return PICTURE, ".jpg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return PICTURE, ".webp"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return CLIP, ".gif"
    if data[4:8] == b"ftyp":
        return CLIP, ".mp4"
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return CLIP, ".webm"
    if data.startswith(b"\x93NUMPY"):
        return ARRAY, ".npy"
    if re.fullmatch(rb"[0-9.,;\s]{1,1048576}", data):
        return POINTS, ".txt"
    return None


def most_bytes(options: tuple[str, ...]) -> int:
    """Of a file that may become one of these options."""
    return max(_most(kind) for option in options for kind in TAKES[option])


def _most(kind: str) -> int:
    return MAX_CLIP if kind in (CLIP, ARRAY) else MAX_PICTURE


def file_of(value: Any, field: str, options: tuple[str, ...], fetches: bool = False) -> tuple[str, str, bytes]:
    """The option that a file becomes, its suffix and its bytes.

    Args:
      value: an `Upload`, a data URL, base64 text, or an object with one of them.
      options: of which it becomes the first that takes its kind.
      fetches: an address of the open internet is fetched, too.
    Raises: Refused, which names `field`.
    """
    data = value.data if isinstance(value, Upload) else _data(_text(value, field), field, most_bytes(options), fetches)
    found = kind_of(data)
    if found is None:
        raise Refused(
            "invalid_value", f"{field} is no {_words(options, 0)} that is known here; give {_words(options)}", field
        )
    option = next((one for one in options if found[0] in TAKES[one]), None)
    if option is None:
        raise Refused(
            "invalid_value",
            f"{field} is {'an' if found[0] == ARRAY else 'a'} {found[0]}; give {_words(options)}",
            field,
        )
    most = _most(found[0])
    if len(data) > most:
        raise Refused("body_too_large", f"{field} has {len(data):,} bytes, of which at most {most:,} are taken", field)
    if found[0] == PICTURE:
        _check_picture(data, field)
    return option, found[1], data


def _words(options: tuple[str, ...], part: int = 1) -> str:
    """What a file of these options may be; a part of `WORDS`."""
    kinds = {kind for option in options for kind in TAKES[option]}
    return " or ".join(words[part] for kind, words in WORDS.items() if kind in kinds)


def _data(text: str, field: str, most: int, fetches: bool) -> bytes:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        if fetches:
            return fetch(text, field, most)
        raise Refused("invalid_value", f"{field} is an address, which is not fetched here; send the file itself", field)
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise Refused("invalid_value", f"{field} must be a data URL in base64, got {head[:40]!r}", field)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(
            "invalid_value", f"{field} must be a file, a data URL or base64, got {text[:40]!r}", field
        ) from None


def _text(value: Any, field: str) -> str:
    """What an object such as {"image_url": ...} holds, also one inside another."""
    for _ in range(2):
        if isinstance(value, Mapping):
            if "file_id" in value:
                raise Refused("invalid_value", f"there are no stored files here; send {field} itself", field)
            if len(value) != 1 or not value.keys() <= set(URL_KEYS):
                raise Refused("invalid_value", f"{field} must have one of {', '.join(URL_KEYS)}", field)
            value = next(iter(value.values()))
    if not isinstance(value, str) or not value:
        raise Refused("invalid_value", f"{field} must be a file, a data URL or base64, got {quoted(value)}", field)
    return value


def _check_picture(data: bytes, field: str) -> None:
    """Refuses by the header what would fill the memory."""
    width = height = 0
    with contextlib.suppress(Exception), PIL.Image.open(io.BytesIO(data)) as image:  # a broken one is refused later
        width, height = image.size
    if width * height > MAX_PIXELS:
        raise Refused("invalid_value", f"{field} has {width}x{height} pixels, more than {MAX_PIXELS:,}", field)


def opened_picture(data: bytes, field: str) -> PIL.Image.Image:
    """Raises: Refused for what cannot be decoded."""
    try:
        picture = PIL.Image.open(io.BytesIO(data))
        picture.load()
    except (PIL.Image.DecompressionBombError, *BROKEN):
        raise Refused("invalid_value", f"{field} is a broken picture", field) from None
    return picture


def check_clip(path: Path, field: str) -> None:
    """Refuses a clip whose frames would fill the memory. Raises: Refused; ValueError where it cannot be read."""
    with stream_video(path) as stream:
        height, width = stream.height, stream.width
    if height * width > MAX_FRAME:
        raise Refused("invalid_value", f"{field} has frames of {width}x{height}, more than 1920x1088 pixels", field)
