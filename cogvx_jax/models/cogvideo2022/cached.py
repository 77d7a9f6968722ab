"""One code after the other: the cache, a step with it, and a frame as one scan of steps.

The cache's arrays have one size for all steps, and which cells a code sees are static tables. So a slot is one program,
whatever the prompts. A step reads the weights and the cells that it sees, and writes a row of each array.

Letters: as in `models.cogvideo2022.transformer`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cogvx_jax.axes import constrain
from cogvx_jax.models.cogvideo2022.configs import CogVideo2022Config
from cogvx_jax.models.cogvideo2022.transformer import Block, Cache, CogVideo2022, Kept, KeyValue

Params = Mapping[str, Any]
Choose = Callable[[jax.Array, jax.Array], jax.Array]  # logits (B, codes) and the code's place -> codes (B,)


def cache_of(cfg: CogVideo2022Config, kept: Kept, length: int) -> Cache:
    """What steps after a whole pass need of it. The pass ended with a whole frame, or with the text.

    Args:
      length: L, of the text with its padding.
    """

    def filled(part: jax.Array, size: int) -> jax.Array:
        return _placed(jnp.pad(part, ((0, 0), (0, 0), (0, size - part.shape[2]), (0, 0), (0, 0))))

    k, v = (filled(part[:, :, :length], length + cfg.frame_codes) for part in kept.spatial)
    if kept.temporal is None:
        return Cache((k, v), None)
    whole = length + cfg.frames * cfg.frame_codes
    return Cache((k, v), (filled(kept.temporal[0], whole), filled(kept.temporal[1], whole)))


def step(
    network: CogVideo2022,
    params: Params,
    cache: Cache,
    real: jax.Array,
    code: jax.Array,
    place: jax.Array,
    *,
    slot: int,
    text_bias: float = 0.0,
) -> tuple[jax.Array, Cache]:
    """Adds one code to every sequence.

    Args:
      real: (B, L), what of the text is no padding.
      code: (B,), the one before; not read at place 0.
      place: of the code that is predicted in its frame, () int32.
      slot: of its frame, static.
    Returns: the last norm's output (B, D), and the cache with this step in it.
    """
    cfg, length = network.cfg, real.shape[1]
    x = applied(network, params, code, cfg.order[slot], place, method="embed_code")
    block = Block(cfg, network.dtype, parent=None)

    def through(x: jax.Array, layer: tuple[Any, jax.Array]) -> tuple[jax.Array, Any]:
        own, number = layer
        # The cache is read where it lies: a slice of it as an input of the scan would be copied.
        return applied(block, own, x, number, real, cache, place, slot, text_bias, method="step")

    x, (spatial, temporal) = jax.lax.scan(through, x, (params["blocks"], jnp.arange(cfg.layers)))
    cache = Cache(
        _with(cache.spatial, spatial, length + place),
        None if cache.temporal is None else _with(cache.temporal, temporal, length + slot * cfg.frame_codes + place),
    )
    return applied(network, params, x, method="normed")[:, 0], cache


def make_frame(
    network: CogVideo2022,
    params: Params,
    cache: Cache,
    real: jax.Array,
    choose: Choose,
    *,
    slot: int,
    text_bias: float = 0.0,
) -> tuple[jax.Array, Cache]:
    """All codes of a slot: (B, n) int32, and the cache with them in it.

    The last code of a frame is no input of anything, so the cache is whole after it.
    """

    def one(carry: tuple[Cache, jax.Array], place: jax.Array) -> tuple[tuple[Cache, jax.Array], jax.Array]:
        cache, code = carry
        hidden, cache = step(network, params, cache, real, code, place, slot=slot, text_bias=text_bias)
        code = choose(applied(network, params, hidden, method="logits"), place)
        return (cache, code), code

    first = jnp.zeros(len(real), jnp.int32)
    (cache, _), codes = jax.lax.scan(one, (cache, first), jnp.arange(network.cfg.frame_codes))
    return codes.T, cache


def applied(module: nn.Module, params: Params, *inputs: Any, method: str = "__call__") -> Any:
    """A method of a module with its parameters."""
    return module.apply({"params": params}, *inputs, method=method)


def _with(whole: KeyValue, rows: KeyValue, place: jax.Array) -> KeyValue:
    """The arrays with a row at a place, (layers, B, 1, A, K), in place of the one there."""
    k, v = (jax.lax.dynamic_update_slice_in_dim(x, y, place, axis=2) for x, y in zip(whole, rows, strict=True))
    return _placed(k), _placed(v)


def _placed(cached: jax.Array) -> jax.Array:
    """Keys or values of all layers where a mesh has sequences and heads."""
    return constrain(cached, "layers", "batch", None, "heads", None)
