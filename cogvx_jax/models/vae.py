"""The 3D causal VAE: pixels (B, F, H, W, 3) in [-1, 1] <-> latents (B, T, h, w, 16).

A clip is worked through in frame batches, first to last. Every causal convolution hands the last
frames it saw to the next batch, so the cut is invisible to it; the norms take their statistics over
one batch, so the cut is part of the model (`VAEConfig.encode_frames`, `decode_frames`).
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cogvx_jax.configs import Compute, VAEConfig
from cogvx_jax.models.vae_strips import Striped, cut, downsampled, measured, through, upsampled
from cogvx_jax.nn.conv import CausalConv, FrameConv, Pointwise
from cogvx_jax.nn.norms import GroupNorm, Parts, SpatialNorm

Cache = dict[str, Any]  # a tree of arrays, one leaf (B, 2, h, w, C) per causal convolution


class VAE(nn.Module):
    """Encoder and decoder of one frame batch; `encode` and `decode` below work through a clip."""

    cfg: VAEConfig
    compute: Compute = Compute()

    def setup(self):
        self.encoder = Encoder(self.cfg, self.compute)
        self.decoder = Decoder(self.cfg, self.compute)

    def encode_batch(self, pixels: jax.Array, cache: Cache | None = None) -> tuple[jax.Array, Cache]:
        """(B, F, H, W, 3) -> posterior mean and log variance (B, T, h, w, 2 * 16), and the cache."""
        return self.encoder(pixels, cache)

    def decode_batch(self, latents: jax.Array, cache: Cache | None = None) -> tuple[jax.Array, Cache]:
        """(B, T, h, w, 16) -> pixels (B, F, H, W, 3), not clipped, and the cache."""
        return self.decoder(latents, cache)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Reconstruction from the posterior's mode, in one batch: for `init`."""
        moments, _ = self.encode_batch(pixels)
        return self.decode_batch(mode(moments))[0]


def encode(vae: VAE, params: Any, pixels: jax.Array, *, encode_batch: Callable | None = None) -> jax.Array:
    """The posterior of a clip.

    Args:
      pixels: (B, F, H, W, 3) in [-1, 1]; H and W divisible by 8.
      encode_batch: (params, pixels, cache) -> (moments, cache), to use instead of the uncompiled one.
    Returns: mean and log variance along the last axis, (B, T, h, w, 32), float32; see `mode`, `sample`.
    """
    run = encode_batch or (lambda p, x, c: vae.apply({"params": p}, x, c, method="encode_batch"))
    moments, cache = [], None
    for start, stop in frame_batches(pixels.shape[1], vae.cfg.encode_frames):
        part, cache = run(params, pixels[:, start:stop], cache)
        moments.append(part)
    return jnp.concatenate(moments, axis=1)


def decode(vae: VAE, params: Any, latents: jax.Array, *, decode_batch: Callable | None = None) -> jax.Array:
    """(B, T, h, w, 16), divided by the scaling factor -> pixels (B, F, H, W, 3), not clipped.

    An odd T gives 4T - 3 frames, an even one 4T: the first frame is alone only in an odd count.
    """
    return jnp.concatenate(list(decode_stream(vae, params, latents, decode_batch=decode_batch)), axis=1)


def decode_stream(
    vae: VAE, params: Any, latents: jax.Array, *, decode_batch: Callable | None = None
) -> Iterator[jax.Array]:
    """Like `decode`, a frame batch of pixels at a time: memory does not grow with the clip."""
    run = decode_batch or (lambda p, z, c: vae.apply({"params": p}, z, c, method="decode_batch"))
    cache = None
    for start, stop in frame_batches(latents.shape[1], vae.cfg.decode_frames):
        pixels, cache = run(params, latents[:, start:stop], cache)
        yield pixels


def frame_batches(frames: int, size: int | None) -> list[tuple[int, int]]:
    """(start, stop) of each batch: `size` frames, the remainder added to the first batch."""
    if size is None:
        return [(0, frames)]
    count = max(frames // size, 1)
    first = frames - (count - 1) * size
    return [(0, first)] + [(first + i * size, first + (i + 1) * size) for i in range(count - 1)]


def mode(moments: jax.Array) -> jax.Array:
    """The posterior's most likely latents, (..., 32) -> (..., 16)."""
    return jnp.split(moments, 2, axis=-1)[0]


def sample(moments: jax.Array, noise: jax.Array) -> jax.Array:
    """Latents drawn from the posterior with standard normal `noise`, (..., 32) -> (..., 16)."""
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return mean + jnp.exp(0.5 * jnp.clip(logvar, -30, 20)) * noise


def kl(moments: jax.Array) -> jax.Array:
    """KL divergence of the posterior from a standard normal, per element, (..., 32) -> (..., 16)."""
    mean, logvar = jnp.split(moments, 2, axis=-1)
    logvar = jnp.clip(logvar, -30, 20)
    return 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar)


class Encoder(nn.Module):
    """(B, F, H, W, 3) -> (B, T, h, w, 32), coarser by 8x8 in space and 4 in time."""

    cfg: VAEConfig
    compute: Compute

    @nn.compact
    def __call__(self, pixels: jax.Array, cache: Cache | None = None) -> tuple[jax.Array, Cache]:
        cfg, compute, caches = self.cfg, self.compute, _Caches(cache)
        x = caches.through(CausalConv(cfg.channels[0], compute.dtype, name="conv_in"), cut((pixels,), compute.strips))
        for level, channels in enumerate(cfg.channels):
            for i in range(cfg.layers):
                x = caches.run(Resnet(cfg, compute, channels, name=f"down_{level}_resnet_{i}"), x)
            if level < len(cfg.channels) - 1:
                halve = halve_time if level < cfg.time_levels else _same
                downsample = FrameConv(channels, stride=2, dtype=compute.dtype, name=f"down_{level}_downsample")
                if isinstance(x, Striped):
                    x = cut(downsampled(x, halve, downsample), strips_of(compute.strips, level + 1))
                else:
                    x = tuple(downsample(halve(part)) for part in x)
        for i in range(2):
            x = caches.run(Resnet(cfg, compute, cfg.channels[-1], name=f"mid_resnet_{i}"), x)
        norm = GroupNorm(cfg.groups, cfg.norm_eps, name="norm_out")
        x = caches.through(CausalConv(2 * cfg.latent_channels, compute.dtype, name="conv_out"), x, norm)
        return _joined(x), caches.new


class Decoder(nn.Module):
    """(B, T, h, w, 16) -> (B, F, H, W, 3), finer by 8x8 in space and 4 in time.

    The first frame of an odd count is never doubled, so it is a part of its own, and so are its latents. The other
    frames come in fours and eights, as the tiles of a TPU do.
    """

    cfg: VAEConfig
    compute: Compute

    @nn.compact
    def __call__(self, latents: jax.Array, cache: Cache | None = None) -> tuple[jax.Array, Cache]:
        cfg, compute, caches = self.cfg, self.compute, _Caches(cache)
        z = first_alone(latents.astype(compute.dtype))
        last = len(cfg.channels) - 1
        x = caches.through(
            CausalConv(cfg.channels[-1], compute.dtype, name="conv_in"), cut(z, strips_of(compute.strips, last))
        )
        for i in range(2):
            x = caches.run(Resnet(cfg, compute, cfg.channels[-1], name=f"mid_resnet_{i}"), x, z)
        for level, channels in enumerate(reversed(cfg.channels)):
            for i in range(cfg.layers + 1):
                x = caches.run(Resnet(cfg, compute, channels, name=f"up_{level}_resnet_{i}"), x, z)
            if level < last:
                # The convolution works frame by frame, so frames are doubled after it, not before.
                upsample = FrameConv(channels, upsample=True, dtype=compute.dtype, name=f"up_{level}_upsample")
                double = double_time if level < cfg.time_levels else _same
                strips = strips_of(compute.strips, last - level - 1)
                stored = x.stored if isinstance(x, Striped) else x
                if strips > 1:
                    x = upsampled(stored, upsample, double, strips)
                else:
                    x = tuple(map(double, tuple(map(upsample, stored))))
        norm = SpatialNorm(cfg.groups, cfg.norm_eps, name="norm_out")
        x = caches.through(CausalConv(3, compute.dtype, name="conv_out"), x, norm, z)
        return _joined(x), caches.new


class Resnet(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus the input; with latents, the norms are spatial."""

    cfg: VAEConfig
    compute: Compute
    channels: int

    @nn.compact
    def __call__(
        self, video: Parts | Striped, latents: Parts | None = None, cache: Cache | None = None
    ) -> tuple[Parts | Striped, Cache]:
        cfg, compute, caches = self.cfg, self.compute, _Caches(cache)
        channels = video.channels if isinstance(video, Striped) else video[0].shape[-1]
        shortcut = None
        if channels != self.channels:
            shortcut = Pointwise(self.channels, compute.dtype, name="shortcut")
        kind = GroupNorm if latents is None else SpatialNorm
        norm1, norm2 = (kind(cfg.groups, cfg.norm_eps, name=f"norm{i}") for i in (1, 2))
        conv1, conv2 = (CausalConv(self.channels, compute.dtype, name=f"conv{i}") for i in (1, 2))
        if isinstance(video, Striped):
            video = measured(video)  # once for both
            x = caches.through(conv1, video, norm1, latents)
            return caches.through(conv2, x, norm2, latents, plus=video, shortcut=shortcut, in_place=True), caches.new
        added = video if shortcut is None else tuple(map(shortcut, video))
        x = caches.through(conv1, video, norm1, latents)
        x = caches.through(conv2, x, norm2, latents)
        return tuple(map(jnp.add, x, added)), caches.new


def halve_time(x: jax.Array) -> jax.Array:
    """Averages pairs of frames; of an odd count the first frame stays alone."""
    if x.shape[1] == 1:
        return x
    first, rest = x[:, : x.shape[1] % 2], x[:, x.shape[1] % 2 :]
    pairs = rest.reshape(rest.shape[0], -1, 2, *rest.shape[2:])
    return jnp.concatenate([first, jnp.mean(pairs, axis=2)], axis=1)


def first_alone(x: jax.Array) -> Parts:
    """The first frame of an odd count, and the others; an even count, and one frame, as they are."""
    return (x[:, :1], x[:, 1:]) if x.shape[1] % 2 and x.shape[1] > 1 else (x,)


def double_time(x: jax.Array) -> jax.Array:
    """Repeats every frame; one frame stays alone."""
    return x if x.shape[1] == 1 else jnp.repeat(x, 2, axis=1)


def strips_of(strips: int, level: int) -> int:
    """Strips of frames that are `level` times halved, so that each has about as many pixels."""
    return -(-strips // 4**level)


def _same(x: jax.Array) -> jax.Array:
    return x


def _joined(video: Parts | Striped) -> jax.Array:
    parts = video.stored if isinstance(video, Striped) else video
    return jnp.concatenate(parts, axis=1).astype(jnp.float32)


class _Caches:
    """Hands each causal part its old cache by name and collects the new ones."""

    def __init__(self, old: Cache | None):
        self.old: Cache | None = old
        self.new: Cache = {}

    def run(self, module: nn.Module, *inputs: Any) -> Any:
        name = str(module.name)
        y, self.new[name] = module(*inputs, cache=None if self.old is None else self.old[name])
        return y

    def through(
        self,
        conv: CausalConv,
        video: Parts | Striped,
        norm: GroupNorm | SpatialNorm | None = None,
        latents: Parts | None = None,
        **in_strips: Any,
    ) -> Any:
        """Norm, SiLU and convolution, or the convolution alone; each part with the cache of the part before it."""
        name, made = str(conv.name), []
        cache = None if self.old is None else self.old[name]
        if isinstance(video, Striped):
            whole, self.new[name] = through(video, norm, conv, cache, latents=latents, **in_strips)
            return whole
        if norm is not None:
            parts = norm(video, latents or ()) if isinstance(norm, SpatialNorm) else norm(*video)
            video = tuple(map(nn.silu, parts))
        for x in video:
            y, cache = conv(x, cache)
            made.append(y)
        self.new[name] = cache
        return tuple(made)
