"""Normalisations. All of them compute in float32, whatever the type of their input."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from cogvx_jax.nn.backend import formulations
from cogvx_jax.nn.conv import Pointwise
from cogvx_jax.nn.parameters import parameter


class LayerNorm(nn.Module):
    """Affine LayerNorm over the last axis, any shape."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale, bias = _affine(self, x.shape[-1])
        dtype = x.dtype
        x = x.astype(jnp.float32)
        mean = jnp.mean(x, axis=-1, keepdims=True)
        centred = x - mean
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.eps) * scale + bias).astype(dtype)


class RMSNorm(nn.Module):
    """Scale by the root mean square over the last axis; no mean is subtracted, no bias added."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = parameter(self, "scale", nn.initializers.ones_init(), ("norm",), (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * scale).astype(x.dtype)


class GroupNorm(nn.Module):
    """GroupNorm of video, (B, F, H, W, C): statistics over F, H, W and the C / groups channels."""

    groups: int
    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale, bias = _affine(self, x.shape[-1])
        gain, offset = group_affine(x, scale, bias, groups=self.groups, eps=self.eps)
        return (x.astype(jnp.float32) * gain + offset).astype(x.dtype)


class SpatialNorm(nn.Module):
    """The decoder's norm: GroupNorm whose gain and offset come from the latents, pixel by pixel.

    x (B, F, H, W, C) and latents (B, T, h, w, 16) -> (B, F, H, W, C). F, H, W are whole multiples
    of T, h, w, but for an odd F, whose first frame belongs to the first latent alone.
    Source: Zheng et al. 2022 (MoVQ), arXiv:2209.09002, as in the reference's VAE.
    """

    groups: int
    eps: float

    @nn.compact
    def __call__(self, x: jax.Array, latents: jax.Array) -> jax.Array:
        norm = GroupNorm(self.groups, self.eps, name="norm")
        gain = Pointwise(x.shape[-1], dtype="float32", name="gain")
        offset = Pointwise(x.shape[-1], dtype="float32", name="offset")
        if formulations().spatial_norm == "full":
            # Gain and offset need no x: without the barrier a compiler makes those of all layers first, and holds them.
            x, latents = jax.lax.optimization_barrier((x, latents))
            latents = stretch(latents, x.shape[1:4])
            return (norm(x).astype(jnp.float32) * gain(latents) + offset(latents)).astype(x.dtype)
        # A 1x1 convolution of repeated values is the repeated convolution: do it where it is small. Not on TPUs,
        # which write the repeated gains out.
        g, o = stretch(gain(latents), x.shape[1:4]), stretch(offset(latents), x.shape[1:4])
        return (norm(x).astype(jnp.float32) * g + o).astype(x.dtype)


def group_affine(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, groups: int, eps: float
) -> tuple[jax.Array, jax.Array]:
    """GroupNorm as `x * gain + offset`: gain and offset (B, 1, 1, 1, C) for x (B, F, H, W, C).

    One pass over `x`: its sum and its sum of squares, in float32.
    """
    batch, channels = x.shape[0], x.shape[-1]
    x = x.astype(jnp.float32)
    moments = [jnp.sum(m, axis=(1, 2, 3)) for m in (x, jnp.square(x))]  # (B, C) each
    count = x.size // (batch * groups)
    mean, square = (jnp.sum(m.reshape(batch, groups, -1), axis=-1) / count for m in moments)
    inverse = jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0) + eps)  # (B, groups)
    mean, inverse = (jnp.repeat(v, channels // groups, axis=-1) for v in (mean, inverse))
    gain = inverse * scale
    offset = bias - mean * gain
    return gain[:, None, None, None], offset[:, None, None, None]


def stretch(latents: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Repeats (B, T, h, w, C) to (B, F, H, W, C), `shape` being F, H, W; nearest neighbour.

    Where F is odd and more than one, the first latent gives the first frame and the others the rest.
    """
    frames, height, width = shape
    z = jnp.repeat(jnp.repeat(latents, height // latents.shape[2], axis=2), width // latents.shape[3], axis=3)
    if frames == z.shape[1]:
        return z
    if frames % 2 == 0:
        return jnp.repeat(z, frames // z.shape[1], axis=1)
    rest = jnp.repeat(z[:, 1:], (frames - 1) // (z.shape[1] - 1), axis=1)
    return jnp.concatenate([z[:, :1], rest], axis=1)


def _affine(module: nn.Module, features: int) -> tuple[jax.Array, jax.Array]:
    scale = parameter(module, "scale", nn.initializers.ones_init(), ("norm",), (features,))
    bias = parameter(module, "bias", nn.initializers.zeros_init(), ("norm",), (features,))
    return scale, bias
