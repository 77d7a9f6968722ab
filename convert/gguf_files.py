"""GGUF files: what they hold and where, without reading any numbers.

The package `gguf` would do for files that are whole, but counts in a damaged one keep it busy without end, and it
needs the file on this machine. It gives the numbers of types that `convert.blocks` does not have.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import dataclasses
import functools
import struct
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from cogvx_jax.convert.blocks import BLOCKS, Block, decoded
from cogvx_jax.convert.safetensors import MAX_HEADER, MAX_NAME
from cogvx_jax.convert.tensors import Entry, Stored, Tensors, Unreadable, is_shape
from cogvx_jax.json_files import quoted
from cogvx_jax.storage import Files

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_AXES, MAX_TEXT = 4, 1000
PLAIN = {  # number of a type -> of tensors that are stored as they are
    0: np.dtype("<f4"),
    1: np.dtype("<f2"),
    24: np.dtype(np.int8),
    28: np.dtype("<f8"),
    30: np.dtype(ml_dtypes.bfloat16),
}
OWN = {2: "Q4_0", 8: "Q8_0"}  # number of a type -> of `BLOCKS`
VALUES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
ALIGNMENT = "general.alignment"


def read_gguf(files: Files, name: str) -> Tensors:
    """The tensors of a file; `metadata` are its settings, as text, but for long ones and lists.

    Raises: ValueError, without the file's name, for a file that is truncated or corrupt.
    """
    size = files.size(name)
    header = _Header(files.read((name, 0, min(size, MAX_HEADER))).tobytes() if size else b"", size)
    if header.take(4) != MAGIC:
        raise ValueError("truncated, or no GGUF file")
    version = header.number("I")
    if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
        raise ValueError("its numbers are big-endian, which are not read; `gguf-convert-endian FILE little` turns them")
    if version not in VERSIONS:
        raise ValueError(f"its version of GGUF is {version}, where {' and '.join(map(str, VERSIONS))} are read")
    tensors, settings = header.number("Q"), header.number("Q")
    header.check(tensors + settings)
    said = dict(_setting(header) for _ in range(settings))
    infos = [_Info.read(header) for _ in range(tensors)]
    base = _aligned(header.at, said.get(ALIGNMENT, 32))
    found: dict[str, Entry] = {}
    for info in infos:
        if info.name in found:
            raise ValueError(f"corrupt: it has {info.name} twice")
        found[info.name] = info.entry(name, base, size)
    return Tensors(files, found, metadata={key: str(value) for key, value in said.items() if value is not None})


class _Header:
    """The beginning of a file, taken bit by bit."""

    def __init__(self, data: bytes, size: int):
        self.data, self.size, self.at = data, size, 0

    def check(self, count: int) -> None:
        """Raises ValueError unless so many bytes are left."""
        if count <= len(self.data) - self.at:
            return
        if self.size > len(self.data):
            raise ValueError(f"its header takes more than the {MAX_HEADER} bytes that are read")
        raise ValueError(f"truncated or corrupt: of {count} bytes at {self.at}, {len(self.data) - self.at} are there")

    def take(self, count: int) -> bytes:
        self.check(count)
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode(errors="replace")


def _setting(header: _Header) -> tuple[str, Any]:
    """Name and value; None stands for a list and for a long text, which are stepped over."""
    key, kind = header.text(), header.number("I")
    if kind == TEXT:
        text = header.text()
        return key, text if len(text) <= MAX_TEXT else None
    if kind != ARRAY:
        return key, header.number(_value(kind))
    kind, count = header.number("I"), header.number("Q")
    if kind != TEXT:
        header.take(struct.calcsize(f"<{_value(kind)}") * count)
    else:
        header.check(8 * count)
        for _ in range(count):
            header.take(header.number("Q"))
    return key, None


def _value(kind: int) -> str:
    if kind not in VALUES:
        raise ValueError(f"corrupt: a setting of the type {kind}")
    return VALUES[kind]


def _aligned(at: int, to: Any) -> int:
    if type(to) is not int or not 0 < to <= 2**20 or to & (to - 1):
        raise ValueError(f"corrupt: its {ALIGNMENT} is {quoted(to)}")
    return -(-at // to) * to


@dataclasses.dataclass(frozen=True)
class _Info:
    """What a header says of a tensor."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    @classmethod
    def read(cls, header: _Header) -> "_Info":
        name, axes = header.text(), header.number("I")
        if not name.isprintable() or not 0 < len(name) <= MAX_NAME:
            raise ValueError(f"corrupt: {quoted(name)} is no name of a tensor")
        if axes > MAX_AXES:
            raise ValueError(f"corrupt: {name} has {axes} axes")
        shape = tuple(header.number("Q") for _ in range(axes))[::-1]  # the fastest comes first
        if not is_shape(shape):
            raise ValueError(f"corrupt: {name} has the shape {quoted(list(shape))}")
        return cls(name, shape, header.number("I"), header.number("Q"))

    def entry(self, file: str, base: int, size: int) -> Entry:
        """Raises: ValueError where it does not lie inside the file."""
        if (plain := PLAIN.get(self.kind)) is not None:
            return self._stored(self.shape, plain, file, base, size)
        try:
            block = BLOCKS[OWN[self.kind]] if self.kind in OWN else _other(self.kind)
        except ValueError as error:
            return Unreadable(str(error), self.shape)
        if not self.shape or self.shape[-1] % block.weights:
            raise ValueError(f"corrupt: {self.name} is {self.shape}, not in rows of whole blocks of {block.weights}")
        row = self.shape[-1] // block.weights * block.bytes
        return decoded(self._stored((*self.shape[:-1], row), np.dtype(np.uint8), file, base, size), block)

    def _stored(self, shape: tuple[int, ...], dtype: np.dtype, file: str, base: int, size: int) -> Stored:
        stored = Stored(shape, dtype, file, base + self.offset)
        if stored.start + stored.bytes > size:
            raise ValueError(
                f"truncated or corrupt: {self.name} {shape} {dtype} at byte {stored.start} lies beyond its {size} bytes"
            )
        return stored


@functools.cache
def _other(kind: int) -> Block:
    """A type that the package knows. Raises: ValueError where it does not, or is missing."""
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
    except ImportError:
        raise ValueError(
            f"it is of ggml's type {kind}, which the package gguf may read: pip install 'cogvx_jax[gguf]'"
        ) from None
    try:
        known = GGMLQuantizationType(kind)
        weights, size = GGML_QUANT_SIZES[known]
        decode: Callable[[np.ndarray, Any], np.ndarray] = quants.dequantize
        decode(np.zeros((1, size), np.uint8), known)
    except (ValueError, KeyError, NotImplementedError):
        raise ValueError(f"it is of ggml's type {kind}, which is not read") from None

    def blocks(packed: np.ndarray) -> np.ndarray:  # the package wants rows
        rows = np.ascontiguousarray(packed).reshape(-1, size)
        return decode(rows, known).reshape(*packed.shape[:-1], weights).astype(np.float32)

    return Block(name=known.name, weights=weights, bytes=size, decode=blocks)
