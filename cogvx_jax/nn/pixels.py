"""Pictures of 16 bits, in which they wait between steps: half of what floats take, and 64 levels for one of 10 bits."""

import jax
import jax.numpy as jnp
import numpy as np

LEVELS = 2**16 - 1  # so a byte is 257 of them, and comes back as it was


def as_unit(picture: jax.Array) -> jax.Array:
    """float32 in [0, 1] of uint16; floats stay as they are."""
    return picture.astype(jnp.float32) / LEVELS if picture.dtype == np.uint16 else picture.astype(jnp.float32)


def as_levels(picture: jax.Array) -> jax.Array:
    """uint16 of floats, which are clipped to [0, 1]; uint16 stays as it is."""
    if picture.dtype == np.uint16:
        return picture
    return jnp.round(jnp.clip(picture, 0, 1) * LEVELS).astype(jnp.uint16)
