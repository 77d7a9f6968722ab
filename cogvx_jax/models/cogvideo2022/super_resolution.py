"""CogView2's direct super-resolution: one pass predicts all 60x60 codes of a frame of 20x20.

Both grids go through the layers together. The text and the small grid have the base's attention. A code of the large
grid sees, in one softmax, small codes around its place and large ones around itself, but no text.

For a row of the large grid, the rows that it sees lie next to each other. So a row at a time is computed, against
whole rows, with what is too far away hidden: no gathers, and no extension of CUDA.

Shapes: B frames, L text tokens, n small codes, N large codes, D width, A heads, K head width.

Source: CogView2, `sr_pipeline/dsr_model.py`; windows as of Image-Local-Attention.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cogvx_jax.axes import constrain
from cogvx_jax.models.cogvideo2022.attention import Seen, attend, hidden_where
from cogvx_jax.models.cogvideo2022.configs import SuperResolutionConfig
from cogvx_jax.models.cogvideo2022.transformer import Base, Channel, Text, code_logits, declare


class SuperResolution(nn.Module):
    """(B, L) text and (B, n) codes -> the last norm's output (B, L + n + N, D)."""

    cfg: SuperResolutionConfig
    dtype: str = "float32"

    def setup(self) -> None:
        declare(self, Block, in_axes=(nn.broadcast,))

    def __call__(self, text: Text, codes: jax.Array) -> jax.Array:
        x, _ = self.blocks(constrain(self.embed(text, codes), "batch", "seq", None), text.real)
        return self.norm(x)

    def embed(self, text: Text, codes: jax.Array) -> jax.Array:
        """All inputs of the large grid are the start of an image: (B, L + n + N, D)."""
        cfg, first = self.cfg, self.cfg.first_position
        place = jnp.maximum(jnp.cumsum(text.real, axis=-1) - 1, 0)
        small = self.positions[first : first + cfg.frame_codes]
        large = (self.words[cfg.start_of_image][None] + self.extra_positions[: cfg.large_grid**2]).astype(self.dtype)
        parts = (
            (self.words[text.ids] + self.positions[place]).astype(self.dtype),
            (self.words[codes] + small[None]).astype(self.dtype),
            jnp.broadcast_to(large[None], (len(codes), *large.shape)),
        )
        return jnp.concatenate(parts, axis=1)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """As `CogVideo2022.logits`."""
        return code_logits(self, hidden)


class Block(nn.Module):
    """A layer: (B, L + n + N, D) -> (B, L + n + N, D)."""

    cfg: SuperResolutionConfig
    dtype: str

    def setup(self) -> None:
        self.base = Base(self.cfg, self.dtype)
        self.channel = Channel(self.cfg, self.dtype)

    def __call__(self, x: jax.Array, real: jax.Array) -> tuple[jax.Array, None]:
        length, n = real.shape[1], self.cfg.frame_codes
        y = self.base.normed(x)
        q, k, v = self.base.heads(y[:, : length + n])
        to_text = hidden_where(real)[:, None]  # (B, 1, L)
        words = Seen(k[:, :length], v[:, :length], to_text)
        small = Seen(k[:, length:], v[:, length:], np.zeros((1, 1, n), np.float32))
        parts = (
            self.base.out(attend(q[:, :length], words)),
            self.base.out(attend(q[:, length:], words, small)),
            self.channel.out(self._large(*self.channel.heads(y[:, length + n :]), k[:, length:], v[:, length:])),
        )
        return self.base.rest(x, jnp.concatenate(parts, axis=1)), None

    def _large(self, q: jax.Array, k: jax.Array, v: jax.Array, small_k: jax.Array, small_v: jax.Array) -> jax.Array:
        """(B, N, A, K) of the large grid, (B, n, A, K) of the small one -> (B, N, A, K)."""
        cfg, grid = self.cfg, self.cfg.large_grid
        q, k, v = (x.reshape(len(x), grid, grid, *x.shape[2:]) for x in (q, k, v))
        small_k, small_v = (x.reshape(len(x), cfg.grid, cfg.grid, *x.shape[2:]) for x in (small_k, small_v))
        columns, rows = np.arange(grid), jnp.arange(grid)

        def row(i: jax.Array) -> jax.Array:
            own = jax.lax.dynamic_index_in_dim(q, i, axis=1, keepdims=False)
            coarse = _band(small_k, small_v, i // cfg.scale, columns // cfg.scale, cfg.near_small)
            return attend(own, coarse, _band(k, v, i, columns, cfg.near))

        return jnp.moveaxis(jax.lax.map(row, rows), 0, 1).reshape(len(q), grid * grid, *q.shape[3:])


def _band(k: jax.Array, v: jax.Array, row: jax.Array, columns: np.ndarray, near: tuple[int, int]) -> Seen:
    """What queries at (row, columns) see of a grid (B, rows, columns, A, K): `near` rows and columns around each.

    All rows of the band are here, so far as they lie in the grid, with what is out of sight hidden.
    """
    size, count = k.shape[1], min(near[0], k.shape[1])
    start = jnp.clip(row - near[0] // 2, 0, size - count)
    across = np.abs(columns[:, None] - np.arange(size)[None, :]) <= near[1] // 2  # (queries, columns)
    down = jnp.abs(start + jnp.arange(count) - row) <= near[0] // 2  # (rows of the band,)
    seen = down[None, :, None] & across[:, None, :]

    def cut(x: jax.Array) -> jax.Array:
        band = jax.lax.dynamic_slice_in_dim(x, start, count, axis=1)
        return band.reshape(len(x), count * size, *x.shape[3:])

    return Seen(cut(k), cut(v), hidden_where(seen.reshape(len(columns), -1))[None])
