"""Weights that are written are finite: the one check of all that writes them, a tensor at a time while it is in memory.

Reading a model does not look at its numbers; `pipelines.finite` does where a result is not finite.
"""

import ml_dtypes
import numpy as np

from cogvx_jax.convert.tensors import is_floating

CHUNK = 2**18  # numbers at a time, which a processor's cache holds with the answers for them
# Of 16 bits: those of the exponent, all of them set where a number is not finite. NumPy would ask number by number.
EXPONENTS = {np.dtype(np.float16): np.uint16(0x7C00), np.dtype(ml_dtypes.bfloat16): np.uint16(0x7F80)}


def is_finite(array: np.ndarray) -> bool:
    """Whether all numbers of an array of any type are finite. It takes no memory of the array's size."""
    if not is_floating(array.dtype):
        return True
    flat = array.reshape(-1)
    return all(_is_finite(flat[i : i + CHUNK]) for i in range(0, flat.size, CHUNK))


def check_finite(name: str, array: np.ndarray) -> np.ndarray:
    """The array. Raises: ValueError, one sentence with the tensor's name, for numbers that are not finite."""
    if not is_finite(array):
        narrow = ", or they are too large for float16" if array.dtype == np.float16 else ""
        raise ValueError(
            f"{name} holds numbers that are not finite: its file is damaged or its training diverged{narrow}; "
            "nothing was written"
        )
    return array


def not_finite(holder: object, where: str, *, with_loras: bool) -> ValueError:
    """The error of a weight with NaN or infinity.

    Args:
      holder: of the weight, a place or a name.
      where: it is there.
      with_loras: whether it is finite until LoRAs are added.
    """
    if with_loras:
        return ValueError(f"{holder} with these LoRAs has numbers that are not finite in {where}; lower the weights")
    return ValueError(f"{holder} holds numbers that are not finite in {where}")


def _is_finite(flat: np.ndarray) -> bool:
    exponent = EXPONENTS.get(flat.dtype)
    if exponent is None:
        return bool(np.isfinite(flat).all())
    return not ((flat.view(np.uint16) & exponent) == exponent).any()
