"""How close a video is to another one of the same shape, frame by frame.

Videos are (B, F, H, W, 3). `peak` is the width of the range their values are in: 1 for [0, 1], 2 for
[-1, 1], 255 for bytes. Everything is computed in float32.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

K1, K2 = 0.01, 0.03  # of SSIM's constants, which keep dark and flat windows from dividing by 0
SIDE = {"uniform": 7, "gaussian": 11}  # pixels of a window
SIGMA = 1.5


def psnr(video: jax.Array, reference: jax.Array, *, peak: float = 1.0) -> jax.Array:
    """Peak signal-to-noise ratio in dB, (B, F); infinite for equal frames.

    The mean of a data set is that of these numbers, not the ratio of a mean error.

    Raises: ValueError for shapes that are not equal or not of videos.
    """
    x, y = _pair(video, reference, peak)
    return -10 * jnp.log10(jnp.mean(jnp.square(x - y), axis=(2, 3, 4)))


def ssim(
    video: jax.Array,
    reference: jax.Array,
    *,
    peak: float = 1.0,
    window: Literal["gaussian", "uniform"] = "gaussian",
) -> jax.Array:
    """Structural similarity, (B, F): the mean over channels and over all windows inside a frame; at most 1.

    Args:
      window: "gaussian" is the paper's, 11 pixels wide with a deviation of 1.5; "uniform" has 7 x 7 equal
        weights and divides covariances by 48: what scikit-image does unless told otherwise.
    Raises: ValueError for another window, shapes that are not equal or not of videos, or frames smaller
      than a window.
    Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861.
    """
    if window not in SIDE:
        raise ValueError(f"window must be gaussian or uniform, got {window!r}")
    x, y = _pair(video, reference, peak)
    side = SIDE[window]
    if min(x.shape[2:4]) < side:
        raise ValueError(f"frames must be at least {side} pixels high and wide for SSIM, got {x.shape[2:4]}")
    offset = np.arange(side) - side // 2
    weights = np.exp(-0.5 * (offset / SIGMA) ** 2) if window == "gaussian" else np.ones(side)
    unbiased = 1.0 if window == "gaussian" else side**2 / (side**2 - 1)

    # Second moments about the frame's mean: of pixels as they are, float32 would lose the variance of flat windows.
    base_x, base_y = (jnp.mean(v, axis=(2, 3), keepdims=True) for v in (x, y))
    x, y = x - base_x, y - base_y
    mean_x, mean_y, xx, yy, xy = (_windows(m, weights / weights.sum()) for m in (x, y, x * x, y * y, x * y))
    var_x, var_y, cov = (
        unbiased * (m - product) for m, product in ((xx, mean_x * mean_x), (yy, mean_y * mean_y), (xy, mean_x * mean_y))
    )
    mean_x, mean_y = mean_x + base_x, mean_y + base_y
    c1, c2 = K1**2, K2**2  # of values in a range of 1
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    return jnp.mean(luminance * (2 * cov + c2) / (var_x + var_y + c2), axis=(2, 3, 4))


def _pair(video: jax.Array, reference: jax.Array, peak: float) -> tuple[jax.Array, jax.Array]:
    """Both in float32, in a range of 1. Raises: ValueError, see above."""
    if video.shape != reference.shape or video.ndim != 5:
        raise ValueError(f"two videos (B, F, H, W, 3) of one shape are compared, got {video.shape}, {reference.shape}")
    return jnp.asarray(video, jnp.float32) / peak, jnp.asarray(reference, jnp.float32) / peak


def _windows(x: jax.Array, weights: np.ndarray) -> jax.Array:
    """Weighted means over every window that lies inside the frames: (B, F, H - n + 1, W - n + 1, 3)."""
    for axis in (2, 3):
        inside = x.shape[axis] - len(weights) + 1
        x = sum(
            (float(w) * jax.lax.slice_in_dim(x, i, i + inside, axis=axis) for i, w in enumerate(weights)),
            start=jnp.zeros((), jnp.float32),
        )
    return x
