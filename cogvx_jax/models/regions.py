"""Prompts of regions: which tokens meet in attention, as numbers whose bits are sets of tokens.

Two tokens meet where they share a set. All video tokens share one; those of a region share another with the text of its
prompt. So the video sees all of the video, a prompt itself and its region, and no prompt another.

T h w latents, R regions with a prompt each, L text tokens of a prompt, S tokens.
"""

import jax
import jax.numpy as jnp

MAX_REGIONS = 30  # bits of a positive int32 but for that of the video


def region_sets(regions: jax.Array, texts: int, length: int, patch: int, patch_t: int | None) -> jax.Array:
    """The sets of all tokens, text first: (B, S) int32.

    Args:
      regions: (B, T, h, w) int32, the region of each latent, 0 to R - 1, the same in all of a token.
      texts: R.
      length: L.
      patch, patch_t: latents of a token.
    """
    rows = regions.shape[0]
    tokens = regions[:, :: patch_t or 1, ::patch, ::patch].reshape(rows, -1)
    video = 1 | jnp.left_shift(jnp.int32(2), tokens)
    prompts = jnp.left_shift(jnp.int32(2), jnp.repeat(jnp.arange(texts, dtype=jnp.int32), length))
    return jnp.concatenate([jnp.broadcast_to(prompts, (rows, texts * length)), video], axis=1)
