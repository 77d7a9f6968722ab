"""Arrays of numbers in .npy files, which are never unpickled and never read whole before they are known to fit."""

import math
import os
import tokenize
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cogvx_jax.data.files import existing

BROKEN = (ValueError, SyntaxError, TypeError, EOFError, OverflowError, tokenize.TokenError)  # what numpy raises
FLOATS = ("float16", "float32", "float64")


class Stored(NamedTuple):
    """Numbers of a file, unread, or of an array."""

    array: np.ndarray
    name: str  # for messages

    def float32(self, index: Any) -> np.ndarray:
        """A part of it. Raises: ValueError for numbers that are not finite."""
        with np.errstate(over="ignore"):  # what is too large for float32 is not finite there
            part = np.array(self.array[index], np.float32)  # a copy, which the file cannot change
        if bad := int(np.sum(~np.isfinite(part))):
            raise ValueError(f"{self.name} has {bad} numbers that are not finite; give others")
        return part


def open_array(source: Any) -> Stored:
    """The numbers of a .npy file, of which none is read yet; or those of an array.

    Raises: FileNotFoundError; ValueError, one sentence, for what is no .npy file of floats, or is cut short.
    """
    if not isinstance(source, str | os.PathLike):
        array, name = np.asarray(source), "the array"
    else:
        array, name = _mapped(Path(str(existing(source)))), str(source)
    if array.dtype.name not in FLOATS or not array.size:
        raise ValueError(f"{name} must hold numbers of {', '.join(FLOATS)}, got {array.dtype.name} {array.shape}")
    return Stored(array, name)


def _mapped(file: Path) -> np.ndarray:
    with file.open("rb") as opened:
        try:
            version = np.lib.format.read_magic(opened)
            header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = header[version](opened)
        except (*BROKEN, KeyError) as error:
            raise ValueError(f"{str(file)!r} is no .npy file: {' '.join(str(error).split())[:120]}") from None
        bytes_there = os.fstat(opened.fileno()).st_size - opened.tell()
    if dtype.hasobject:
        raise ValueError(f"{str(file)!r} holds Python objects, which are never read; save an array of numbers")
    if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize > bytes_there:
        raise ValueError(f"{str(file)!r} is cut short: it has {bytes_there} bytes for {dtype} {shape}")
    if math.prod(shape) == 0:
        raise ValueError(f"{str(file)!r} holds no numbers: its shape is {str(shape)[:60]}")
    return np.lib.format.open_memmap(file, "r")
