"""How much a video changes from frame to frame."""

import jax
import jax.numpy as jnp


def flicker(video: jax.Array, *, peak: float = 1.0) -> jax.Array:
    """The CogVideoX paper's score of its VAE: the L1 difference of neighbouring frames, lower is better.

    Motion counts, too: compare videos of the same clips. The paper does not print the unit of its own
    figures (86.3 for the VAE in use); here 0 is a still and 255 the most, as of bytes.

    Args:
      video: (B, F, H, W, 3), values in a range of the width `peak`, wherever it starts.
      peak: 1 for [0, 1], 2 for [-1, 1], 255 for bytes.
    Returns: (B,) float32, the mean over pixels, channels and the F - 1 pairs.
    Raises: ValueError for another shape, or fewer than two frames.
    Source: arXiv:2408.06072, section 2.1.
    """
    if video.ndim != 5 or video.shape[1] < 2:
        raise ValueError(f"flicker is of videos (B, F, H, W, 3) with two frames or more, got {video.shape}")
    video = jnp.asarray(video, jnp.float32)
    return jnp.mean(jnp.abs(video[:, 1:] - video[:, :-1]), axis=(1, 2, 3, 4)) * (255 / peak)
