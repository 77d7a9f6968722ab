"""Blocks of ggml's types, in which a few weights share a scale: bytes to float32.

Source: https://github.com/ggml-org/ggml, `src/ggml-quants.c`.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from cogvx_jax.convert.tensors import Computed, Entry


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """A type.

    name: ggml's.
    weights: how many a block holds.
    bytes: that it takes.
    decode: uint8 (..., blocks, bytes) to float32 (..., blocks, weights).
    """

    name: str
    weights: int
    bytes: int
    decode: Callable[[np.ndarray], np.ndarray]


def _scale(blocks: np.ndarray) -> np.ndarray:
    """The float16 that a block begins with."""
    return np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    """The lower halves of 16 bytes are the first 16 weights, the upper ones the others."""
    packed = blocks[..., 2:]
    return (np.concatenate([packed & 15, packed >> 4], axis=-1).astype(np.int8) - 8) * _scale(blocks)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(blocks[..., 2:]).view(np.int8) * _scale(blocks)


BLOCKS = {
    "Q4_0": Block(name="Q4_0", weights=32, bytes=18, decode=_q4_0),
    "Q8_0": Block(name="Q8_0", weights=32, bytes=34, decode=_q8_0),
}


def decoded(packed: Entry, block: Block) -> Computed:
    """Rows of blocks, uint8 (..., bytes), as float32. Raises: ValueError where a row is not of whole blocks."""
    *outer, count = packed.shape or (0,)
    if not packed.shape or packed.dtype != np.uint8 or count % block.bytes:
        raise ValueError(f"it is {packed.dtype} {packed.shape}, not bytes in rows of whole blocks of {block.bytes}")
    shape = (*outer, count // block.bytes * block.weights)
    return Computed(shape, np.dtype(np.float32), (packed,), functools.partial(_decode, block), f"{block.name} blocks")


def _decode(block: Block, packed: np.ndarray) -> np.ndarray:
    *outer, row = packed.shape
    count = row // block.bytes
    return block.decode(packed.reshape(*outer, count, block.bytes)).reshape(*outer, count * block.weights)
