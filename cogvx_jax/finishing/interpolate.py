"""Frames between frames: middles of two pictures, and middles of those, in the order in which they are shown."""

import functools
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from cogvx_jax.models.rife import RIFE, Middle

LARGE = 2048  # pixels of a side from which on the flow is found at half the size, as RIFE's authors advise for 4K

Picture = TypeVar("Picture")


def between(
    first: Picture, second: Picture, parts: Sequence[Fraction], middle: Callable[[Picture, Picture], Picture]
) -> Iterator[Picture]:
    """The pictures at these parts of the way from one to the other, which are of a power of two and do not go back.

    No more pictures are held than the way is halved times.
    """
    yield from _between(first, second, tuple(parts), Fraction(0), Fraction(1), middle)


def _between(
    first: Picture,
    second: Picture,
    parts: Sequence[Fraction],
    low: Fraction,
    high: Fraction,
    middle: Callable[[Picture, Picture], Picture],
) -> Iterator[Picture]:
    yield from (first for part in parts if part == low)
    half = (low + high) / 2
    if any(low < part < high for part in parts):
        inner = middle(first, second)
        yield from _between(first, inner, [part for part in parts if low < part < half], low, half, middle)
        yield from _between(inner, second, [part for part in parts if half <= part < high], half, high, middle)
    yield from (second for part in parts if part == high)


def middle_program(network: RIFE, height: int, width: int) -> Callable[[Any, Any, Any], jax.Array]:
    """A compiled function of parameters and two pictures (H, W, 3) in [0, 1] -> the one in the middle, of any size.

    The pictures are padded with their own borders, where the reference has zeros: what moves in from outside is not
    dark then.
    """
    if max(height, width) > LARGE:
        network = network.clone(scales=tuple(2 * scale for scale in network.scales))
    rows, columns = (-side % network.multiple for side in (height, width))

    @functools.partial(jax.jit)
    def run(params: Any, first: jax.Array, second: jax.Array) -> jax.Array:
        pair = (jnp.pad(x[None], ((0, 0), (0, rows), (0, columns), (0, 0)), "edge") for x in (first, second))
        found = network.apply({"params": params}, *pair)
        assert isinstance(found, Middle)
        return found.picture[0, :height, :width]

    return run
