"""Tora: an extractor of features of a trajectory, and a fuser in each block that lets the video tokens follow it.

Shapes: B batch, T h w latents or tokens, C channels of features, D width, S tokens.
Source: Zhang et al. 2024, arXiv:2407.21705; ComfyUI-CogVideoXWrapper fdb8abd, `tora/traj_module.py`.
"""

import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from cogvx_jax.axes import constrain
from cogvx_jax.configs import ToraConfig
from cogvx_jax.nn.conv import FrameConv, kernel_init
from cogvx_jax.nn.norms import GroupNorm
from cogvx_jax.nn.parameters import parameter

GROUPS = 32  # of the fuser's norm, where they divide the width
EPS = 1e-5


class Motion(NamedTuple):
    """What a trajectory does in the blocks, layers in front; of one block its entry."""

    features: Any  # (layers, 1, T, h, w, C) of tokens
    fusers: Any  # parameters of `Fuser`

    def fuse(self, x: jax.Array, text_length: int, tokens: int, dtype: str) -> jax.Array:
        """The tokens (B, S, D) that attention gets; the text and the padding of a mesh are left alone."""
        grid = self.features.shape[-4:-1]
        video = x[:, text_length:tokens].reshape(x.shape[0], *grid, x.shape[-1])
        fused = cast(jax.Array, Fuser(dtype).apply({"params": self.fusers}, video, self.features))
        fused = fused.reshape(x.shape[0], -1, x.shape[-1]).astype(x.dtype)
        return constrain(jnp.concatenate([x[:, :text_length], fused, x[:, tokens:]], axis=1), "batch", "seq", None)


class Tora(nn.Module):
    """All that its files hold: the features of latents (B, T, h, w, 16), and tokens (B, T, h, w, D) with them fused."""

    cfg: ToraConfig

    def setup(self):
        self.extractor = Extractor(self.cfg)
        fuser = nn.scan(
            Fuser,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.cfg.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
            methods=["step"],
        )
        self.fusers = fuser()

    def __call__(self, latents: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        features = self.extractor(latents)
        return features, self.fusers.step(tokens, features)[0]

    def extract(self, latents: jax.Array) -> jax.Array:
        """Features of a trajectory's latents (B, T, h, w, 16): (layers, B, T, h / 2, w / 2, C)."""
        return self.extractor(latents)


class Extractor(nn.Module):
    """Latents (B, T, h, w, 16) to features for each block, (layers, B, T, h / 2, w / 2, C); frames know no other."""

    cfg: ToraConfig

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        cfg = self.cfg
        x = rearrange(latents, "b t (h r) (w s) c -> b t h w (c r s)", r=cfg.patch, s=cfg.patch)
        x = FrameConv(cfg.channels, name="conv_in")(x)
        scan = nn.scan(
            lambda block, x, _: (block(x),) * 2,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=cfg.layers * cfg.blocks,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        _, each = scan(Residual(name="blocks"), x, None)
        return each[cfg.blocks - 1 :: cfg.blocks]


class Residual(nn.Module):
    """Twice norm, ReLU, convolution, added to (B, T, h, w, C)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for i in (1, 2):
            y = FrameConv(x.shape[-1], name=f"conv{i}")(nn.relu(FixedNorm(name=f"norm{i}")(y)))
        return y + x


class FixedNorm(nn.Module):
    """BatchNorm by the statistics of its training, (..., C)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
        inits = {"scale": ones, "bias": zeros, "mean": zeros, "variance": ones}
        own = {name: parameter(self, name, init, ("norm",), x.shape[-1:]) for name, init in inits.items()}
        gain = own["scale"] * jax.lax.rsqrt(own["variance"] + EPS)
        shift = own["bias"] - own["mean"] * gain
        gain, shift = (jax.lax.broadcast_to_rank(y, x.ndim) for y in (gain, shift))
        return x * gain + shift


class Fuser(nn.Module):
    """Tokens (B, T, h, w, D) scaled and shifted as features (1 or B, T, h, w, C) say."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: jax.Array, features: jax.Array) -> jax.Array:
        width = tokens.shape[-1]

        def made(name: str) -> jax.Array:
            y = FrameConv(width // 4, dtype=self.dtype, name=f"{name}_spatial")(features)
            return TemporalConv(width, self.dtype, name=f"{name}_temporal")(y)

        gamma, beta = made("gamma"), made("beta")
        frames = tokens.reshape(-1, 1, *tokens.shape[2:])  # statistics are of a frame
        normed = GroupNorm(math.gcd(GROUPS, width), EPS, name="norm")(frames)[0].reshape(tokens.shape)
        return tokens + normed * gamma + beta

    def step(self, tokens: jax.Array, features: jax.Array) -> tuple[jax.Array, None]:
        return self(tokens, features), None


class TemporalConv(nn.Module):
    """Convolution over three frames, the first and last of which are repeated: (B, T, h, w, Ci) -> (B, T, h, w, C).

    The source convolves a single frame over its pixels in place of that.
    """

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        axes = (None, "conv_in", "conv_out")
        kernel = parameter(self, "kernel", kernel_init, axes, (3, x.shape[-1], self.features)).astype(self.dtype)
        bias = parameter(self, "bias", nn.initializers.zeros_init(), axes[2:], (self.features,)).astype(self.dtype)
        frames = x.shape[1]
        padded = jnp.concatenate([x[:, :1], x, x[:, -1:]], axis=1)
        y = jnp.concatenate([padded[:, i : i + frames] for i in range(3)], axis=-1) @ kernel.reshape(-1, self.features)
        return y + jax.lax.broadcast_to_rank(bias, y.ndim)
