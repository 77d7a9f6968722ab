"""The image tokenizer: pictures to codes of one codebook at 1/4, 1/8 or 1/16 of their size, and back.

A picture goes through as a video of one frame, so the layers are those of the VAE.

Shapes: B pictures, H W pixels, h w codes, C channels.

Source: icetk 0.0.7, `icetk/vqvae`; its residual blocks are those of taming-transformers.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cogvx_jax.models.cogvideo2022.configs import ImageTokenizerConfig
from cogvx_jax.nn.conv import FrameConv, Pointwise
from cogvx_jax.nn.norms import GroupNorm
from cogvx_jax.nn.parameters import parameter

MEAN = np.array([0.79093, 0.76271, 0.75340], np.float32)  # of its training data, red, green, blue
DEVIATION = np.array([0.30379, 0.32279, 0.32800], np.float32)


class ImageTokenizer(nn.Module):
    """`encode` and `decode`; the rate is one of `cfg.rates`."""

    cfg: ImageTokenizerConfig
    dtype: str = "float32"

    def setup(self) -> None:
        cfg = self.cfg
        self.encoder = Encoder(cfg, self.dtype)
        self.halve = [FrameConv(cfg.code_width, stride=2, dtype=self.dtype) for _ in cfg.decoders[1:]]
        self.project = Pointwise(cfg.code_width, dtype=self.dtype)
        self.decoder = {str(rate): Decoder(cfg, rate, self.dtype) for rate in cfg.rates}
        self.codebook = parameter(
            self, "codebook", nn.initializers.normal(1.0), ("vocab", "embed"), (cfg.codes, cfg.code_width)
        )

    def __call__(self, pixels: jax.Array) -> dict[int, jax.Array]:
        """Encodes and decodes at every rate; it is there to declare all parameters."""
        return {rate: self.decode(self.encode(pixels, rate), rate) for rate in self.cfg.rates}

    def encode(self, pixels: jax.Array, rate: int = 8) -> jax.Array:
        """(B, H, W, 3) in [0, 1] -> codes (B, h, w) int32. H and W are multiples of the rate."""
        return self.nearest(self.features(pixels, rate))

    def features(self, pixels: jax.Array, rate: int = 8) -> jax.Array:
        """(B, H, W, 3) in [0, 1] -> (B, h, w, C) float32, of which `nearest` makes codes."""
        check_rate(self.cfg, rate)
        if any(n % rate or not n for n in pixels.shape[1:3]):
            raise ValueError(f"a picture of {pixels.shape[1]}x{pixels.shape[2]} has no codes at rate {rate}")
        x = self.encoder(((pixels - _over(MEAN)) / _over(DEVIATION))[:, None])
        for halve in self.halve[: round(math.log2(rate / min(self.cfg.rates)))]:
            x = _averaged(x) + halve(x)
        return self.project(x)[:, 0].astype(jnp.float32)

    def nearest(self, features: jax.Array) -> jax.Array:
        """(B, h, w, C) -> (B, h, w) int32: the codes at the smallest distance, of equal ones the first."""
        words = self.codebook.astype(jnp.float32)
        # |x - e|² without |x|², which is the same for all codes.
        products = jnp.einsum("bhwc,ec->bhwe", features, words, precision="highest")
        size = jnp.sum(jnp.square(words), axis=-1)
        return jnp.argmin(size[None, None, None] - 2 * products, axis=-1).astype(jnp.int32)

    def decode(self, codes: jax.Array, rate: int = 8) -> jax.Array:
        """(B, h, w) -> (B, H, W, 3) float32, about [0, 1] and not clipped."""
        return self.pixels(self.codebook[codes], rate)

    def pixels(self, states: jax.Array, rate: int = 8) -> jax.Array:
        """(B, h, w, C), those of codes or close to them -> (B, H, W, 3), as `decode`."""
        check_rate(self.cfg, rate)
        pixels = self.decoder[str(rate)](states[:, None])[:, 0]
        return pixels.astype(jnp.float32) * _over(DEVIATION) + _over(MEAN)


class Encoder(nn.Module):
    """(B, 1, H, W, 3) -> (B, 1, H / 4, W / 4, C)."""

    cfg: ImageTokenizerConfig
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg, conv = self.cfg, functools.partial(FrameConv, dtype=self.dtype)
        x = conv(cfg.channels, name="conv_in")(x)
        for level, times in enumerate(cfg.encoder):
            for i in range(cfg.encoder_blocks):
                x = Resnet(cfg, times * cfg.channels, self.dtype, name=f"down_{level}_resnet_{i}")(x)
            if level < len(cfg.encoder) - 1:
                x = conv(x.shape[-1], stride=2, name=f"down_{level}_downsample")(x)
        x = _middle(cfg, self.dtype, x)
        return conv(cfg.code_width, name="conv_out")(_activated(cfg, "norm_out", x))


class Decoder(nn.Module):
    """(B, 1, h, w, C) -> (B, 1, rate h, rate w, 3)."""

    cfg: ImageTokenizerConfig
    rate: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg, conv = self.cfg, functools.partial(FrameConv, dtype=self.dtype)
        levels = dict(cfg.decoders)[self.rate]
        x = conv(levels[-1] * cfg.channels, name="conv_in")(x)
        x = _middle(cfg, self.dtype, x)
        for level in reversed(range(len(levels))):
            x = Resnet(cfg, levels[level] * cfg.channels, self.dtype, name=f"up_{level}_resnet_0")(x)
            if self.rate == cfg.attends and level == len(levels) - 1:
                x = Attention(cfg, self.dtype, name=f"up_{level}_attention_0")(x)
            if level:
                x = conv(x.shape[-1], upsample=True, name=f"up_{level}_upsample")(x)
        return conv(3, name="conv_out")(_activated(cfg, "norm_out", x))


class Resnet(nn.Module):
    """norm, SiLU, convolution, twice, plus the input."""

    cfg: ImageTokenizerConfig
    channels: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for i in (1, 2):
            y = FrameConv(self.channels, dtype=self.dtype, name=f"conv{i}")(_activated(self.cfg, f"norm{i}", y))
        if x.shape[-1] != self.channels:
            x = Pointwise(self.channels, dtype=self.dtype, name="shortcut")(x)
        return x + y


class Attention(nn.Module):
    """Attention of one head among the pixels of a picture, plus the input."""

    cfg: ImageTokenizerConfig
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        (y,) = GroupNorm(self.cfg.groups, self.cfg.norm_eps, name="norm")(x)
        q, k, v = (Pointwise(x.shape[-1], dtype=self.dtype, name=name)(y) for name in "qkv")
        q, k, v = (part.reshape(len(x), -1, x.shape[-1]) for part in (q, k, v))
        scores = jnp.einsum("bsc,btc->bst", q, k, preferred_element_type=jnp.float32) * x.shape[-1] ** -0.5
        y = jnp.einsum("bst,btc->bsc", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v).reshape(x.shape)
        return x + Pointwise(x.shape[-1], dtype=self.dtype, name="out")(y)


def check_rate(cfg: ImageTokenizerConfig, rate: int) -> None:
    """Raises ValueError for a rate that the tokenizer does not have."""
    if rate not in cfg.rates:
        raise ValueError(f"the image tokenizer has no rate {rate}, only {', '.join(map(str, sorted(cfg.rates)))}")


def _middle(cfg: ImageTokenizerConfig, dtype: str, x: jax.Array) -> jax.Array:
    x = Resnet(cfg, x.shape[-1], dtype, name="mid_resnet_0")(x)
    x = Attention(cfg, dtype, name="mid_attention")(x)
    return Resnet(cfg, x.shape[-1], dtype, name="mid_resnet_1")(x)


def _activated(cfg: ImageTokenizerConfig, name: str, x: jax.Array) -> jax.Array:
    (y,) = GroupNorm(cfg.groups, cfg.norm_eps, name=name)(x)
    return nn.silu(y)


def _averaged(x: jax.Array) -> jax.Array:
    """(B, 1, H, W, C) -> (B, 1, H / 2, W / 2, C), the mean of 2x2."""
    b, f, h, w, c = x.shape
    return jnp.mean(x.reshape(b, f, h // 2, 2, w // 2, 2, c), axis=(3, 5))


def _over(values: np.ndarray) -> np.ndarray:
    return values[None, None, None]
