"""Pictures through an upscaler in tiles, so that memory does not grow with their size.

A tile is computed with the network's halo around it; only what no border of a tile has reached is kept. At the edges
of a picture a tile ends where the picture does, so that the network sees the zeros that it would see anyway.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cogvx_jax.models.upscalers import Upscaler

TILE = 256  # pixels of a tile's side before it is enlarged, halo not counted


def upscale_program(network: Upscaler, height: int, width: int, tile: int = TILE) -> Callable[[Any, Any], jax.Array]:
    """A compiled function of parameters and a picture (H, W, 3) in [0, 1] -> (s H, s W, 3), in [0, 1] too."""
    places = jnp.asarray(_places(network.halo, height, width, tile), jnp.int32)
    core = min(tile, height), min(tile, width)
    window = min(tile + 2 * network.halo, height), min(tile + 2 * network.halo, width)
    s = network.factor

    @functools.partial(jax.jit, donate_argnums=())
    def run(params: Any, picture: jax.Array) -> jax.Array:
        def one(out: jax.Array, place: jax.Array) -> tuple[jax.Array, None]:
            (top, left), (above, before) = place[0], place[1]
            seen = jax.lax.dynamic_slice(picture, (above, before, 0), (*window, 3))
            made = network.apply({"params": params}, seen[None])
            assert isinstance(made, jax.Array)
            begin = s * (top - above), s * (left - before), 0
            kept = jax.lax.dynamic_slice(made[0], begin, (s * core[0], s * core[1], 3))
            return jax.lax.dynamic_update_slice(out, kept, (s * top, s * left, 0)), None

        out, _ = jax.lax.scan(one, jnp.zeros((s * height, s * width, 3)), places)
        return jnp.clip(out, 0, 1)

    return run


def _places(halo: int, height: int, width: int, tile: int) -> np.ndarray:
    """(tiles, 2, 2): where what is kept of a tile begins, and what is computed of it; rows and columns each."""
    axes = []
    for size in (height, width):
        core, window = min(tile, size), min(tile + 2 * halo, size)
        starts = [min(start, size - core) for start in range(0, size, core)]  # the last ones overlap
        axes.append([(start, min(max(start - halo, 0), size - window)) for start in starts])
    return np.array([[(top, left), (above, before)] for top, above in axes[0] for left, before in axes[1]])
