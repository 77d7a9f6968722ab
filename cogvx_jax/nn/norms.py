"""Normalisations. All of them compute in float32, whatever the type of their input."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from cogvx_jax.nn.backend import formulations
from cogvx_jax.nn.conv import Pointwise
from cogvx_jax.nn.parameters import parameter

Parts = tuple[jax.Array, ...]  # the frames of a video, first to last, cut into one or more arrays (B, F, H, W, C)


class Moments(NamedTuple):
    """Of every channel of a video, over its frames and pixels."""

    numbers: jax.Array  # in a channel, ()
    mean: jax.Array  # (B, C)
    square: jax.Array  # summed squares of what is left without the mean, (B, C)

    @classmethod
    def of(cls, parts: Parts | list[jax.Array]) -> "Moments":
        """In float32, in two passes as `group_affine`."""
        floats = [x.astype(jnp.float32) for x in parts]
        numbers = jnp.float32(sum(x[0, ..., 0].size for x in parts))
        mean = _summed(floats) / numbers
        return cls(numbers, mean, _summed([jnp.square(x - mean[:, None, None, None]) for x in floats]))

    @classmethod
    def none(cls, batch: int, channels: int) -> "Moments":
        """Those of nothing yet."""
        return cls(jnp.float32(0), jnp.zeros((batch, channels)), jnp.zeros((batch, channels)))

    def plus(self, other: "Moments") -> "Moments":
        """Of both videos together. Source: Chan et al. 1979, updating formulae for sample variances."""
        numbers, apart = self.numbers + other.numbers, other.mean - self.mean
        share = other.numbers / numbers
        square = self.square + other.square + jnp.square(apart) * (self.numbers * share)
        return Moments(numbers, self.mean + apart * share, square)


class LayerNorm(nn.Module):
    """Affine LayerNorm over the last axis, any shape."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale, bias = (jax.lax.broadcast_to_rank(v, x.ndim) for v in _affine(self, x.shape[-1]))
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
        return (y * jax.lax.broadcast_to_rank(scale, y.ndim)).astype(x.dtype)


class GroupNorm(nn.Module):
    """GroupNorm of video, (B, F, H, W, C): statistics over F, H, W and the C / groups channels.

    The frames come in one or more parts and go out so; their statistics are those of all of them, or `moments`, where
    the parts are a strip of what is normalised.
    """

    groups: int
    eps: float

    @nn.compact
    def __call__(self, *parts: jax.Array, moments: Moments | None = None) -> Parts:
        scale, bias = _affine(self, parts[0].shape[-1])
        if moments is None:
            shift, gain, offset = group_affine(parts, scale, bias, groups=self.groups, eps=self.eps)
        else:
            shift, gain, offset = affine_of(moments, scale, bias, groups=self.groups, eps=self.eps)
        return tuple(((x.astype(jnp.float32) - shift) * gain + offset).astype(x.dtype) for x in parts)


class SpatialNorm(nn.Module):
    """The decoder's norm: GroupNorm whose gain and offset come from the latents, pixel by pixel.

    x (B, F, H, W, C) and latents (B, T, h, w, 16), in as many parts -> parts (B, F, H, W, C). F, H, W of a
    part are whole multiples of its T, h, w. `moments` as for `GroupNorm`.
    Source: Zheng et al. 2022 (MoVQ), arXiv:2209.09002, as in the reference's VAE.
    """

    groups: int
    eps: float

    @nn.compact
    def __call__(self, parts: Parts, latents: Parts, *, moments: Moments | None = None) -> Parts:
        channels = parts[0].shape[-1]
        norm = GroupNorm(self.groups, self.eps, name="norm")
        gain = Pointwise(channels, dtype="float32", name="gain")
        offset = Pointwise(channels, dtype="float32", name="offset")
        full = formulations().spatial_norm == "full"
        if full:
            # Gain and offset need no x: without the barrier a compiler makes those of all layers first, and holds them.
            parts, latents = jax.lax.optimization_barrier((parts, latents))

        def spread(pointwise: Pointwise, z: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            # A 1x1 convolution of repeated values is the repeated convolution: do it where it is small. Not on TPUs,
            # which write the repeated gains out.
            return pointwise(stretch(z, shape)) if full else stretch(pointwise(z), shape)

        return tuple(
            (y.astype(jnp.float32) * spread(gain, z, y.shape[1:4]) + spread(offset, z, y.shape[1:4])).astype(y.dtype)
            for y, z in zip(norm(*parts, moments=moments), latents, strict=True)
        )


def group_affine(
    parts: Parts, scale: jax.Array, bias: jax.Array, *, groups: int, eps: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """GroupNorm as `(x - shift) * gain + offset`: each (B, 1, 1, 1, C) for parts (B, F, H, W, C) of a video.

    Two passes over `x`, in float32. The first sums `x`: the shift is a group's mean. The second sums `x - shift` and
    its square. A sum of numbers that are large against their spread loses digits; the second pass restores them.
    E[x^2] - E[x]^2 would take one pass, and at a mean of 1000 deviations give nothing but rounding.
    """
    batch, channels = parts[0].shape[0], parts[0].shape[-1]

    def mean_of(arrays: list[jax.Array]) -> jax.Array:
        total = sum(jnp.sum(x, axis=(1, 2, 3)) for x in arrays)  # (B, C)
        count = sum(x.size for x in arrays) // (batch * groups)
        return jnp.sum(jnp.reshape(total, (batch, groups, -1)), axis=-1) / count  # (B, groups)

    def over_video(x: jax.Array) -> jax.Array:
        return jnp.repeat(x, channels // groups, axis=-1)[:, None, None, None]  # (B, 1, 1, 1, C)

    floats = [x.astype(jnp.float32) for x in parts]
    # The result depends on the shift by rounding alone, and so do its gradients.
    shift = over_video(jax.lax.stop_gradient(mean_of(floats)))
    shifted = [x - shift for x in floats]
    mean, square = mean_of(shifted), mean_of([jnp.square(x) for x in shifted])
    inverse = jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0) + eps)
    scale, bias = (jax.lax.broadcast_to_rank(v, 5) for v in (scale, bias))
    gain = over_video(inverse) * scale
    return shift, gain, bias - over_video(mean) * gain


def affine_of(
    moments: Moments, scale: jax.Array, bias: jax.Array, *, groups: int, eps: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `group_affine`, by the moments of the whole video."""
    batch, channels = moments.mean.shape
    each = (batch, groups, channels // groups)
    means = jnp.reshape(moments.mean, each)
    mean = jnp.mean(means, axis=-1, keepdims=True)
    variance = jnp.reshape(moments.square, each) / moments.numbers + jnp.square(means - mean)
    inverse = jax.lax.rsqrt(jnp.mean(variance, axis=-1, keepdims=True) + eps)

    def over_video(x: jax.Array) -> jax.Array:
        return jnp.reshape(jnp.broadcast_to(x, each), (batch, 1, 1, 1, channels))

    scale, bias = (jax.lax.broadcast_to_rank(v, 5) for v in (scale, bias))
    return over_video(mean), over_video(inverse) * scale, bias


def _summed(parts: list[jax.Array]) -> jax.Array:
    """Over frames and pixels, (B, F, H, W, C) -> (B, C)."""
    return functools.reduce(jnp.add, (jnp.sum(x, axis=(1, 2, 3)) for x in parts))


def stretch(latents: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Repeats (B, T, h, w, C) to (B, F, H, W, C), `shape` being F, H, W; nearest neighbour."""
    z = latents
    for axis, size in enumerate(shape, 1):
        z = jnp.repeat(z, size // z.shape[axis], axis=axis)
    return z


def _affine(module: nn.Module, features: int) -> tuple[jax.Array, jax.Array]:
    scale = parameter(module, "scale", nn.initializers.ones_init(), ("norm",), (features,))
    bias = parameter(module, "bias", nn.initializers.zeros_init(), ("norm",), (features,))
    return scale, bias
