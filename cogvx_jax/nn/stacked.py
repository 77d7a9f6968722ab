"""Runs a stack of equal blocks in less memory than a plain scan: the same sums, in other portions.

streamed    kernels wait in the host's memory; while a layer is computed, those of the next are on their way
apart       rows (videos, and branches of guidance) go through a layer one after the other
in pieces   an operation on each token for itself takes a part of the tokens at a time
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cogvx_jax import axes

Pick = Callable[[jax.Array], jax.Array]  # of all rows, those that are computed now
Entry = Callable[[jax.Array], Any]
HOST = "pinned_host"  # memory that a device can fetch from by itself


def waits_on_host(path: str) -> bool:
    """Whether a parameter, such as "blocks/mlp/up/kernel", is one that `run_blocks` fetches layer by layer.

    Vectors are not: TPUs cannot slice stacks of them in the host's memory, and all of 5B's take 20 MB.
    """
    return path.startswith("blocks/") and path.endswith("/kernel")


def run_blocks(
    block: nn.Module, params: Any, x: jax.Array, *inputs: Any, entry: Entry | None = None, apart: int | None = None
) -> jax.Array:
    """`x` through all layers of a stack, as `nn.scan` of the block would take it.

    Args:
      block: (x, *inputs) -> (x, None), whose parameters are an entry of `params`; with `apart` it has an argument
        `pick`, see `rows_after_rows`.
      params: stacked, the leading axis counts layers; kernels may lie in the host's memory.
      x: (B, S, D).
      inputs: the same for all layers.
      entry: what the block of a layer gets after `inputs`, by the layer's number; None is nothing.
      apart: so many rows after the others on each device; None is all at once.
    """
    layers = jax.tree.leaves(params)[0].shape[0]

    def through(x: jax.Array, layer: Any, i: jax.Array) -> jax.Array:
        own = inputs if entry is None else (*inputs, entry(i))

        def one(x: jax.Array, **rows: Any) -> jax.Array:
            return block.apply({"params": layer}, x, *own, **rows)[0]

        return one(x) if apart is None else rows_after_rows(one, x, apart)

    def step(carry, i):
        x, here = carry
        ahead = fetch(params, jnp.minimum(i + 1, layers - 1))
        return (through(x, here, i), ahead), None

    (x, _), _ = jax.lax.scan(step, (x, fetch(params, jnp.int32(0))), jnp.arange(layers, dtype=jnp.int32))
    return x


def fetch(params: Any, layer: jax.Array) -> Any:
    """The parameters of one layer, in the device's memory wherever the stack lies."""

    def one(stack: jax.Array) -> jax.Array:
        return jax.device_put(jax.lax.dynamic_index_in_dim(stack, layer, keepdims=False), jax.memory.Space.Device)

    return jax.tree.map(one, params)


def rows_after_rows(function: Callable[..., jax.Array], x: jax.Array, together: int = 1) -> jax.Array:
    """`function` (x (B, S, D), pick=...) -> (B, S, D), each device taking so many of its rows at a time.

    All at once where a device has other rows of what belongs together.

    `pick` gives the same rows of another array (B, ...). What is computed of all rows and then picked has the bits
    that it has without this: a product of one row is another program than that of several.
    """
    spread = axes.parts(("batch", "seq", None), x.shape)[0]
    count, rest = divmod(x.shape[0], spread * together)
    if count <= 1 or rest:
        return function(x, pick=lambda y: y)

    def split(y: jax.Array) -> jax.Array:  # the rows that a device holds lie side by side
        if together > 1:
            y = y.reshape(-1, together * y.shape[1], *y.shape[2:])
        return jnp.swapaxes(y.reshape(spread, count, *y.shape[1:]), 0, 1)

    def one(number_and_row):
        i, row = number_and_row

        def pick(y):
            return jax.lax.dynamic_index_in_dim(split(y), i, keepdims=False).reshape(-1, *y.shape[1:])

        return function(row.reshape(-1, *x.shape[1:]), pick=pick).reshape(row.shape)

    rows = jax.lax.map(one, (jnp.arange(count, dtype=jnp.int32), split(x)))
    return jnp.swapaxes(rows, 0, 1).reshape(x.shape)


def in_pieces(function: Callable[[jax.Array], jax.Array], x: jax.Array, most: int) -> jax.Array:
    """`function` of each token for itself, (B, S, D) -> (B, S, D), at most `most` tokens of a device at a time."""
    batch, tokens, width = x.shape
    spread = axes.parts(("batch", "seq", None), x.shape)[1]
    own = tokens // spread
    count = -(-own // most)
    if count == 1:
        return function(x)
    unit = math.gcd(most, 128)  # whole tiles of a TPU
    size = min(-(-own // (count * unit)) * unit, own)
    parts = x.reshape(batch, spread, own, width)

    def piece(i: jax.Array, done: jax.Array) -> jax.Array:
        start = jnp.minimum(i * size, own - size)  # the last one begins early, and repeats what was done
        part = jax.lax.dynamic_slice_in_dim(parts, start, size, axis=2)
        part = function(part.reshape(batch, spread * size, width)).reshape(part.shape)
        return jax.lax.dynamic_update_slice_in_dim(done, part, start, axis=2)

    done = jax.lax.fori_loop(0, count, piece, jnp.zeros_like(parts))
    return done.reshape(x.shape)
