"""What a video is made of beside its prompt, by the hash of its bytes: files that were read, or pixels in memory."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cogvx_jax.data.comments import file_sha256, read_tags
from cogvx_jax.pipelines.options import INPUTS, Options, control_sources
from cogvx_jax.pipelines.record import parse_record

HASHED = (*INPUTS, "latents")  # options of what is read
CLIPS = ("video", "extend", "control", "mask")  # those of them that may carry a record


class InputSource(NamedTuple):
    """A file that was read, or what was in memory."""

    option: str
    path: str | None  # as it was given; None: in memory
    sha256: str
    record: str | None = None  # id of the record that the file carries


def input_sources(asked: Options) -> tuple[InputSource, ...]:
    """In the order of the options. Files are read once more, whole; they were found to be readable before.

    Raises: OSError for a file that is gone meanwhile.
    """
    return tuple(_source(name, value) for name in HASHED for value in _values(asked, name))


def _values(asked: Options, name: str) -> Iterator[Any]:
    value = getattr(asked, name)
    if value is None:
        return
    if name == "control":
        yield from control_sources(asked)
    elif isinstance(value, Mapping):
        yield from value.values()
    else:
        yield from value if isinstance(value, list | tuple) else [value]


def _source(name: str, value: Any) -> InputSource:
    if not isinstance(value, str | os.PathLike):
        pixels = np.ascontiguousarray(value)
        found = hashlib.sha256(f"{pixels.dtype} {pixels.shape}".encode())
        found.update(pixels.reshape(-1).view(np.uint8).data)
        return InputSource(name, None, found.hexdigest())
    path = os.fspath(value)
    return InputSource(name, path, file_sha256(Path(path)), _record_id(path) if name in CLIPS else None)


def _record_id(path: str) -> str | None:
    """Of the record that a video carries; None where it carries none that can be read."""
    try:
        comment = read_tags(path).comment
        return None if comment is None else parse_record(comment).id
    except (ValueError, OSError):
        return None
