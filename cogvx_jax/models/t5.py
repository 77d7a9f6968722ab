"""The T5 v1.1 encoder: token ids (B, L) -> states (B, L, width). No mask: padding is attended to.

Source: Raffel et al. 2020, arXiv:1910.10683; v1.1 has a gated GELU and no biases.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cogvx_jax.axes import constrain
from cogvx_jax.configs import Compute, T5Config
from cogvx_jax.nn.attention import attention
from cogvx_jax.nn.linear import Dense
from cogvx_jax.nn.norms import RMSNorm
from cogvx_jax.nn.parameters import parameter
from cogvx_jax.nn.stacked import run_blocks


class T5Encoder(nn.Module):
    """Pre-norm blocks that share one table of relative position biases."""

    cfg: T5Config
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        cfg = self.cfg
        init = nn.initializers.normal(1.0)
        words = parameter(self, "embedding", init, ("vocab", "embed"), (cfg.vocab, cfg.width))
        x = words[ids].astype(self.compute.dtype)  # (B, L, D)
        init = nn.initializers.normal(cfg.width**-0.5)
        table = parameter(self, "position_bias", init, (None, "heads"), (cfg.buckets, cfg.heads)).astype(jnp.float32)
        bias = jnp.moveaxis(table[buckets(ids.shape[1], cfg)], -1, 0)  # (A, L, L)
        if self.compute.streamed and not self.is_initializing():
            x = run_blocks(Block(cfg, self.compute, parent=None), self.variables["params"]["blocks"], x, bias)
        else:
            blocks = nn.scan(
                Block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=cfg.layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            x, _ = blocks(cfg, self.compute, name="blocks")(x, bias)
        return RMSNorm(cfg.norm_eps, name="norm")(x)


class Block(nn.Module):
    """Self-attention without scaling, then a gated MLP; (B, L, D) -> (B, L, D)."""

    cfg: T5Config
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> tuple[jax.Array, None]:
        cfg = self.cfg
        dense = functools.partial(Dense, dtype=self.compute.dtype, bias=False)

        def init(fan):
            return nn.initializers.normal(fan**-0.5)

        def heads(name, scale):
            y = dense(inner, axes=("embed", "heads"), kernel_init=init(scale), name=name)(y_in)
            return jnp.swapaxes(y.reshape(*y.shape[:2], cfg.heads, cfg.head_dim), 1, 2)

        inner = cfg.heads * cfg.head_dim
        y_in = RMSNorm(cfg.norm_eps, name="norm1")(x)
        q, k, v = heads("q", cfg.width * cfg.head_dim), heads("k", cfg.width), heads("v", cfg.width)
        y = attention(q, k, v, scale=1.0, bias=bias)
        y = jnp.swapaxes(y, 1, 2).reshape(*x.shape[:2], inner)
        x = x + dense(cfg.width, axes=("heads", "embed"), kernel_init=init(inner), name="out")(y)

        y = RMSNorm(cfg.norm_eps, name="norm2")(x)
        gate = nn.gelu(
            dense(cfg.mlp, axes=("embed", "mlp"), kernel_init=init(cfg.width), name="gate")(y), approximate=True
        )
        y = gate * dense(cfg.mlp, axes=("embed", "mlp"), kernel_init=init(cfg.width), name="up")(y)
        x = x + dense(cfg.width, axes=("mlp", "embed"), kernel_init=init(cfg.mlp), name="down")(y)
        return constrain(x, "batch", None, None), None


def buckets(length: int, cfg: T5Config) -> np.ndarray:
    """Which row of the bias table a query and a key use, (L, L): by their distance, finer when near."""
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]  # key minus query
    half = cfg.buckets // 2
    exact = half // 2
    away = np.abs(distance)
    with np.errstate(divide="ignore"):
        far = np.log(away / exact) / math.log(cfg.max_distance / exact) * (half - exact)
    far = exact + np.where(away < exact, 0, far).astype(np.int64)
    return np.where(distance > 0, half, 0) + np.where(away < exact, away, np.minimum(far, half - 1))
