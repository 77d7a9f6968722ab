"""Pictures through an upscaler in tiles, so that memory does not grow with their size.

A tile is computed with the network's halo around it; only what no border of a tile has reached is kept. At the edges
of a picture a tile ends where the picture does, so that the network sees the zeros that it would see anyway.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cogvx_jax.models.upscalers import Upscaler

STEP = 8  # pixels, in which TPUs hold pictures


def upscale_program(
    network: Upscaler,
    height: int,
    width: int,
    tile: int | None = None,
    mesh: Mesh | None = None,
    store: Callable[[jax.Array], jax.Array] = lambda made: jnp.clip(made, 0, 1),
) -> Callable[[Any, Any], jax.Array]:
    """A function of parameters and a picture (H, W, 3) in [0, 1] -> (s H, s W, 3), in [0, 1] too, compiled once.

    Args:
      tile: pixels of a tile's side before it is enlarged, halo not counted; None is the network's own.
      store: what becomes of a tile, such as `as_levels`.
      mesh: its devices compute a tile each at a time, whatever their axes; the picture comes together on the first.
    """
    tile = network.tile if tile is None else tile
    places = _rounds(_places(network.halo, height, width, tile), 1 if mesh is None else mesh.size)
    core = _core(height, tile), _core(width, tile)
    window = min(core[0] + 2 * network.halo, height), min(core[1] + 2 * network.halo, width)
    s = network.factor

    def look(picture: jax.Array, place: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(picture, (*place[1], 0), (*window, 3))

    def keep(made: jax.Array, place: jax.Array) -> jax.Array:
        begin = s * (place[0] - place[1])
        return jax.lax.dynamic_slice(made, (*begin, 0), (s * core[0], s * core[1], 3))

    def run(params: Any, picture: jax.Array) -> jax.Array:
        def some(out: jax.Array, chosen: jax.Array) -> tuple[jax.Array, None]:
            seen = jax.vmap(look, (None, 0))(picture, chosen)
            if mesh is not None:
                seen = jax.lax.with_sharding_constraint(seen, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))
            made = network.apply({"params": params}, seen)
            assert isinstance(made, jax.Array)
            for kept, place in zip(store(jax.vmap(keep)(made, chosen)), chosen, strict=True):
                out = jax.lax.dynamic_update_slice(out, kept, (*(s * place[0]), 0))
            return out, None

        room = jnp.zeros((s * height, s * width, 3), jax.eval_shape(store, picture).dtype)
        return jax.lax.scan(some, room, jnp.asarray(places, jnp.int32))[0]

    if mesh is None:
        return jax.jit(run)
    spread = jax.jit(run, out_shardings=NamedSharding(mesh, PartitionSpec()))
    return lambda params, picture: jax.device_put(spread(params, picture), mesh.devices.flat[0])


def _rounds(places: np.ndarray, count: int) -> np.ndarray:
    """(rounds, count, 2, 2): so many tiles at a time, the last of all again where some are missing."""
    more = np.repeat(places[-1:], -len(places) % count, axis=0)
    return np.concatenate([places, more]).reshape(-1, count, 2, 2)


def _core(size: int, tile: int) -> int:
    """What is kept of a tile along a side: as many tiles as are needed, all of them equal, by `STEP`."""
    equal = -(-size // -(-size // tile))
    return min(-(-equal // STEP) * STEP, tile, size)


def _places(halo: int, height: int, width: int, tile: int) -> np.ndarray:
    """(tiles, 2, 2): where what is kept of a tile begins, and what is computed of it; rows and columns each."""
    axes = []
    for size in (height, width):
        core = _core(size, tile)
        window = min(core + 2 * halo, size)
        starts = [min(start, size - core) for start in range(0, size, core)]  # the last ones overlap
        axes.append([(start, min(max(start - halo, 0), size - window)) for start in starts])
    return np.array([[(top, left), (above, before)] for top, above in axes[0] for left, before in axes[1]])
