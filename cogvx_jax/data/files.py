"""Files that are about to be read: what is no file, or only stands for one, is refused in one sentence."""

import os
from pathlib import Path

from cogvx_jax.data.tars import File, Member, read_chunks
from cogvx_jax.git_lfs import START, refuse_pointer
from cogvx_jax.storage import NOTHING, kind_of


def existing(source: str | os.PathLike | Member) -> File:
    """The path, or member of a tar, that can be read.

    Raises: FileNotFoundError; PermissionError; ValueError for a folder or FIFO and for a pointer of git-lfs.
    """
    file = source if isinstance(source, Member) else Path(source)
    if isinstance(file, Path):
        if (kind := kind_of(file)) == NOTHING:
            raise FileNotFoundError(f"there is no file {str(source)!r}; check the path")
        if kind != "a file":
            raise ValueError(f"{str(source)!r} is {kind}, not a file; give the path of one")
    refuse_pointer(next(read_chunks(file, len(START)), b""), source)
    return file
