"""Pictures in their last size: resized by a cubic filter, which is widened where they become smaller, and cropped.

The filter is Keys' (1981) with a = -1/2, as `jax.image.resize` has it. That multiplies by matrices, which suits an
accelerator; a strip of rows after the other takes a third of its memory, and no products with zeros.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cogvx_jax.finishing.options import Geometry
from cogvx_jax.nn.backend import formulations
from cogvx_jax.nn.pixels import as_levels, as_unit
from cogvx_jax.nn.rows import over_rows

ROWS = 64  # of the result in a strip
Sides = tuple[int, int]


def fit(geometry: Geometry, picture: jax.Array) -> jax.Array:
    """A picture of any size, uint16 of `nn.pixels`, in the last one."""
    if picture.shape[:2] == geometry.final:
        return picture
    in_strips = formulations().large_pictures == "strips"
    return (_resized_in_strips if in_strips else _resized)(picture, geometry.resized, geometry.crop, geometry.final)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _resized(picture: jax.Array, size: Sides, crop: Sides, final: Sides) -> jax.Array:
    made = as_unit(picture)
    if made.shape[:2] != size:
        made = jax.image.resize(made, (*size, 3), "cubic", precision=jax.lax.Precision.HIGHEST)
    (top, left), (height, width) = crop, final
    return as_levels(made[top : top + height, left : left + width])


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _resized_in_strips(picture: jax.Array, size: Sides, crop: Sides, final: Sides) -> jax.Array:
    rows, columns = (Taps.of(*sides) for sides in zip(picture.shape, size, crop, final, strict=False))
    count = min(ROWS, final[0])

    def strip(start: jax.Array) -> jax.Array:
        own = Taps(*(jax.lax.dynamic_slice_in_dim(jnp.asarray(x), start, count) for x in rows))
        return as_levels(columns.sum(own.sum(picture, 0), 1))

    return over_rows(strip, final[0], ROWS)


class Taps(NamedTuple):
    """What the numbers along a side become of: (n, taps) places of the side before, and their weights."""

    places: np.ndarray | jax.Array
    weights: np.ndarray | jax.Array

    @classmethod
    def of(cls, before: int, after: int, begin: int, count: int) -> "Taps":
        """Of `after` pixels, those from `begin` on; as jax weighs them."""
        step = before / after
        widened = max(step, 1.0)
        middle = (np.arange(begin, begin + count) + 0.5) * step - 0.5
        first = np.ceil(middle - 2 * widened).astype(int)
        places = first[:, None] + np.arange(math.floor(4 * widened) + 1)
        weights = _keys(np.abs(places - middle[:, None]) / widened)
        weights[(places < 0) | (places >= before)] = 0
        weights /= weights.sum(1, keepdims=True)
        return cls(np.clip(places, 0, before - 1).astype(np.int32), weights.astype(np.float32))

    def sum(self, x: jax.Array, axis: int) -> jax.Array:
        """The weighted sums of numbers along an axis of `x`, which is uint16 or float."""
        shape = [-1 if at == axis else 1 for at in range(x.ndim)]
        terms = (
            as_unit(jnp.take(x, self.places[:, tap], axis)) * self.weights[:, tap].reshape(shape)
            for tap in range(self.places.shape[1])
        )
        return functools.reduce(jnp.add, terms)


def _keys(x: np.ndarray) -> np.ndarray:
    near = ((1.5 * x - 2.5) * x) * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))
