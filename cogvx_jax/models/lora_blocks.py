"""LoRAs that are added to a component's parameters while they are read, block by block."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cogvx_jax.models.lora import Difference, LoRA, merge

Added = tuple[tuple[LoRA, float], ...]  # adapters and their weights


def add_to_block(added: Added, path: str, index: tuple[slice, ...], block: np.ndarray) -> np.ndarray:
    """A block of a parameter with LoRAs added as `models.lora.apply` adds them, layer by layer.

    Args:
      path: of the parameter.
      index: where in it the block lies.
      block: its numbers; is changed.
    """
    for lora, weight in added:
        if path in lora.adapters:
            _add_product(lora.adapters[path], weight * lora.scale, index, block)
        for difference in lora.differences:
            if difference.path == path:
                _add_difference(difference, weight, index, block)
    return block


def _add_product(adapter: Mapping[str, Any], factor: float, index: tuple[slice, ...], block: np.ndarray) -> None:
    *layers, inner, outer = index
    a = adapter["a"][(*layers, inner)]
    b = adapter["b"][(*layers, slice(None), outer)]
    parts = zip(block, a, b, strict=True) if layers else [(block, a, b)]
    for slot, a_of, b_of in parts:
        slot[...] = merge({"kernel": slot}, {"kernel": {"a": a_of, "b": b_of}}, factor)["kernel"]


def _add_difference(difference: Difference, weight: float, index: tuple[slice, ...], block: np.ndarray) -> None:
    values, blocks = np.asarray(difference.values), difference.blocks
    if blocks is None:
        parts = [(block, values[index])]
    else:
        layers, *inner = index
        there = {layer: place for place, layer in enumerate(range(*layers.indices(max(blocks) + 1)))}
        parts = [(block[there[n]], values[k][tuple(inner)]) for k, n in enumerate(blocks) if n in there]
    for slot, theirs in parts:
        with np.errstate(over="ignore", invalid="ignore"):  # as `merge`, which warns of nothing
            slot[...] = (slot.astype(np.float32) + np.float32(weight) * theirs).astype(slot.dtype)
