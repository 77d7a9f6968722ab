"""The tiny autoencoder of taehv for CogVideoX, "taecvx": latents to pixels in a fraction of the VAE's time, lossy.

Convolutions see one frame; memory blocks see the frame before, too. The frames of a clip may come in batches of any
sizes, with the same result. It has the interface of `models.vae.VAE`.

Shapes: B batch, T latent frames, F frames, h w latents, H W pixels, C channels.

Source: https://github.com/madebyollin/taehv, `taehv.py`.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from cogvx_jax.axes import constrain
from cogvx_jax.configs import Compute, VAEConfig
from cogvx_jax.models.vae import VAE, Cache
from cogvx_jax.nn.conv import kernel_init, per_frame
from cogvx_jax.nn.parameters import parameter

WIDTHS = (256, 128, 64, 64)  # of the decoder's levels; the encoder has the last everywhere
GROWTH = (1, 2, 2)  # frames that one becomes after each level but the last
BLOCKS = 3  # memory blocks of a level
FIRST = 3  # frames before the first: the decoder makes four of every latent frame


def vae_of(cfg: VAEConfig, compute: Compute) -> VAE:
    """The module of a configuration."""
    return TAEHV(cfg, compute) if cfg.taehv else VAE(cfg, compute)


class TAEHV(VAE):
    """`VAE` of other parameters. Its posterior has no spread, so samples of it are its mean."""

    def setup(self):
        self.encoder = Encoder(self.cfg, self.compute)
        self.decoder = Decoder(self.cfg, self.compute)


class Encoder(nn.Module):
    """(B, F, H, W, 3) in [-1, 1] -> (B, T, h, w, 2 C); the last frame is repeated until four divide their count."""

    cfg: VAEConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array, cache: Cache | None = None) -> tuple[jax.Array, Cache]:
        dtype, width, new = self.compute.dtype, WIDTHS[-1], dict[str, jax.Array]()
        x = (x.astype(dtype) + 1) / 2
        x = jnp.concatenate([x, jnp.repeat(x[:, -1:], -x.shape[1] % 4, axis=1)], axis=1)
        x = nn.relu(Conv(width, dtype=dtype, name="conv_in")(x))
        for level, count in enumerate(reversed(GROWTH)):
            x = Conv(width, size=1, bias=False, dtype=dtype, name=f"level_{level}_pool")(_joined(x, count))
            x = Conv(width, stride=2, bias=False, dtype=dtype, name=f"level_{level}_conv")(x)
            x = _remembering(f"level_{level}", width, dtype, x, cache, new)
        mean = Conv(self.cfg.latent_channels, dtype=dtype, name="conv_out")(x)
        return jnp.concatenate([mean, jnp.full_like(mean, -30)], axis=-1), new


class Decoder(nn.Module):
    """(B, T, h, w, C) -> pixels (B, F, H, W, 3), not clipped. Of an odd T that begins a clip, F is 4T - 3, else 4T."""

    cfg: VAEConfig
    compute: Compute

    @nn.compact
    def __call__(self, latents: jax.Array, cache: Cache | None = None) -> tuple[jax.Array, Cache]:
        dtype, new = self.compute.dtype, dict[str, jax.Array]()
        x = jnp.tanh(latents.astype(dtype) / 3) * 3
        x = nn.relu(Conv(WIDTHS[0], dtype=dtype, name="conv_in")(x))
        for level, (width, count) in enumerate(zip(WIDTHS, GROWTH, strict=False)):
            x = _remembering(f"level_{level}", width, dtype, x, cache, new)
            # It sees single pixels, so they are doubled after it, not before.
            x = _apart(Conv(width * count, size=1, bias=False, dtype=dtype, name=f"level_{level}_grow")(x), count)
            x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
            x = Conv(WIDTHS[level + 1], bias=False, dtype=dtype, name=f"level_{level}_conv")(x)
        x = Conv(3, dtype=dtype, name="conv_out")(nn.relu(x))
        if cache is None and latents.shape[1] % 2:
            x = x[:, FIRST:]
        return 2 * x - 1, new


class Memory(nn.Module):
    """Three convolutions of a frame and the one before it, plus the frame; zeros come before the first."""

    features: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, before: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        before = jnp.zeros_like(x[:, :1]) if before is None else before.astype(x.dtype)
        y = jnp.concatenate([x, jnp.concatenate([before, x[:, :-1]], axis=1)], axis=-1)
        for i in range(3):
            y = Conv(self.features, dtype=self.dtype, name=f"conv{i + 1}")(y if i == 0 else nn.relu(y))
        return nn.relu(y + x), x[:, -1:]


class Conv(nn.Module):
    """Convolution of each frame with zeros around it: (B, F, H, W, Ci) -> (B, F, H / stride, W / stride, C)."""

    features: int
    size: int = 3
    stride: int = 1
    bias: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = parameter(self, "kernel", kernel_init, (None, None, "conv_in", "conv_out"), shape)
        around = self.size // 2
        y = per_frame(x, kernel.astype(self.dtype), strides=self.stride, padding=(around, around))
        if self.bias:
            bias = parameter(self, "bias", nn.initializers.zeros_init(), ("conv_out",), y.shape[-1:])
            y += lax.broadcast_to_rank(bias.astype(y.dtype), y.ndim)
        return constrain(y, "batch", "frames", "height", "width", None)


def _remembering(
    name: str, width: int, dtype: str, x: jax.Array, cache: Cache | None, new: dict[str, jax.Array]
) -> jax.Array:
    """The memory blocks of a level; what they need of the last frame goes to `new`."""
    for i in range(BLOCKS):
        block = f"{name}_memory_{i}"
        x, new[block] = Memory(width, dtype, name=block)(x, None if cache is None else cache[block])
    return x


def _joined(x: jax.Array, count: int) -> jax.Array:
    """(B, F, H, W, C) -> (B, F / count, H, W, count C), the first frame's channels first."""
    b, f, h, w, c = x.shape
    return x.reshape(b, f // count, count, h, w, c).transpose(0, 1, 3, 4, 2, 5).reshape(b, f // count, h, w, count * c)


def _apart(x: jax.Array, count: int) -> jax.Array:
    """The inverse of `_joined`."""
    b, f, h, w, c = x.shape
    return x.reshape(b, f, h, w, count, c // count).transpose(0, 1, 4, 2, 3, 5).reshape(b, f * count, h, w, c // count)
