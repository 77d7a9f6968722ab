"""Pictures to planes of luma and chroma for an encoder: BT.709's matrix, limited range, 8 or 10 bits, dithered.

A fixed pattern of thresholds rounds, so that the mean of neighbouring pixels lies between two steps where the picture
does: slow gradients show no bands.

Source: ITU-R BT.709-6, section 3; Bayer 1973 for the pattern.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cogvx_jax.nn.pixels import as_unit

RED, BLUE = 0.2126, 0.0722  # of luma
GREEN = 1 - RED - BLUE
Planes = tuple[jax.Array, jax.Array, jax.Array]


def bayer(order: int) -> np.ndarray:
    """Thresholds in (0, 1), each once, (2^order, 2^order)."""
    pattern = np.zeros((1, 1))
    for _ in range(order):
        pattern = np.block([[4 * pattern, 4 * pattern + 2], [4 * pattern + 3, 4 * pattern + 1]])
    return (pattern + 0.5) / pattern.size


THRESHOLDS = bayer(3).astype(np.float32)


@functools.cache
def planes_program(bits: int, shrink: tuple[int, int]) -> Callable[[jax.Array], Planes]:
    """A compiled function of a picture (H, W, 3), uint16 or float in [0, 1] -> luma (H, W), and chroma blue and red.

    Args:
      bits: 8 gives uint8, more give uint16.
      shrink: rows and columns of luma for one of chroma: (1, 1), (1, 2) or (2, 2). A column of chroma lies on the left
        one of its two, a row in the middle of its two, as files that say nothing else have them.
    """

    def run(picture: jax.Array) -> Planes:
        red, green, blue = (as_unit(picture[..., i]) for i in range(3))
        luma = RED * red + GREEN * green + BLUE * blue
        chroma = (blue - luma) / (2 - 2 * BLUE), (red - luma) / (2 - 2 * RED)
        unit = 2 ** (bits - 8)
        y = _rounded(16 * unit + 219 * unit * luma, bits)
        cb, cr = (_rounded(128 * unit + 224 * unit * _shrunk(c, shrink), bits) for c in chroma)
        return y, cb, cr

    return jax.jit(run)


def to_bytes(picture: jax.Array) -> jax.Array:
    """(H, W, 3), uint16 or float in [0, 1] -> uint8, dithered; what was a byte stays that byte."""
    return _rounded_bytes(picture)


@jax.jit
def _rounded_bytes(picture: jax.Array) -> jax.Array:
    scaled = jnp.clip(as_unit(picture), 0, 1) * 255
    # Bytes come back a rounding error away from themselves, which a threshold near 0 or 1 would make a step.
    whole = jnp.round(scaled)
    dithered = jnp.floor(scaled + _pattern(picture.shape[:2])[..., None])
    return jnp.where(jnp.abs(scaled - whole) < 1e-3, whole, dithered).astype(jnp.uint8)


def _rounded(x: jax.Array, bits: int) -> jax.Array:
    dithered = jnp.floor(x + _pattern(x.shape))
    return jnp.clip(dithered, 0, 2**bits - 1).astype(jnp.uint8 if bits == 8 else jnp.uint16)


def _pattern(shape: tuple[int, ...]) -> jax.Array:
    side = len(THRESHOLDS)
    rows, columns = (-(-n // side) for n in shape)
    return jnp.tile(THRESHOLDS, (rows, columns))[: shape[0], : shape[1]]


def _shrunk(x: jax.Array, shrink: tuple[int, int]) -> jax.Array:
    """(H, W) -> chroma's size: columns weighted 1, 2, 1 around the left one, rows as their mean."""
    if shrink[1] == 2:
        left = jnp.pad(x, ((0, 0), (1, 0)), "edge")[:, :-1]
        x = (left[:, ::2] + 2 * x[:, ::2] + x[:, 1::2]) / 4
    return (x[::2] + x[1::2]) / 2 if shrink[0] == 2 else x
