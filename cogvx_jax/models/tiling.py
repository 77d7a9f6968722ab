"""The VAE in overlapping tiles: a lossy fallback where a whole frame does not fit into memory.

The result differs from `models.vae` by design: a tile's norms see that tile alone, and its borders are
padded with zeros. Blending hides the seams, not the difference. It equals the reference with tiling on.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cogvx_jax.configs import VAEConfig
from cogvx_jax.models import vae as vaes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiling:
    """Where tiles lie, (height, width) in latents each; pixels are `scale` times that."""

    tile: tuple[int, int]
    stride: tuple[int, int]  # from one tile to the next; they overlap by the rest of the tile
    scale: int

    @classmethod
    def of(cls, cfg: VAEConfig) -> "Tiling":
        """Tiles of half the sample size, overlapping by 1/6 in height and 1/5 in width.

        The reference rounds pixels and latents apart, which leaves gaps where they disagree; we round
        latents alone. For every size at which the reference's tiles meet, the numbers are the same.
        """
        scale = cfg.spatial_compression
        height, width = max(cfg.sample_height // 2 // scale, 1), max(cfg.sample_width // 2 // scale, 1)
        stride = (max(height * 5 // 6, 1), max(width * 4 // 5, 1))
        return cls(tile=(height, width), stride=stride, scale=scale)

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Of all tiles of such latents, each once, the largest first."""
        if height <= self.tile[0] and width <= self.tile[1]:
            return [(height, width)]
        heights = {min(self.tile[0], height - top) for top in range(0, height, self.stride[0])}
        widths = {min(self.tile[1], width - left) for left in range(0, width, self.stride[1])}
        return sorted(itertools.product(heights, widths), key=lambda size: -size[0] * size[1])

    def largest(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the largest tile of latents (..., h, w, C)."""
        return *shape[:-3], *self.sizes(*shape[-3:-1])[0], shape[-1]

    def count(self, height: int, width: int) -> int:
        """How many tiles such latents have."""
        if height <= self.tile[0] and width <= self.tile[1]:
            return 1
        return -(-height // self.stride[0]) * -(-width // self.stride[1])


def encode_tiled(vae: vaes.VAE, params: Any, pixels: jax.Array, *, encode_batch: Callable | None = None) -> jax.Array:
    """Like `vae.encode`, tile by tile: lossy, and the whole only where it is no larger than a tile.

    Args:
      pixels: (B, F, H, W, 3) in [-1, 1]; H and W divisible by 8.
      encode_batch: as for `vae.encode`; it meets up to four sizes of tiles.
    Returns: mean and log variance along the last axis, (B, T, h, w, 32), float32.
    """
    tiling = Tiling.of(vae.cfg)
    return _tiled(
        lambda tile: vaes.encode(vae, params, tile, encode_batch=encode_batch),
        pixels,
        tile=_times(tiling.tile, tiling.scale),
        stride=_times(tiling.stride, tiling.scale),
        tile_out=tiling.tile,
        stride_out=tiling.stride,
    )


def decode_tiled(
    vae: vaes.VAE, params: Any, latents: jax.Array, *, decode_batch: Callable | None = None, on_host: bool = False
) -> Any:
    """Like `vae.decode`, tile by tile: lossy, and the whole only where it is no larger than a tile.

    Args:
      latents: (B, T, h, w, 16), divided by the scaling factor.
      decode_batch: as for `vae.decode`; it meets up to four sizes of tiles.
      on_host: put the tiles together in the host's memory, by the same sums: the device holds a frame batch of one.
    Returns: pixels (B, F, H, W, 3), not clipped.
    """
    tiling = Tiling.of(vae.cfg)

    def decode(tile: jax.Array) -> Any:
        batches = vaes.decode_stream(vae, params, tile, decode_batch=decode_batch)
        if on_host:
            return np.concatenate([np.asarray(batch) for batch in batches], axis=1)
        return jnp.concatenate(list(batches), axis=1)

    return _tiled(
        decode,
        latents,
        tile=tiling.tile,
        stride=tiling.stride,
        tile_out=_times(tiling.tile, tiling.scale),
        stride_out=_times(tiling.stride, tiling.scale),
    )


def _tiled(
    run: Callable[[jax.Array], Any],
    x: jax.Array,
    *,
    tile: tuple[int, int],
    stride: tuple[int, int],
    tile_out: tuple[int, int],
    stride_out: tuple[int, int],
) -> Any:
    """`run` on every tile of x, all frames of it, and the results blended; sizes of input and output."""
    height, width = x.shape[2:4]
    if height <= tile[0] and width <= tile[1]:
        return run(x)
    extent = (tile_out[0] - stride_out[0], tile_out[1] - stride_out[1])
    above: list[Any] = []
    strips = []
    for top in range(0, height, stride[0]):
        row = [run(x[:, :, top : top + tile[0], j : j + tile[1]]) for j in range(0, width, stride[1])]
        # As in the reference, the neighbours that a tile fades from are already blended themselves.
        for j in range(len(row)):
            if above:
                row[j] = blend(above[j], row[j], extent[0], axis=2)
            if j > 0:
                row[j] = blend(row[j - 1], row[j], extent[1], axis=3)
        strips.append(_library(row[0]).concatenate([y[:, :, : stride_out[0], : stride_out[1]] for y in row], axis=3))
        above = row
    return _library(strips[0]).concatenate(strips, axis=2)


def blend(before: Any, after: Any, extent: int, *, axis: int) -> Any:
    """`after`, its first `extent` elements along `axis` faded in from the last ones of `before`."""
    extent = min(before.shape[axis], after.shape[axis], extent)
    if extent == 0:
        return after
    size, xp = before.shape[axis], _library(after)
    front = (slice(None),) * axis
    last, first = before[*front, size - extent :], after[*front, :extent]
    rest = after[*front, extent:]
    along = [1] * axis + [-1] + [1] * (after.ndim - axis - 1)
    weight = (xp.arange(extent, dtype=after.dtype) / extent).reshape(along)
    return xp.concatenate([last * (1 - weight) + first * weight, rest], axis=axis)


def _library(x: Any) -> Any:
    """Of arrays on the host, or on devices."""
    return np if isinstance(x, np.ndarray) else jnp


def _times(sizes: tuple[int, int], scale: int) -> tuple[int, int]:
    return sizes[0] * scale, sizes[1] * scale
