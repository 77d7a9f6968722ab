"""The ControlNet of TheDenk: a short transformer beside the first blocks of another, led by a control video.

Shapes: B batch, F frames, H W pixels, T h w latents, L text tokens, S tokens, D width, E channels of the control.
Source: TheDenk/cogvideox-controlnet.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from cogvx_jax.axes import constrain, whole
from cogvx_jax.configs import Compute, ControlNetConfig, TransformerConfig
from cogvx_jax.models.transformer import Block, TimeEmbedding, check_shapes, joint_rope, joint_tokens, pad_tokens
from cogvx_jax.nn.conv import Pointwise
from cogvx_jax.nn.embeddings import patchify, sincos_table, sinusoid
from cogvx_jax.nn.linear import torch_linear
from cogvx_jax.nn.norms import GroupNorm
from cogvx_jax.nn.parameters import parameter
from cogvx_jax.nn.remat import rematerialized

GROUPS = 2  # of the encoder's norms
GROUP_NORM_EPS = 1e-5


class ControlBranch(nn.Module):
    """What a control video adds to the tokens after the first blocks of a transformer.

    `base` is that transformer: where its positions are rotary, so are those here.
    """

    cfg: ControlNetConfig
    base: TransformerConfig
    compute: Compute = Compute()

    def setup(self):
        self.encoder = FrameEncoder(self.cfg)

    def __call__(self, latents: jax.Array, frames: jax.Array, text: jax.Array, t: jax.Array) -> jax.Array:
        """`states` of frames that are not encoded yet."""
        return self.states(latents, self.encode(frames), text, t)

    def encode(self, frames: jax.Array) -> jax.Array:
        """Frames (B, F, H, W, 3) in [-1, 1] to the control (B, T, h, w, E) float32, once for all steps."""
        return self.encoder(frames)

    @nn.compact
    def states(self, latents: jax.Array, control: jax.Array, text: jax.Array, t: jax.Array) -> jax.Array:
        """What each block gives, (layers, B, S, D of `base`), zeros at the text and at the padding of a mesh.

        Args:
          latents: (B, T, h, w, C), the noisy ones alone.
          control: of `encode`.
          text: (B, L, text_dim), as the transformer gets it.
          t: (B,) training timesteps.
        Raises: ValueError where the shapes cannot be this model's.
        """
        cfg = dataclasses.replace(self.cfg.transformer, text_length=self.base.text_length)
        compute = self.compute
        x = jnp.concatenate([latents, control.astype(latents.dtype)], axis=-1)
        check_shapes(cfg, x.shape, text.shape)
        frames, length = x.shape[1], text.shape[1]
        grid = (frames, x.shape[2] // cfg.patch, x.shape[3] // cfg.patch)
        time = TimeEmbedding(cfg.time_dim, name="time")(sinusoid(t, cfg.width))
        x = joint_tokens(cfg, compute, patchify(x, cfg), text)
        tokens = x.shape[1]
        if self.cfg.adds_positions:
            table = np.pad(sincos_table(cfg, *grid), ((length, 0), (0, 0)))
            x = x + jax.lax.broadcast_to_rank(jnp.asarray(table, x.dtype), 3)
        rope = None if self.base.position == "sincos" else joint_rope(self.base, length, grid)
        x, rope = pad_tokens(x, rope)

        def through(block, x, _):
            x, _ = block(x, time, rope, None)
            return x, x

        scan = nn.scan(
            through,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=cfg.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        block = rematerialized(Block, compute.remat)(cfg, compute, length, tokens, frames, name="blocks")
        _, states = scan(block, constrain(x, "batch", "seq", None), None)
        if self.cfg.out_dim is not None:
            states = Projectors(self.cfg.out_dim, compute.dtype, name="projectors")(states)
        place = jnp.arange(states.shape[2])[None, None, :, None]
        states = jnp.where((place >= length) & (place < tokens), states, 0)
        return constrain(states, None, "batch", "seq", None)


class FrameEncoder(nn.Module):
    """Frames (B, F, H, W, 3) to (B, T, h, w, E), in float32: no frame knows another but where time is halved."""

    cfg: ControlNetConfig

    @nn.compact
    def __call__(self, frames: jax.Array) -> jax.Array:
        cfg, scale = self.cfg, self.cfg.downscale
        x = rearrange(frames, "b f (h r) (w s) c -> b f h w (c r s)", r=scale, s=scale)
        for name, channels in (("first", cfg.frame_channels // 2), ("second", cfg.control_channels)):
            x = Pointwise(channels, name=name)(x)
            each = x.reshape(-1, 1, *x.shape[2:])  # statistics are of a frame
            x = GroupNorm(GROUPS, GROUP_NORM_EPS, name=f"{name}_norm")(each)[0].reshape(x.shape)
            x = halve_time(nn.relu(x))
        return x


class Projectors(nn.Module):
    """A linear layer for each block: (layers, B, S, D) -> (layers, B, S, features)."""

    features: int
    dtype: str

    @nn.compact
    def __call__(self, states: jax.Array) -> jax.Array:
        layers, width = states.shape[0], states.shape[-1]
        names = ("layers", "embed", None)
        kernel = parameter(self, "kernel", torch_linear, names, (layers, width, self.features))
        bias = parameter(self, "bias", nn.initializers.zeros_init(), ("layers", None), (layers, self.features))
        y = jnp.einsum("ibsd,ide->ibse", states, whole(kernel.astype(self.dtype), names))
        return y + bias.astype(self.dtype)[:, None, None]


def halve_time(x: jax.Array) -> jax.Array:
    """Means of pairs of frames, (B, F, ...) -> (B, F / 2 rounded up, ...); an odd count keeps its first frame."""
    odd = x.shape[1] % 2
    pairs = x[:, odd:].reshape(x.shape[0], -1, 2, *x.shape[2:]).mean(axis=2)
    return jnp.concatenate([x[:, :odd], pairs], axis=1)


def added_states(
    branches: Sequence[ControlBranch],
    params: Sequence[Any],
    weights: Sequence[jax.Array],
    latents: jax.Array,
    controls: Sequence[jax.Array],
    text: jax.Array,
    t: jax.Array,
) -> jax.Array:
    """What several branches add together, (n, B, S, D), of the latents' first channels, which are the noisy ones."""
    states = []
    for branch, own, control in zip(branches, params, controls, strict=True):
        noisy = latents[..., : branch.cfg.latent_channels]
        states.append(cast(jax.Array, branch.apply({"params": own}, noisy, control, text, t, method="states")))
    return weighted_sum(states, weights)


def weighted_sum(states: Sequence[jax.Array], weights: Sequence[jax.Array]) -> jax.Array:
    """States (n, B, S, D) of several branches, each times weights (n,) of its blocks, added up; n is the largest."""
    count = max(len(one) for one in weights)
    total: jax.Array | float = 0.0
    for one, weight in zip(states, weights, strict=True):
        own = one.astype(jnp.float32) * weight[:, None, None, None]
        total = total + jnp.pad(own, ((0, count - len(weight)), (0, 0), (0, 0), (0, 0)))
    return jnp.asarray(total).astype(states[0].dtype)
