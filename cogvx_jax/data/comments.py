"""The text that a video carries: where each kind of file holds it, and how it is found again.

MP4 and WebM hold it in the tag `comment`, which outlives a remux, and a folder of PNGs in the first picture. FFmpeg
writes none into GIF and WebP: NAME.gif.json beside the file holds it there, with the hash of that file.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import av
import PIL.Image
import PIL.PngImagePlugin

from cogvx_jax.data.files import existing
from cogvx_jax.data.pictures import BROKEN
from cogvx_jax.data.tars import read_chunks
from cogvx_jax.json_files import read_json

TAG = "comment"
MAX_BYTES = 2**20  # of a text
MAX_NAME = 255  # bytes, of file systems
SIDECAR = ".json"  # after the whole name, such as clip.gif.json
PICTURES = (".png", ".webp")  # kinds of files that are not read by FFmpeg, which knows no moving WebP
BESIDE = (".gif", ".webp")  # kinds of files that hold no text themselves
FIRST = "00000.png"  # of a folder
OTHERS = ("workflow", "prompt")  # in which ComfyUI keeps its graphs


class Tags(dict[str, str]):
    """The texts of a file by their names in lower case."""

    @property
    def comment(self) -> str | None:
        return self.get(TAG)


def read_tags(path: str | os.PathLike) -> Tags:
    """The texts that a video, a picture or a folder of PNGs carries.

    Raises: FileNotFoundError; ValueError, one sentence with the file's name, for what is no video and no picture, for a
      text of more than `MAX_BYTES`, and for a sidecar that is damaged or of another file.
    """
    place = Path(path) / FIRST if Path(path).is_dir() else Path(path)
    file = existing(place)
    assert isinstance(file, Path)
    if sidecar(file).is_file() and (text := _of_sidecar(file)) is not None:
        found = {TAG: text}
    elif file.suffix.lower() in PICTURES:
        found = _of_picture(file)
    else:
        found = _of_container(file)
    tags = Tags({name.lower(): text for name, text in found.items()})
    for name, text in tags.items():
        if len(text) > MAX_BYTES:
            raise ValueError(f"{str(path)!r} has a {name} of {len(text):,} characters; {MAX_BYTES:,} are read at most")
    return tags


def others_of(tags: Tags) -> dict[str, str]:
    """The texts of other programs that stand beside ours."""
    return {name: tags[name] for name in OTHERS if name in tags}


def sidecar(path: Path) -> Path:
    """Where the text of a file is that cannot hold it."""
    return path.with_name(f"{path.name}{SIDECAR}")


def check_sidecar(path: Path) -> None:
    """Raises: ValueError where the sidecar of a video would replace a file that is none; OSError."""
    beside = sidecar(path)
    if len(os.fsencode(beside.name)) > MAX_NAME:
        raise OSError(f"the name {path.name[:40]}... is too long for {SIDECAR} after it; give a shorter one")
    if beside.exists() and not _is_sidecar(beside):
        raise ValueError(f"{str(beside)!r} would be replaced by the record of {path.name}; move it, or write no record")


def sidecar_text(file: Path, comment: str) -> str:
    """What the sidecar of a whole file holds."""
    return json.dumps({"sha256": file_sha256(file), TAG: comment}, ensure_ascii=False) + "\n"


def remove_sidecar(path: Path) -> None:
    """Removes what tells of an earlier file of that name."""
    beside = sidecar(path)
    if _is_sidecar(beside):
        with contextlib.suppress(OSError):
            beside.unlink()


def file_sha256(file: Path) -> str:
    """Of all of its bytes."""
    found = hashlib.sha256()
    for chunk in read_chunks(file):
        found.update(chunk)
    return found.hexdigest()


def png_info(comment: str) -> PIL.PngImagePlugin.PngInfo:
    """A picture's text, for `save(pnginfo=...)`."""
    info = PIL.PngImagePlugin.PngInfo()
    info.add_itxt(TAG, comment)
    return info


def _is_sidecar(file: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return read_json(file, limit=2 * MAX_BYTES).keys() == {"sha256", TAG}
    return False


def _of_sidecar(file: Path) -> str | None:
    """None where the file beside it is something else."""
    beside = sidecar(file)
    if not _is_sidecar(beside):
        return None
    held: Any = read_json(beside, limit=2 * MAX_BYTES)
    if held["sha256"] != file_sha256(file):
        raise ValueError(f"{str(beside)!r} tells of other bytes than {file.name} has; it belongs to an earlier file")
    if not isinstance(held[TAG], str):
        raise ValueError(f"{str(beside)!r} is damaged: its {TAG} is no text")
    return held[TAG]


def _of_picture(file: Path) -> dict[str, str]:
    try:
        with PIL.Image.open(file, formats=["PNG", "WEBP"]) as image:
            return {str(name): str(text) for name, text in image.info.items() if isinstance(text, str)}
    except (PIL.Image.DecompressionBombError, *BROKEN) as error:
        raise ValueError(f"{str(file)!r} cannot be read as a picture: {str(error)[:100]}") from None


def _of_container(file: Path) -> dict[str, str]:
    # "file:" keeps ffmpeg from reading a name such as "a:b.mp4" as a protocol.
    options = {"protocol_whitelist": "file"}
    try:
        with av.open(f"file:{file.absolute()}", container_options=options, metadata_errors="replace") as container:
            return dict(container.metadata)
    except (OSError, av.FFmpegError, ValueError, UnicodeError) as error:
        raise ValueError(f"{str(file)!r} is no video that can be read: {str(error)[:100]}") from None
