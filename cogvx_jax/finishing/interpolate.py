"""Frames between frames: middles of two pictures, and middles of those, in the order in which they are shown."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cogvx_jax.models.rife import RIFE, Middle
from cogvx_jax.models.rife_strips import middle_in_strips
from cogvx_jax.nn.backend import formulations
from cogvx_jax.nn.pixels import as_levels, as_unit
from cogvx_jax.sharding import RULES, activate
from cogvx_jax.sharding.rules import mesh_axes

LARGE = 2048  # pixels of a side from which on the flow is found at half the size, as RIFE's authors advise for 4K
OWN = 8  # pixels along a side, at the coarsest step, of a device that shares a picture with others

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


def between_all(
    ways: Sequence[tuple[Picture, Picture, Sequence[Fraction]]],
    middles: Callable[[Sequence[tuple[Picture, Picture]]], Sequence[Picture]],
) -> Iterator[Picture]:
    """As `between` for several ways, one after the other, whose middles are found together, a level at a time.

    All pictures of the ways are held at once.
    """
    found: list[dict[Fraction, Picture]] = [{Fraction(0): first, Fraction(1): last} for first, last, _ in ways]
    step = Fraction(1)
    while wanted := [
        (known, low)
        for known, (_, _, parts) in zip(found, ways, strict=True)
        for low in (step * i for i in range(int(1 / step)))
        if any(low < part < low + step for part in parts)
    ]:
        made = middles([(known[low], known[low + step]) for known, low in wanted])
        for (known, low), picture in zip(wanted, made, strict=True):
            known[low + step / 2] = picture
        step /= 2
    for known, (_, _, parts) in zip(found, ways, strict=True):
        yield from (known[part] for part in parts)


def middle_program(network: RIFE, height: int, width: int) -> Callable[[Any, Any, Any], jax.Array]:
    """A compiled function of parameters and two pictures (H, W, 3) -> the one in the middle, of any size.

    Pictures are uint16 or float in [0, 1], and the result is what the first one is. They are padded with their own
    borders, where the reference has zeros: what moves in from outside is not dark then.
    """
    network, padded = _sized(network, height, width)
    in_strips = max(height, width) > LARGE and formulations().large_pictures == "strips"

    @jax.jit
    def run(params: Any, first: jax.Array, second: jax.Array) -> jax.Array:
        if in_strips:
            return _like(first, middle_in_strips(network, params, first, second))
        found = network.apply({"params": params}, *(jnp.pad(as_unit(x)[None], padded, "edge") for x in (first, second)))
        assert isinstance(found, Middle)
        return _like(first, found.picture[0, :height, :width])

    return run


def _like(given: jax.Array, made: jax.Array) -> jax.Array:
    return as_levels(made) if given.dtype == np.uint16 else made


def middles_program(
    network: RIFE, height: int, width: int, mesh: Mesh
) -> Callable[[Any, Sequence[tuple[Any, Any]]], list[jax.Array]]:
    """As `middle_program` of parameters and any number of pairs, which the devices of a mesh share.

    Pairs lie over the mesh axes of a batch. Over the others lies the picture, where parts of it are large enough: the
    compiler sends the pixels at their borders to neighbours for every convolution. The results come together on the
    first device.
    """
    network, padded = _sized(network, height, width)
    at_once = pairs_at_once(mesh)
    pairs = NamedSharding(mesh, PartitionSpec(tuple(axis for axis in RULES["batch"] if axis in mesh.shape)))
    whole = NamedSharding(mesh, PartitionSpec())
    layout = mesh if is_worth_parting(network, height, width, mesh) else None

    @functools.partial(jax.jit, out_shardings=whole)
    def run(params: Any, first: jax.Array, second: jax.Array) -> jax.Array:
        with activate(layout):
            found = network.apply({"params": params}, *(jnp.pad(as_unit(x), padded, "edge") for x in (first, second)))
        assert isinstance(found, Middle)
        return _like(first, found.picture[:, :height, :width])

    def middles(params: Any, wanted: Sequence[tuple[jax.Array, jax.Array]]) -> list[jax.Array]:
        made: list[jax.Array] = []
        for begin in range(0, len(wanted), at_once):
            some = list(wanted[begin : begin + at_once])
            some += some[-1:] * (at_once - len(some))
            both = (jax.device_put(jnp.stack(pictures), pairs) for pictures in zip(*some, strict=True))
            made += list(jax.device_put(run(params, *both), mesh.devices.flat[0]))
        return made[: len(wanted)]

    return middles


def pairs_at_once(mesh: Mesh) -> int:
    """How many pairs the devices of a mesh interpolate side by side."""
    return math.prod(mesh.shape.get(axis, 1) for axis in RULES["batch"])


def is_worth_parting(network: RIFE, height: int, width: int, mesh: Mesh) -> bool:
    """Whether devices that share a picture each have `OWN` pixels along a side at the coarsest step.

    A convolution takes a pixel from either neighbour: of fewer, more than a quarter would be sent and not computed.
    """
    names = ("batch", "height", "width")
    coarse = (pairs_at_once(mesh), height // (4 * network.scales[0]), width // (4 * network.scales[0]))
    parts = [math.prod(mesh.shape[axis] for axis in axes) for axes in mesh_axes(names, mesh, coarse)]
    return all(side >= OWN * count for side, count in zip(coarse[1:], parts[1:], strict=True))


def _sized(network: RIFE, height: int, width: int) -> tuple[RIFE, Any]:
    """The network for pictures of this size, and how (B, H, W, C) are padded for it."""
    if max(height, width) > LARGE:
        network = network.clone(scales=tuple(2 * scale for scale in network.scales))
    rows, columns = (-side % network.multiple for side in (height, width))
    return network, ((0, 0), (0, rows), (0, columns), (0, 0))
