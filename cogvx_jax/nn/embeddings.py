"""Where and when a token is: sinusoids of the timestep, position tables, rotary embedding, patches.

Tables are NumPy, computed in float64: they depend on shapes alone and are constants under `jit`. Where
clips of any size share a row, the same numbers are computed on the device from each token's position.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from cogvx_jax.configs import TransformerConfig
from cogvx_jax.nn.backend import formulations
from cogvx_jax.nn.resize import resize_linear

RIFLEX_SHARE = 0.9  # of its new period that the intrinsic frequency runs through in a clip


def sinusoid(t: jax.Array, dim: int) -> jax.Array:
    """(...) -> (..., dim) float32, cosines first: the timestep's features."""
    frequencies = np.exp(-np.log(10000) * np.arange(dim // 2) / (dim // 2)).astype(np.float32)
    angle = t.astype(jnp.float32)[..., None] * jax.lax.broadcast_to_rank(frequencies, t.ndim + 1)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def sincos_table(cfg: TransformerConfig, frames: int, rows: int, columns: int) -> np.ndarray:
    """Fixed positions added to the video tokens of 2B: (T * rows * columns, D) float32.

    The first quarter of D is time; of the rest the first half is the column, the second the row.
    """
    if cfg.resizes_positions:
        native = cfg.sample_height // cfg.patch, cfg.sample_width // cfg.patch
        table = _sincos_grid(cfg, frames, *native)
        return resize_linear(table, {1: rows, 2: columns}).reshape(-1, cfg.width).astype(np.float32)
    return _sincos_grid(cfg, frames, rows, columns).reshape(-1, cfg.width).astype(np.float32)


def _sincos_grid(cfg: TransformerConfig, frames: int, rows: int, columns: int) -> np.ndarray:
    """(T, rows, columns, D) float64."""
    time, row, column = (_sincos(p, n) for p, n in zip(_axes(cfg, frames, rows, columns), _parts(cfg), strict=True))
    shape = (frames, rows, columns)
    parts = (time[:, None, None], column[None, None], row[None, :, None])
    return np.concatenate([np.broadcast_to(p, (*shape, p.shape[-1])) for p in parts], axis=-1)


def rope_tables(cfg: TransformerConfig, frames: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of the rotary angles, (T * rows * columns, K) float32 each.

    K is split in 2/8 time, 3/8 row, 3/8 column; each angle stands twice, for a pair of neighbours.
    """
    several = zip(_axes(cfg, frames, rows, columns), _parts(cfg), strict=True)
    of_time = time_frequencies(cfg, frames), None, None
    time, row, column = (_angles(p, n, f) for (p, n), f in zip(several, of_time, strict=True))
    shape = (frames, rows, columns)
    parts = (time[:, None, None], row[None, :, None], column[None, None])
    angle = np.concatenate([np.broadcast_to(a, (*shape, a.shape[-1])) for a in parts], axis=-1)
    angle = np.repeat(angle.reshape(-1, cfg.head_dim // 2), 2, axis=-1)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def time_frequencies(cfg: TransformerConfig, frames: int) -> np.ndarray:
    """Rotary frequencies of the time axis for clips of so many temporal tokens, (K / 8,) float64.

    With `cfg.riflex` the intrinsic one is lowered, so that it does not come round within the clip.

    Source: Zhao et al. 2025, arXiv:2502.15894.
    """
    found = frequencies(_parts(cfg)[0])
    index, period = intrinsic_frequency(cfg)
    if cfg.riflex and frames > period:
        found[index] = RIFLEX_SHARE * 2 * np.pi / frames
    return found


def intrinsic_frequency(cfg: TransformerConfig) -> tuple[int, int]:
    """The temporal frequency by which longer clips repeat themselves: its index from 0, its period in tokens.

    It is the first whose period is longer than the clips of training: for published rotary models the second, of 20
    tokens, which RIFLEx's script names for CogVideoX-5B.
    """
    periods = 2 * np.pi / frequencies(_parts(cfg)[0])
    trained = -(-cfg.sample_latent_frames // (cfg.patch_t or 1))
    index = int(np.argmax(periods > trained))
    return index, round(periods[index])


def token_positions(cfg: TransformerConfig, frames: int, rows: int, columns: int) -> np.ndarray:
    """Time, row and column of every token of a clip, in the units of its tables: (T * rows * columns, 3) float32."""
    grid = np.meshgrid(*_axes(cfg, frames, rows, columns), indexing="ij")
    return np.stack(grid, axis=-1).reshape(-1, 3).astype(np.float32)


def sincos_at(cfg: TransformerConfig, positions: jax.Array) -> jax.Array:
    """The rows of `sincos_table` for tokens at (..., 3), as `token_positions` gives them: (..., D) float32."""
    time, row, column = (_sincos(positions[..., i], n) for i, n in enumerate(_parts(cfg)))
    return jnp.concatenate([time, column, row], axis=-1)


def rope_at(cfg: TransformerConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rows of `rope_tables` for tokens at (..., 3), as `token_positions` gives them: (..., K) float32 each."""
    angles = [_angles(positions[..., i], n) for i, n in enumerate(_parts(cfg))]
    angle = jnp.repeat(jnp.concatenate(angles, axis=-1), 2, axis=-1)
    return jnp.cos(angle), jnp.sin(angle)


def _parts(cfg: TransformerConfig) -> tuple[int, int, int]:
    """How many features tell the time, the row and the column."""
    features = cfg.width if cfg.position == "sincos" else cfg.head_dim
    return features // 4, features * 3 // 8, features * 3 // 8


def _axes(cfg: TransformerConfig, frames: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions along time, rows and columns, float64."""
    if cfg.position == "sincos":
        row, column = (np.arange(n) / cfg.spatial_interpolation for n in (rows, columns))
        return np.arange(frames) / cfg.temporal_interpolation, row, column
    if cfg.position == "rope_slice":
        row, column = (np.arange(n, dtype=np.float64) for n in (rows, columns))
    else:
        base = (cfg.sample_height // cfg.patch, cfg.sample_width // cfg.patch)
        (top, left), (bottom, right) = crop_box((rows, columns), base)
        # The end is stop * (n - 1) / n, as in the reference, also where the start is not 0.
        row = np.linspace(top, bottom * (rows - 1) / rows, rows)
        column = np.linspace(left, right * (columns - 1) / columns, columns)
    return np.arange(frames, dtype=np.float64), row, column


def frequencies(dim: int) -> np.ndarray:
    """Of `dim` features' pairs, the fastest first: (dim / 2,) float64."""
    return 10000.0 ** (-np.arange(0, dim, 2) / dim)


def _angles(positions, dim: int, own: np.ndarray | None = None):
    """(...) -> (..., dim / 2): one angle for each pair of features; of NumPy in float64, else in float32.

    `own` frequencies stand for the usual ones.
    """
    used = frequencies(dim) if own is None else own
    return positions[..., None] * used.reshape((1,) * positions.ndim + (-1,))


def _sincos(positions, dim: int):
    angle, xp = _angles(positions, dim), positions.__array_namespace__()
    return xp.concatenate([xp.sin(angle), xp.cos(angle)], axis=-1)


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


def rotate(x: jax.Array, cos: jax.Array | np.ndarray, sin: jax.Array | np.ndarray) -> jax.Array:
    """Rotates neighbouring pairs of the last axis: x (B, A, N, K), cos and sin (N, K) or (B, 1, N, K); in float32."""
    y = x.astype(jnp.float32)
    if formulations().rope == "product":
        turn = quarter_turn(x.shape[-1]).astype(x.dtype)
        turned = jnp.matmul(x, turn, precision="highest", preferred_element_type=jnp.float32)
    else:
        pairs = y.reshape(*y.shape[:-1], -1, 2)
        turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(y.shape)
    cos, sin = (jax.lax.broadcast_to_rank(table, y.ndim) for table in (cos, sin))
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
