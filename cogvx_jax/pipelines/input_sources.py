"""What a video is made of beside its prompt, by the hash of its bytes: files that were read, or what was in memory."""

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cogvx_jax.data.comments import file_sha256, read_tags
from cogvx_jax.pipelines.option_files import FINGERPRINTED, SOURCES, sources_of
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.record import parse_record

HASHED = tuple(name for name in SOURCES if name not in FINGERPRINTED)  # options of what is read
CLIPS = ("video", "edit", "extend", "control", "mask", "region")  # those of them that may carry a record


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
    found = [_source(name, value) for name in HASHED for value in sources_of(asked, name)]
    return tuple(found if asked.latents is None else [*found, _source("latents", asked.latents)])


def _source(name: str, value: Any) -> InputSource:
    if not isinstance(value, str | os.PathLike):
        numbers = np.ascontiguousarray(value)
        found = hashlib.sha256(f"{numbers.dtype} {numbers.shape}".encode())
        found.update(numbers.reshape(-1).view(np.uint8).data)
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
