"""LPIPS: how far two pictures are apart in the features of VGG16, weighted as people judged likeness.

Source: Zhang et al. 2018, arXiv:1801.03924, version 0.1 of the package `lpips` with its network "vgg". The weights
come from a file; see `cogvx_jax.convert.read_lpips`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from cogvx_jax.nn.conv import kernel_init
from cogvx_jax.nn.parameters import parameter

DEPTHS = (2, 2, 3, 3, 3)  # convolutions of each stage of VGG16; features are taken after the last one's ReLU
WIDTHS = (64, 128, 256, 512, 512)
# Of the colours in [-1, 1]: mean and deviation of ImageNet.
MEAN = np.array([-0.030, -0.088, -0.188], np.float32)
DEVIATION = np.array([0.458, 0.448, 0.450], np.float32)


class LPIPS(nn.Module):
    """The distance of pictures (N, H, W, 3) in [-1, 1] and others of the same shape: (N,) float32, 0 for equal ones.

    H and W are at least 16. `widths` are the channels of each stage.
    """

    widths: tuple[int, ...] = WIDTHS

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        mean, deviation = (v[None, None, None] for v in (MEAN, DEVIATION))
        x, y = ((v.astype(jnp.float32) - mean) / deviation for v in (x, y))
        distance = jnp.zeros(len(x))
        for stage, (depth, width) in enumerate(zip(DEPTHS, self.widths, strict=True)):
            if stage:
                x, y = _halve(x), _halve(y)
            for i in range(depth):
                conv = Conv(width, name=f"conv_{stage}_{i}")
                x, y = nn.relu(conv(x)), nn.relu(conv(y))
            weight = parameter(self, f"weight_{stage}", nn.initializers.ones_init(), ("conv_in",), (width,))
            distance += jnp.mean(jnp.square(_unit(x) - _unit(y)) @ weight, axis=(1, 2))
        return distance


class Conv(nn.Module):
    """3x3 convolution with zeros around: (N, H, W, Ci) -> (N, H, W, C)."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        axes, shape = (None, None, "conv_in", "conv_out"), (3, 3, x.shape[-1], self.features)
        kernel = parameter(self, "kernel", kernel_init, axes, shape)
        bias = parameter(self, "bias", nn.initializers.zeros_init(), ("conv_out",), (self.features,))
        y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y + lax.broadcast_to_rank(bias, y.ndim)


def _halve(x: jax.Array) -> jax.Array:
    """The largest of each 2x2; an odd row or column at the end is dropped."""
    return nn.max_pool(x, (2, 2), (2, 2))


def _unit(x: jax.Array) -> jax.Array:
    """Features of length 1, or 0: the root's gradient at 0, which torch lets become NaN, is left out."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    some = square > 0
    return x / (jnp.where(some, jnp.sqrt(jnp.where(some, square, 1)), 0) + 1e-10)
