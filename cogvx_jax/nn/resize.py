"""Linear resizing without anti-aliasing: what torch's `interpolate` does without aligned corners."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = TypeVar("Array", np.ndarray, jax.Array)


def resize_linear(x: Array, sizes: dict[int, int]) -> Array:
    """Resizes axes of an array, one after the other; samples lie at the middles of their cells.

    An array of the host is computed on the host.

    Args:
      sizes: axis -> how many samples it gets.
    Returns: of the type of `x`, which must be a float.
    """
    for axis, size in sizes.items():
        x = sample_linear(x, axis, (np.arange(size) + 0.5) * (x.shape[axis] / size) - 0.5)
    return x


def sample_linear(x: Array, axis: int, place: Any) -> Array:
    """Numbers of an array at places along an axis: between samples by their distance, beyond the ends those there.

    Args:
      place: (n,), counted in samples.
    """
    xp: Any = jnp if isinstance(place, jax.Array) else np
    count = x.shape[axis]
    place = xp.maximum(place, 0)
    low = xp.minimum(place.astype(np.int32), count - 1)
    high = xp.minimum(low + 1, count - 1)
    weight = (place - low).astype(x.dtype)
    weight = weight.reshape(tuple(-1 if at == axis % x.ndim else 1 for at in range(x.ndim)))
    return x.take(low, axis) * (1 - weight) + x.take(high, axis) * weight
