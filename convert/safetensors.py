"""Safetensors files: what they hold and where, without reading any numbers; and how to write one, tensor by tensor.

Source: https://github.com/huggingface/safetensors#format
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import ml_dtypes
import numpy as np

from cogvx_jax import git_lfs
from cogvx_jax.convert.finite import check_finite
from cogvx_jax.convert.tensors import MAX_SIZE, Stored, Tensors, is_shape, unwarned
from cogvx_jax.json_files import POINTER, parse_json, quoted
from cogvx_jax.storage import Files

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}
INTEGERS = {"I8": np.int8, "U8": np.uint8}  # of quantised models
# What no weight is of, and a file may hold beside weights; whoever wants such a tensor refuses it by its name.
OTHERS = {
    "BOOL": np.bool_,
    "I16": np.int16,
    "U16": np.uint16,
    "I32": np.int32,
    "U32": np.uint32,
    "I64": np.int64,
    "U64": np.uint64,
}
READABLE = DTYPES | INTEGERS | OTHERS
TYPES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
WRITTEN = TYPES | {np.dtype(dtype): name for name, dtype in INTEGERS.items()}
# Parsed JSON takes up to forty times its size, so this is less than the format's 100 MB: room for 150,000 tensors.
MAX_HEADER = 16 * 2**20  # bytes
MAX_NAME = 400  # characters; the longest published name has 75


class Header(dict[str, Stored]):
    """The tensors of a file by name; `metadata` is what the file says beside them."""

    def __init__(self, metadata: Mapping[str, str]):
        super().__init__()
        self.metadata = metadata


def read_header(files: Files, name: str) -> Header:
    """What a safetensors file holds.

    The library would do, but tells neither how much of a file is missing nor which tensor is odd.

    Raises: ValueError, without the file's name, if the file is missing, truncated, corrupt, a pointer of git-lfs or
      of an unsupported type, or if its tensors overlap or leave holes.
    """
    try:
        size = files.size(name)
    except FileNotFoundError:
        raise ValueError("missing") from None
    start = files.read((name, 0, min(size, len(git_lfs.START)))).tobytes() if size else b""
    if start.startswith(git_lfs.START):
        raise ValueError(POINTER)
    length = int.from_bytes(start[:8], "little")
    if size < 8 or length > max(size, MAX_HEADER):
        raise ValueError(f"corrupt header; {size} bytes that do not begin as safetensors do")
    if 8 + length > size:
        raise ValueError(f"truncated: {size} bytes, of which the header alone would take {8 + length}")
    if length > MAX_HEADER:
        raise ValueError(f"its header takes {length} bytes, where at most {MAX_HEADER} are read")
    try:
        found = parse_json(files.read((name, 8, length)).tobytes())
        header = Header(_metadata(found.pop("__metadata__", {})))
        entries = {key: _Entry.of(key, entry) for key, entry in found.items()}
    except ValueError as error:
        raise ValueError(f"corrupt header: {error}") from None
    header |= {key: entry.stored(name, 8 + length) for key, entry in entries.items()}
    end = 8 + length + sum(stored.bytes for stored in header.values())
    _check_gaps(header, 8 + length)
    if size < end:
        raise ValueError(f"truncated: {size} of {end} bytes")
    if size > end:
        raise ValueError(f"corrupt: {size} bytes where the header says {end}")
    return header


def read_safetensors(files: Files, name: str) -> Tensors:
    """The tensors of a file. Raises: as `read_header`."""
    header = read_header(files, name)
    return Tensors(files, header, metadata=header.metadata)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor to write, that may still have to be made."""

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @classmethod
    def of(cls, key: str, array: np.ndarray) -> "Tensor":
        return cls(key, array.shape, array.dtype, lambda: array)

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self) -> np.ndarray:
        """Its numbers, to be written. Raises: ValueError where some are not finite."""
        with unwarned():  # what a narrower type cannot hold is found below
            array = np.ascontiguousarray(self.make())
        return check_finite(self.key, array)


def write_file(path: Path, tensors: Sequence[Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a file tensor by tensor; equal ones make files that are equal to the byte.

    The library would want all tensors at once, and writes metadata in any order.

    Raises: ValueError for numbers that are not finite.
    """
    tensors = sorted(tensors, key=lambda t: (-t.dtype.itemsize, t.key))  # each is aligned to its type
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for t in tensors:
        header[t.key] = {"dtype": WRITTEN[t.dtype], "shape": t.shape, "data_offsets": [start, start + t.bytes]}
        start += t.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for t in tensors:
            file.write(t.array().reshape(-1).view(np.uint8).data)


def _metadata(found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"its metadata are not texts but {quoted(found)}")
    return found


@dataclasses.dataclass(frozen=True)
class _Entry:
    """What a header says of a tensor."""

    key: str
    shape: tuple[int, ...]
    offsets: tuple[int, int]
    kind: str

    @classmethod
    def of(cls, key: str, entry: Any) -> "_Entry":
        if len(key) > MAX_NAME or not key.isprintable():
            raise ValueError(f"{quoted(key)} is no name of a tensor")
        if not isinstance(entry, dict):
            raise ValueError(f"{key} is {quoted(entry)}, not an object")
        shape, offsets, kind = (entry.get(name) for name in ("shape", "data_offsets", "dtype"))
        if not _sizes(shape) or not is_shape(shape):
            raise ValueError(f"{key} has the shape {quoted(shape)}")
        if not _sizes(offsets) or len(offsets) != 2:
            raise ValueError(f"{key} has the data_offsets {quoted(offsets)}")
        if not isinstance(kind, str):
            raise ValueError(f"{key} has the type {quoted(kind)}")
        return cls(key, tuple(shape), (offsets[0], offsets[1]), kind)

    def stored(self, file: str, base: int) -> Stored:
        if self.kind not in READABLE:
            raise ValueError(f"{self.key} is of type {self.kind[:20]}, not one of {', '.join(READABLE)}")
        start, stop = self.offsets
        stored = Stored(self.shape, np.dtype(READABLE[self.kind]), file, base + start)
        if stop - start != stored.bytes:
            raise ValueError(f"corrupt header: {self.key} {self.kind} {self.shape} does not take {stop - start} bytes")
        return stored


def _sizes(found: Any) -> TypeGuard[list[int]]:
    """Whether it is a list of sizes that may occur."""
    return isinstance(found, list) and all(type(n) is int and 0 <= n <= MAX_SIZE for n in found)


def _check_gaps(header: Header, base: int) -> None:
    """Raises ValueError unless each tensor begins where the one before it ends."""
    end = base
    for key, stored in sorted(header.items(), key=lambda item: (item[1].start, item[1].bytes)):
        if stored.start != end:
            how = "overlaps the tensor before it" if stored.start < end else "leaves a hole before it"
            raise ValueError(f"corrupt header: {key} begins at byte {stored.start - base}, not {end - base}: it {how}")
        end += stored.bytes
