"""Where and when a token is: sinusoids of the timestep, position tables, rotary embedding, patches.

Tables are NumPy, computed in float64: they depend on shapes alone and are constants under `jit`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from cogvx_jax.configs import TransformerConfig
from cogvx_jax.nn.backend import formulations


def sinusoid(t: jax.Array, dim: int) -> jax.Array:
    """(B,) -> (B, dim) float32, cosines first: the timestep's features."""
    frequencies = np.exp(-np.log(10000) * np.arange(dim // 2) / (dim // 2)).astype(np.float32)
    angle = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def sincos_table(cfg: TransformerConfig, frames: int, rows: int, columns: int) -> np.ndarray:
    """Fixed positions added to the video tokens of 2B: (T * rows * columns, D) float32.

    The first quarter of D is time; of the rest the first half is the column, the second the row.
    """
    temporal = _sincos(np.arange(frames) / cfg.temporal_interpolation, cfg.width // 4)
    half = cfg.width * 3 // 8
    column = _sincos(np.arange(columns) / cfg.spatial_interpolation, half)
    row = _sincos(np.arange(rows) / cfg.spatial_interpolation, half)
    shape = (frames, rows, columns)
    parts = (temporal[:, None, None], column[None, None], row[None, :, None])
    table = np.concatenate([np.broadcast_to(p, (*shape, p.shape[-1])) for p in parts], axis=-1)
    return table.reshape(-1, cfg.width).astype(np.float32)


def _sincos(positions: np.ndarray, dim: int) -> np.ndarray:
    angle = positions[:, None] * 10000.0 ** (-np.arange(dim // 2) / (dim / 2))
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)


def rope_tables(cfg: TransformerConfig, frames: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of the rotary angles, (T * rows * columns, K) float32 each.

    K is split in 2/8 time, 3/8 row, 3/8 column; each angle stands twice, for a pair of neighbours.
    """
    if cfg.position == "rope_slice":
        row, column = np.arange(rows, dtype=np.float64), np.arange(columns, dtype=np.float64)
    else:
        base = (cfg.sample_height // cfg.patch, cfg.sample_width // cfg.patch)
        (top, left), (bottom, right) = crop_box((rows, columns), base)
        # The end is stop * (n - 1) / n, as in the reference, also where the start is not 0.
        row = np.linspace(top, bottom * (rows - 1) / rows, rows)
        column = np.linspace(left, right * (columns - 1) / columns, columns)
    k = cfg.head_dim
    axes = ((np.arange(frames), k // 4), (row, k // 8 * 3), (column, k // 8 * 3))
    angles = [p[:, None] * 10000.0 ** (-np.arange(0, d, 2) / d) for p, d in axes]
    shape = (frames, rows, columns)
    parts = (angles[0][:, None, None], angles[1][None, :, None], angles[2][None, None])
    angle = np.concatenate([np.broadcast_to(a, (*shape, a.shape[-1])) for a in parts], axis=-1)
    angle = np.repeat(angle.reshape(-1, k // 2), 2, axis=-1)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def crop_box(grid: tuple[int, int], base: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Fits a grid of tokens into the native one: (top, left), (bottom, right) of the centred box."""
    (rows, columns), (base_rows, base_columns) = grid, base
    ratio = rows / columns
    if ratio > base_rows / base_columns:
        height, width = base_rows, int(round(base_rows / rows * columns))
    else:
        height, width = int(round(base_columns / columns * rows)), base_columns
    top, left = int(round((base_rows - height) / 2.0)), int(round((base_columns - width) / 2.0))
    return (top, left), (top + height, left + width)


def rotate(x: jax.Array, cos: np.ndarray, sin: np.ndarray) -> jax.Array:
    """Rotates neighbouring pairs of the last axis: x (B, A, N, K), cos and sin (N, K); in float32."""
    y = x.astype(jnp.float32)
    if formulations().rope == "product":
        turn = quarter_turn(x.shape[-1]).astype(x.dtype)
        turned = jnp.matmul(x, turn, precision="highest", preferred_element_type=jnp.float32)
    else:
        pairs = y.reshape(*y.shape[:-1], -1, 2)
        turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(y.shape)
    return (y * cos + turned * sin).astype(x.dtype)


def quarter_turn(width: int) -> np.ndarray:
    """The matrix (K, K) that takes each pair (a, b) to (-b, a).

    Pairs that stand side by side are pulled apart and put together by copies on TPUs; as a product with
    entries 0, 1 and -1 the same is exact and nearly free.
    """
    return np.kron(np.eye(width // 2, dtype=np.float32), np.array([[0, 1], [-1, 0]], np.float32))


def patchify(x: jax.Array, cfg: TransformerConfig) -> jax.Array:
    """(B, T, h, w, C) -> (B, N, features), features in the order channel, time, row, column."""
    pattern = "b (t pt) (h ph) (w pw) c -> b (t h w) (c pt ph pw)"
    return rearrange(x, pattern, pt=cfg.patch_t or 1, ph=cfg.patch, pw=cfg.patch)


def unpatchify(x: jax.Array, cfg: TransformerConfig, shape: tuple[int, int, int]) -> jax.Array:
    """(B, N, features) -> (B, T, h, w, C); `shape` is T, h, w of the result."""
    frames, height, width = shape
    pattern = "b (t h w) (c pt ph pw) -> b (t pt) (h ph) (w pw) c"
    pt, p = cfg.patch_t or 1, cfg.patch
    return rearrange(x, pattern, t=frames // pt, h=height // p, w=width // p, pt=pt, ph=p, pw=p)
