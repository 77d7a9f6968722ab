"""Layers of networks that see single pictures: convolutions with zeros around, PReLU, and pixels out of channels.

Shapes: B pictures, H W pixels, C channels. Kernels are (h, w, in, out).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from cogvx_jax.nn.backend import formulations
from cogvx_jax.nn.conv import kernel_init
from cogvx_jax.nn.parameters import parameter

LAYOUT = ("NHWC", "HWIO", "NHWC")
FEW = 16  # channels, fewer than which lie apart on TPUs
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

    The kernel is that of the equal convolution of a picture with zeros between its pixels ("dilated"): torch's, turned
    by 180 degrees. Of its 16 products 4 are not of such zeros, others for each of 2x2 neighbours. "phase" computes
    these alone, as four channels in place of one of a 2x2 convolution.
    """

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = parameter(self, "kernel", kernel_init, KERNEL, (4, 4, x.shape[-1], self.features))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if formulations().transposed_conv == "phase":
            return _plus_bias(self, _by_phase(x, kernel))
        y = lax.conv_general_dilated(x, kernel, (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2), dimension_numbers=LAYOUT)
        return _plus_bias(self, y)


def _by_phase(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`TransposedConv2D` without its bias. Even rows come of a row and the one before it, odd ones of the next one."""
    b, h, w, channels = x.shape
    kernel = kernel.reshape(2, 2, 2, 2, channels, -1).transpose(0, 2, 4, 1, 3, 5)  # taps (2, 2), in, phases (2, 2), out
    features = kernel.shape[-1]
    y = lax.conv_general_dilated(
        x, kernel.reshape(2, 2, channels, -1), (1, 1), ((1, 1), (1, 1)), dimension_numbers=LAYOUT
    ).reshape(b, h + 1, w + 1, 2, 2, features)
    rows = [jnp.stack([y[:, i : i + h, j : j + w, i, j] for j in range(2)], axis=3) for i in range(2)]
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, features)


class PReLU(nn.Module):
    """(..., C) -> (..., C): values below 0 times a slope of their channel."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        slope = parameter(self, "slope", nn.initializers.constant(0.25), ("conv_out",), x.shape[-1:])
        return jnp.where(x >= 0, x, x * lax.broadcast_to_rank(slope.astype(x.dtype), x.ndim))


def pixel_shuffle(x: jax.Array, factor: int) -> jax.Array:
    """(B, H, W, C factor²) -> (B, H factor, W factor, C); a channel's pixels lie beside each other, rows first."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, c // factor**2, factor, factor)
    if formulations().pixels == "product":
        rows, columns = (np.eye(side * factor).reshape(side, factor, side * factor) for side in (h, w))
        return _product("bhwcij,wjv,hiu->bcuv", x, columns, rows)
    x = x.transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(b, h * factor, w * factor, c // factor**2)


def repeat_pixels(x: jax.Array, factor: int) -> jax.Array:
    """(B, H, W, C) -> (B, H factor, W factor, C), each pixel a square."""
    if formulations().pixels == "product" and x.shape[-1] < FEW:
        rows, columns = (np.repeat(np.eye(side), factor, axis=1) for side in x.shape[1:3])
        return _product("bhwc,wv,hu->bcuv", x, columns, rows)
    return jnp.repeat(jnp.repeat(x, factor, axis=1), factor, axis=2)


def _product(axes: str, x: jax.Array, columns: np.ndarray, rows: np.ndarray) -> jax.Array:
    """`x` times numbers of which one is 1 and the others 0, so that values come whole where they belong.

    TPUs hold 8 rows of 128 pixels together. To put others between them takes copies that are mostly empty; the matrix
    unit does it at once.
    """
    precision = lax.Precision.DEFAULT if x.dtype == jnp.bfloat16 else lax.Precision.HIGHEST
    places = (jnp.asarray(numbers, x.dtype) for numbers in (columns, rows))
    return jnp.einsum(axes, x, *places, precision=precision, optimize=[(0, 1), (0, 1)]).transpose(0, 2, 3, 1)


def _plus_bias(module: nn.Module, y: jax.Array) -> jax.Array:
    bias = parameter(module, "bias", nn.initializers.zeros_init(), ("conv_out",), y.shape[-1:])
    return y + lax.broadcast_to_rank(bias.astype(y.dtype), y.ndim)
