"""Layers of networks that see single pictures: convolutions with zeros around, PReLU, and pixels out of channels.

Shapes: B pictures, H W pixels, C channels. Kernels are (h, w, in, out).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from cogvx_jax.nn.conv import kernel_init
from cogvx_jax.nn.parameters import parameter

LAYOUT = ("NHWC", "HWIO", "NHWC")
KERNEL = (None, None, "conv_in", "conv_out")


class Conv2D(nn.Module):
    """3x3 convolution: (B, H, W, Ci) -> (B, H / stride, W / stride, C), rounded up."""

    features: int
    stride: int = 1
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = parameter(self, "kernel", kernel_init, KERNEL, (3, 3, x.shape[-1], self.features))
        x, strides = x.astype(self.dtype), (self.stride, self.stride)
        y = lax.conv_general_dilated(x, kernel.astype(x.dtype), strides, ((1, 1), (1, 1)), dimension_numbers=LAYOUT)
        return _plus_bias(self, y)


class TransposedConv2D(nn.Module):
    """Transposed 4x4 convolution of stride 2: (B, H, W, Ci) -> (B, 2H, 2W, C).

    The kernel is that of the equal convolution of a picture with zeros between its pixels: torch's, turned by 180
    degrees.
    """

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = parameter(self, "kernel", kernel_init, KERNEL, (4, 4, x.shape[-1], self.features))
        x = x.astype(self.dtype)
        y = lax.conv_general_dilated(
            x, kernel.astype(x.dtype), (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2), dimension_numbers=LAYOUT
        )
        return _plus_bias(self, y)


class PReLU(nn.Module):
    """(..., C) -> (..., C): values below 0 times a slope of their channel."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        slope = parameter(self, "slope", nn.initializers.constant(0.25), ("conv_out",), x.shape[-1:])
        return jnp.where(x >= 0, x, x * lax.broadcast_to_rank(slope.astype(x.dtype), x.ndim))


def pixel_shuffle(x: jax.Array, factor: int) -> jax.Array:
    """(B, H, W, C factor²) -> (B, H factor, W factor, C); a channel's pixels lie beside each other, rows first."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, c // factor**2, factor, factor).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(b, h * factor, w * factor, c // factor**2)


def repeat_pixels(x: jax.Array, factor: int) -> jax.Array:
    """(B, H, W, C) -> (B, H factor, W factor, C), each pixel a square."""
    return jnp.repeat(jnp.repeat(x, factor, axis=1), factor, axis=2)


def _plus_bias(module: nn.Module, y: jax.Array) -> jax.Array:
    bias = parameter(module, "bias", nn.initializers.zeros_init(), ("conv_out",), y.shape[-1:])
    return y + lax.broadcast_to_rank(bias.astype(y.dtype), y.ndim)
