"""What a step leaves for the steps after it, and what these do with it in place of the transformer's blocks.

Each function stands around the blocks, see `Transformer.around_blocks`. Formulas are in float32; what is kept is of
the type that the blocks compute in, as it lies where the tokens lie.

added        what all blocks added to their input, and its differences from step to step
attention    what the attention of each block gave, before its gate
first_block  what the first block added, and what the others added: whether they run is decided after the first
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from cogvx_jax.axes import constrain
from cogvx_jax.configs import TransformerConfig


class Kept(NamedTuple):
    """What a sampling step keeps for the next ones."""

    parts: Any  # array (K, B, S, D), or what a way of guidance keeps
    computed: Any  # array () int32: steps that ran all blocks


class Stack(NamedTuple):
    """The blocks of a transformer at one step."""

    run: Callable[[jax.Array], jax.Array]  # x (B, S, D) through all of them
    block: nn.Module  # one of them, (x, *inputs) -> (x, attention's output or None)
    params: Any  # of all, the leading axis counts layers
    inputs: tuple[Any, ...]
    tokens: int  # of S, those that are no padding

    def one(self, params: Any, x: jax.Array, **more: Any) -> Any:
        """`x` through the block of these parameters; what it gives."""
        return self.block.apply({"params": params}, x, *self.inputs, **more)


Around = Callable[[Stack, jax.Array], tuple[jax.Array, Any]]


def keep_added(kept: Kept, per_step: jax.Array) -> Around:
    """Runs all blocks and keeps F_0 = what they added, F_(k+1) = (F_k - F_k before) * per_step[k].

    Args:
      kept: of the last computed step, K parts.
      per_step: (K,) float32; [k] is 1 over the steps since then, or 0 where there is no F_k before.
    Source: Liu et al. 2025, arXiv:2503.06923 (TaylorSeer), whose order 0 is the reuse of residuals.
    """

    def around(stack: Stack, x: jax.Array) -> tuple[jax.Array, Kept]:
        y = stack.run(x)
        # In bfloat16 the difference would lose the digits of x.
        factors = [y.astype(jnp.float32) - x.astype(jnp.float32)]
        for k in range(kept.parts.shape[0] - 1):
            factors.append((factors[k] - kept.parts[k].astype(jnp.float32)) * per_step[k])
        return y, _next(kept, jnp.stack(factors), x)

    return around


def add_kept(kept: Kept, coefficients: jax.Array) -> Around:
    """Adds the sum of coefficients[k] F_k in place of the blocks; `coefficients` (K,) float32."""

    def around(stack: Stack, x: jax.Array) -> tuple[jax.Array, None]:
        y = x.astype(jnp.float32)
        for k in range(kept.parts.shape[0]):
            y = y + coefficients[k] * kept.parts[k].astype(jnp.float32)
        return constrain(y.astype(x.dtype), "batch", "seq", None), None

    return around


def keep_attention(kept: Kept) -> Around:
    """Runs all blocks and keeps what attention gave in each, before its gate: parts (layers, B, S, D)."""

    def around(stack: Stack, x: jax.Array) -> tuple[jax.Array, Kept]:
        def through(x: jax.Array, layer: Any) -> tuple[jax.Array, jax.Array]:
            return stack.one(layer, x, keep=True)

        x, attention = jax.lax.scan(through, x, stack.params)
        return x, _next(kept, attention, x)

    return around


def use_attention(kept: Kept) -> Around:
    """Runs all blocks but for their attention, whose kept results stand for it.

    Source: Zhao et al. 2024, arXiv:2408.12588 (PAB).
    """

    def around(stack: Stack, x: jax.Array) -> tuple[jax.Array, None]:
        def through(x: jax.Array, layer: tuple[Any, jax.Array]) -> tuple[jax.Array, None]:
            params, attention = layer
            return stack.one(params, x, attention=attention)

        return jax.lax.scan(through, x, (stack.params, kept.parts))

    return around


def decide_after_first(kept: Kept, threshold: jax.Array) -> Around:
    """Runs the first block; the others, too, unless it adds nearly the same as when they last ran.

    They are left out where mean|f - f_c| <= threshold mean|f_c|; f is what the first block adds, f_c the same when
    the others last ran, and the means are over all rows and tokens. What they added then stands for them.

    Args:
      kept: two parts: f_c, and what the others added.
      threshold: () float32; below 0 all blocks run.
    Source: ParaAttention's first block cache.
    """

    def around(stack: Stack, x: jax.Array) -> tuple[jax.Array, Kept]:
        def through(x: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
            layer = jax.tree.map(lambda p: jax.lax.dynamic_index_in_dim(p, i, keepdims=False), stack.params)
            return stack.one(layer, x)

        def others(first: jax.Array) -> tuple[jax.Array, Kept]:
            y, _ = jax.lax.scan(through, first, jnp.arange(1, layers, dtype=jnp.int32))
            added = y.astype(jnp.float32) - first.astype(jnp.float32)
            return y, _next(kept, jnp.stack([f, added]), x)

        def instead(first: jax.Array) -> tuple[jax.Array, Kept]:
            y = first.astype(jnp.float32) + kept.parts[1].astype(jnp.float32)
            return constrain(y.astype(x.dtype), "batch", "seq", None), kept

        layers = jax.tree.leaves(stack.params)[0].shape[0]
        first, _ = through(x, jnp.int32(0))
        f = first.astype(jnp.float32) - x.astype(jnp.float32)
        before = kept.parts[0].astype(jnp.float32)
        near = _sum(f - before, stack.tokens) <= threshold * _sum(before, stack.tokens)
        return jax.lax.cond(~near | (threshold < 0), others, instead, first)

    return around


def parts_shape(kind: str, cfg: TransformerConfig, rows: int, tokens: int, order: int) -> tuple[int, int, int, int]:
    """Of `Kept.parts`, (K, B, S, D).

    Args:
      kind: "added", "attention" or "first_block".
      tokens: S, with the padding that a mesh needs.
      order: of differences, for "added".
    """
    count = {"added": order + 1, "attention": cfg.layers, "first_block": 2}[kind]
    return count, rows, tokens, cfg.width


def _next(kept: Kept, parts: jax.Array, x: jax.Array) -> Kept:
    return Kept(constrain(parts.astype(x.dtype), None, "batch", "seq", None), kept.computed + 1)


def _sum(x: jax.Array, tokens: int) -> jax.Array:
    """Of absolute values, without those of the padding, which no mesh shares with another."""
    real = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1) < tokens
    return jnp.sum(jnp.where(real, jnp.abs(x), 0))
