"""Which codes see which, as tables: causal and whole frames, windows, and windows that are moved in every other layer.

Numbers of frames and windows are static, so all of this is NumPy.

Letters: n codes of a frame, W windows, w codes of a frame in a window.
"""

import functools
from typing import Literal, NamedTuple

import numpy as np

from cogvx_jax.models.cogvideo2022.configs import CogVideo2022Config

Sight = Literal["none", "causal", "full"]


class Windows(NamedTuple):
    """The cells of a frame by window. The first axis counts kinds of layers: even and odd ones, or one kind."""

    cells: np.ndarray  # (kinds, W, w): a cell is row * grid + column
    back: np.ndarray  # (kinds, n): where each cell stands among the W * w
    part: np.ndarray  # (kinds, W, w): a moved window that wraps around the frame falls into parts


def sight(cfg: CogVideo2022Config, frame: int, other: int) -> Sight:
    """What codes of a frame see of another in the temporal channel, and of their own in both channels.

    "causal": the codes before and their own place, which holds the code before.
    """
    if cfg.stage == "interpolation" and frame % 2 == 0:
        return "full" if other % 2 == 0 else "none"
    if frame == other:
        return "causal"
    before = other < frame or (cfg.stage == "interpolation" and other % 2 == 0)
    return "full" if before else "none"


@functools.cache
def windows(cfg: CogVideo2022Config) -> Windows:
    """The temporal channel's windows."""
    grid, side = cfg.grid, cfg.window_side
    shifts = (0, cfg.shift) if cfg.shift else (0,)
    cells, parts = [], []
    for shift in shifts:
        cells.append(_cut(np.roll(np.arange(grid * grid).reshape(grid, grid), (-shift, -shift), axis=(0, 1)), side))
        wrapped = np.arange(grid) >= grid - shift  # of the rolled frame's rows, and of its columns
        parts.append(_cut(2 * wrapped[:, None] + wrapped[None, :], side))
    table = np.stack(cells)
    return Windows(table, np.argsort(table.reshape(len(shifts), -1), axis=-1), np.stack(parts))


def own_frame(cfg: CogVideo2022Config, order: tuple[int, ...]) -> np.ndarray:
    """What the codes of each slot see of their own frame: (slots, n, n) bool."""
    n = cfg.frame_codes
    earlier = np.tri(n, dtype=bool)
    return np.stack([earlier if sight(cfg, f, f) == "causal" else np.ones((n, n), bool) for f in order])


@functools.cache
def between_frames(cfg: CogVideo2022Config, order: tuple[int, ...], free: int) -> np.ndarray:
    """What the codes of each slot in a window see of all slots in it: (kinds, W or 1, slots * w, slots * w) bool.

    Args:
      free: codes of so many slots see across the edge of the frame where a moved window wraps around it.
    """
    table, slots = windows(cfg), len(order)
    size = table.cells.shape[-1]
    earlier = {"full": np.ones((size, size), bool), "causal": np.tri(size, dtype=bool), "none": np.zeros((1, 1), bool)}
    seen = np.block([[np.broadcast_to(earlier[sight(cfg, f, g)], (size, size)) for g in order] for f in order])
    if not cfg.shift:
        return seen[None, None]
    together = table.part[..., :, None] == table.part[..., None, :]  # (kinds, W, w, w)
    apart = np.tile(together, (1, 1, slots, slots))
    apart[..., : free * size, :] = True
    return seen & apart


@functools.cache
def steps(cfg: CogVideo2022Config) -> tuple[np.ndarray, np.ndarray]:
    """For each code of a frame, the cells that it sees in a frame before: (kinds, n, w) int32, and (kinds, n, w) bool.

    Where a moved window wraps around the frame, only the code's own part of it counts.
    """
    table = windows(cfg)
    kinds, count, size = table.cells.shape
    cells = np.zeros((kinds, cfg.frame_codes, size), np.int32)
    seen = np.zeros(cells.shape, bool)
    for kind in range(kinds):
        for window in range(count):
            inside, part = table.cells[kind, window], table.part[kind, window]
            cells[kind, inside] = inside
            seen[kind, inside] = part[:, None] == part[None, :]
    return cells, seen


def _cut(grid: np.ndarray, side: int) -> np.ndarray:
    """(rows, columns) -> (W, w), windows and their cells row by row."""
    across = grid.shape[0] // side
    return grid.reshape(across, side, across, side).transpose(0, 2, 1, 3).reshape(across**2, side**2)
