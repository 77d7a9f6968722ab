"""Where a video cuts to another picture: between such frames nothing is interpolated.

Source: the demo of RIFE, which repeats a frame where small copies of it and the next are this unlike.
"""

import functools

import jax
import numpy as np
import PIL.Image

from cogvx_jax.metrics import ssim

SIDE = 32  # pixels of the small copies
UNLIKE = 0.2  # SSIM below which it is a cut


def is_cut(frame: np.ndarray, following: np.ndarray) -> bool:
    """Whether a frame and the one after it, (H, W, 3) uint8 each, are of different shots."""
    pair = np.stack([_small(frame), _small(following)])[:, None, None]
    return float(_ssim()(*pair)[0, 0]) < UNLIKE


def _small(frame: np.ndarray) -> np.ndarray:
    return np.asarray(PIL.Image.fromarray(frame).resize((SIDE, SIDE), PIL.Image.Resampling.BOX))


@functools.cache
def _ssim():
    return jax.jit(functools.partial(ssim, peak=255.0))
