"""Real-ESRGAN's two networks, which make pictures larger and sharper: a compact one, and one of dense blocks.

They see one picture at a time, sRGB in [0, 1], and do not clip. `halo` is how many pixels around a pixel decide about
what becomes of it: a tile with so many more on every side gives what the whole picture gives.

Shapes: B pictures, H W pixels, C channels, s the scale.

Source: Wang et al. 2021, arXiv:2107.10833; `realesrgan/archs/srvgg_arch.py`, `basicsr/archs/rrdbnet_arch.py`.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from cogvx_jax.nn.conv2d import Conv2D, PReLU, pixel_shuffle, repeat_pixels

SLOPE = 0.2  # of the leaky ReLU in dense blocks
RESIDUAL = 0.2  # of what a dense block adds


class Upscaler(nn.Module):
    """(B, H, W, 3) -> (B, s H, s W, 3) float32."""

    @property
    def factor(self) -> int:
        """s."""
        raise NotImplementedError

    @property
    def halo(self) -> int:
        raise NotImplementedError

    @property
    def tile(self) -> int:
        """Pixels of a tile's side, halo not counted, by which memory is little and the halo no large part of it."""
        return 256

    @property
    def multiplications(self) -> int:
        """Of one pixel that comes in, each with an addition."""
        raise NotImplementedError


class CompactUpscaler(Upscaler):
    """A chain of convolutions at the small size, whose last one makes s² pixels of each; it adds to the picture.

    Attributes:
      layers: convolutions between the first and the last; 16 in animevideov3.
    """

    width: int = 64
    layers: int = 16
    scale: int = 4
    dtype: str = "float32"

    @property
    def factor(self) -> int:
        return self.scale

    @property
    def halo(self) -> int:
        return self.layers + 2  # exact: each convolution sees a pixel more

    @property
    def tile(self) -> int:
        return 384

    @property
    def multiplications(self) -> int:
        return 9 * self.width * (3 + self.layers * self.width + 3 * self.scale**2)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for layer in range(self.layers + 1):
            y = Conv2D(self.width, dtype=self.dtype, name=f"conv_{layer}")(y)
            y = PReLU(name=f"act_{layer}")(y)
        y = Conv2D(3 * self.scale**2, dtype=self.dtype, name=f"conv_{self.layers + 1}")(y)
        return pixel_shuffle(y, self.scale).astype(jnp.float32) + repeat_pixels(x, self.scale)


class DenseUpscaler(Upscaler):
    """Blocks of densely joined convolutions at the small size, then twice: pixels doubled, and a convolution. s is 4.

    Attributes:
      growth: channels that a convolution in a block adds to what it sees.
      blocks: 23 in x4plus, 6 in x4plus-anime.
    """

    width: int = 64
    growth: int = 32
    blocks: int = 23
    dtype: str = "float32"

    @property
    def factor(self) -> int:
        return 4

    @property
    def halo(self) -> int:
        """Not exact, which would be 15 times the blocks: what lies further away decides about less than rounding."""
        return min(15 * self.blocks + 5, 48)

    @property
    def multiplications(self) -> int:
        w, g = self.width, self.growth
        dense = sum((w + i * g) * g for i in range(4)) + (w + 4 * g) * w
        return 9 * (3 * w + 3 * self.blocks * dense + w * w + 4 * w * w + 16 * (2 * w * w + 3 * w))

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(Conv2D, self.width, dtype=self.dtype)
        first = conv(name="conv_first")(x)
        blocks = nn.scan(
            lambda block, y, _: (block(y), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.blocks,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        y, _ = blocks(ResidualBlock(self.width, self.growth, self.dtype, name="blocks"), first, None)
        y = first + conv(name="conv_body")(y)
        for name in ("conv_up1", "conv_up2"):
            y = _leaky(conv(name=name)(repeat_pixels(y, 2)))
        y = _leaky(conv(name="conv_hr")(y))
        return Conv2D(3, dtype=self.dtype, name="conv_last")(y).astype(jnp.float32)


class ResidualBlock(nn.Module):
    """Three dense blocks, and what came in: (B, H, W, C) -> the same shape."""

    width: int
    growth: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for i in range(1, 4):
            y = DenseBlock(self.width, self.growth, self.dtype, name=f"dense{i}")(y)
        return x + RESIDUAL * y


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees what came in and all that those before it made; the last one adds to it."""

    width: int
    growth: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        seen = [x]
        for i in range(1, 5):
            seen.append(_leaky(Conv2D(self.growth, dtype=self.dtype, name=f"conv{i}")(jnp.concatenate(seen, axis=-1))))
        last = Conv2D(self.width, dtype=self.dtype, name="conv5")(jnp.concatenate(seen, axis=-1))
        return x + RESIDUAL * last


def _leaky(x: jax.Array) -> jax.Array:
    return nn.leaky_relu(x, SLOPE)
