"""Linear resizing without anti-aliasing: what torch's `interpolate` does without aligned corners."""

from typing import TypeVar

import jax
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
        count = x.shape[axis]
        place = np.maximum((np.arange(size) + 0.5) * (count / size) - 0.5, 0)
        low = np.minimum(place.astype(np.int64), count - 1)
        high = np.minimum(low + 1, count - 1)
        weight = (place - low).astype(x.dtype)
        weight = weight.reshape(tuple(-1 if at == axis % x.ndim else 1 for at in range(x.ndim)))
        x = x.take(low, axis) * (1 - weight) + x.take(high, axis) * weight
    return x
