"""Linear resizing without anti-aliasing, on the host: what torch's `interpolate` does without aligned corners."""

import numpy as np


def resize_linear(x: np.ndarray, sizes: dict[int, int]) -> np.ndarray:
    """Resizes axes of an array, one after the other; samples lie at the middles of their cells.

    Args:
      sizes: axis -> how many samples it gets.
    Returns: of the type of `x`, which must be a float.
    """
    for axis, size in sizes.items():
        count = x.shape[axis]
        place = np.maximum((np.arange(size) + 0.5) * (count / size) - 0.5, 0)
        low = np.minimum(place.astype(np.int64), count - 1)
        high = np.minimum(low + 1, count - 1)
        weight = (place - low).astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1 - axis % x.ndim))
        x = x.take(low, axis) * (1 - weight) + x.take(high, axis) * weight
    return x
