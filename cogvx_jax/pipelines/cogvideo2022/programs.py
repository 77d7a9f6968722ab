"""The compiled programs of a video of CogVideo (2022): a pass over what is given, a frame, a larger frame, pixels.

Shapes: B sequences, L text tokens, F frames, n codes of a frame, N of a large one.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cogvx_jax.models.cogvideo2022.cached import applied, cache_of, make_frame
from cogvx_jax.models.cogvideo2022.image_tokenizer import ImageTokenizer
from cogvx_jax.models.cogvideo2022.super_resolution import SuperResolution
from cogvx_jax.models.cogvideo2022.transformer import Cache, CogVideo2022, Frames, Text
from cogvx_jax.pipelines.cogvideo2022.clusters import Clusters, Draw, draw
from cogvx_jax.sharding import activate


@functools.partial(jax.jit, static_argnames=("network", "frames", "mesh"))
def first_pass(
    params: Any, text: Text, codes: jax.Array, *, network: CogVideo2022, frames: Frames, mesh: Mesh | None = None
) -> Cache:
    """The cache after the text and the frames that are given, (B, F, n)."""
    with activate(mesh):
        _, kept = applied(network, params, text, codes, frames)
        return cache_of(network.cfg, kept, text.ids.shape[1])


@functools.partial(
    jax.jit, static_argnames=("network", "slot", "how", "guidance", "text_bias", "mesh"), donate_argnames=("cache",)
)
def frame(
    params: Any,
    cache: Cache,
    real: jax.Array,
    clusters: Clusters,
    keys: jax.Array,
    *,
    network: CogVideo2022,
    slot: int,
    how: Draw,
    guidance: float | None,
    text_bias: float,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, Cache, jax.Array]:
    """The codes of a frame, (B, n), the cache, and whether all logits were finite.

    With guidance, guides are the second half of the batch.
    """

    def choose(logits: jax.Array, place: jax.Array) -> jax.Array:
        if guidance is None:
            return _drawn(logits, clusters, fold(keys, place), how)
        asked, guide = jnp.split(logits, 2)
        codes = _drawn(guide + guidance * (asked - guide), clusters, fold(keys, place), how)
        return jnp.concatenate([codes, codes])

    with activate(mesh):
        codes, cache = make_frame(network, params, cache, real, choose, slot=slot, text_bias=text_bias)
    return codes[: len(keys)], cache, (codes >= 0).all()


@functools.partial(jax.jit, static_argnames=("network", "how", "mesh"))
def enlarged(
    params: Any,
    text: Text,
    codes: jax.Array,
    clusters: Clusters,
    keys: jax.Array,
    *,
    network: SuperResolution,
    how: Draw,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(B, n) -> the codes of frames that are larger, (B, N), and whether all logits were finite."""
    grid = network.cfg.large_grid
    with activate(mesh):
        hidden = applied(network, params, text, codes)[:, -(grid**2) :]  # (B, N, D)
    rows = jnp.moveaxis(hidden.reshape(len(codes), grid, grid, -1), 1, 0)

    def row(number_and_row: tuple[jax.Array, jax.Array]) -> jax.Array:  # logits of all would take 288 MB a frame
        number, row = number_and_row
        logits = applied(network, params, row, method="logits")  # (B, grid, codes)
        own = jax.vmap(lambda place: fold(keys, number * grid + place))(jnp.arange(grid)).T  # (B, grid)
        return _drawn(logits.reshape(-1, logits.shape[-1]), clusters, own.reshape(-1), how).reshape(len(codes), grid)

    found = jax.lax.map(row, (jnp.arange(grid), rows))
    found = jnp.moveaxis(found, 0, 1).reshape(len(codes), -1)
    return found, (found >= 0).all()


@functools.partial(jax.jit, static_argnames=("network",))
def decoded(params: Any, codes: jax.Array, *, network: ImageTokenizer) -> jax.Array:
    """(B, h, w) codes -> (B, H, W, 3) float32, about [0, 1]."""
    pixels: jax.Array = applied(network, params, codes, network.cfg.rate, method="decode")
    return pixels


def _drawn(logits: jax.Array, clusters: Clusters, keys: jax.Array, how: Draw) -> jax.Array:
    """As `draw`, -1 for rows whose logits are not all finite."""
    return jnp.where(jnp.isfinite(logits).all(axis=-1), draw(logits, clusters, keys, how), -1)


def fold(keys: jax.Array, number: Any) -> jax.Array:
    """A key of each key and a number."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)
