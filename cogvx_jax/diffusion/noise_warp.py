"""Noise that moves with a flow and stays noise, which Go-with-the-Flow's LoRAs start from. On the host, in numpy.

The noise of a frame lies on a grid finer than that of latents, and each point has a weight: how much noise it stands
for. `warp` moves it on by a flow, `to_latents` makes the noise of latents of that of frames, `degraded` adds new noise.

h w points of the grid, C channels, F frames, T latents.
Source: Burgert et al. 2025, arXiv:2501.08331; RyannDaGreat/CommonSource 28f1b68, `noise_warp.py`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

WEIGHT_POWER, LEAST_WEIGHT = np.float32(0.9999), np.float32(1e-5)  # keep weights near 1 over many frames


class Grid(NamedTuple):
    """The noise of a frame."""

    noise: np.ndarray  # (h, w, C) float32
    weight: np.ndarray  # (h, w) float32, of mean 1

    @classmethod
    def of(cls, noise: np.ndarray) -> "Grid":
        """The first frame's, of noise that nothing has moved."""
        return cls(noise, np.ones(noise.shape[:2], np.float32))


def warp(grid: Grid, flow: np.ndarray, drawn: np.ndarray) -> Grid:
    """The noise of the next frame.

    Every point goes where the flow takes it, and what comes together adds up. Where nothing lands, the noise is that of
    the place where the flow would have come from. Noise that several points share is divided among them. What leaves
    the grid makes room for new noise.

    Args:
      flow: (h, w, 2) float32, points to the right and down until the next frame.
      drawn: (h, 2 w, C) standard normal float32; the left half is for points that go, the right for those looked up.
    """
    height, width = grid.weight.shape
    reach = 2 * max(height, width)  # what goes further is outside, too
    dx, dy = np.clip(flow[..., 0], -reach, reach), np.clip(flow[..., 1], -reach, reach)
    row, column = np.mgrid[:height, :width].astype(np.float32)

    goes, leaves = _places(row + dy, column + dx)
    goes = np.where(leaves, np.arange(height * width).reshape(height, width), goes)  # it is renewed in its own place
    landed = np.bincount(goes.ravel(), minlength=height * width).reshape(height, width) > 0
    comes, enters = _places(row - np.rint(dy), column - np.rint(dx))
    looked_up = Grid(grid.noise.reshape(-1, grid.noise.shape[-1])[comes], grid.weight.ravel()[comes])

    halves = _renewed(grid, leaves), _renewed(looked_up, enters | landed)
    both = _divided(Grid(*(np.concatenate(pair, axis=1) for pair in zip(*halves, strict=True))), drawn)
    moved = _gathered(Grid(both.noise[:, :width], both.weight[:, :width]), goes)
    noise = np.where(landed[..., None], moved.noise, both.noise[:, width:])
    weight = np.where(landed, moved.weight, both.weight[:, width:])
    return Grid(noise, (weight / weight.mean() + LEAST_WEIGHT) ** WEIGHT_POWER)


def _places(row: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the nearest points of (h, w), 0 for those outside; and which are outside."""
    height, width = row.shape
    row, column = np.rint(row).astype(np.int64), np.rint(column).astype(np.int64)
    outside = (row < 0) | (row >= height) | (column < 0) | (column >= width)
    return np.where(outside, 0, row * width + column), outside


def _renewed(grid: Grid, where: np.ndarray) -> Grid:
    """Points without noise, of weight 1: `_divided` gives them new noise."""
    return Grid(np.where(where[..., None], np.float32(0), grid.noise), np.where(where, np.float32(1), grid.weight))


def _divided(grid: Grid, drawn: np.ndarray) -> Grid:
    """Points of the same noise, told by their first channel, share it: each gets new noise, whose sum is the old."""
    channels = grid.noise.shape[-1]
    noise, weight = grid.noise.reshape(-1, channels).copy(), grid.weight.ravel().copy()
    points, begins, counts = _shared(noise[:, 0])
    n = np.repeat(counts, counts).astype(np.float32)
    fresh = drawn.reshape(-1, channels)[points]
    mean = np.add.reduceat(fresh, begins, axis=0, dtype=np.float64) / counts[:, None] if len(begins) else fresh
    noise[points] = noise[points] / np.sqrt(n)[:, None] + (fresh - np.repeat(mean, counts, axis=0).astype(np.float32))
    weight[points] /= n
    return Grid(noise.reshape(grid.noise.shape), weight.reshape(grid.weight.shape))


def _gathered(grid: Grid, goes: np.ndarray) -> Grid:
    """Points in the places that they go to, where several come of variance 1 together; zeros where none comes."""
    noise, weight = np.zeros_like(grid.noise), np.zeros_like(grid.weight)
    flat, weights = noise.reshape(-1, noise.shape[-1]), weight.reshape(-1)
    theirs, own = grid.noise.reshape(flat.shape), grid.weight.reshape(-1)
    flat[goes.ravel()], weights[goes.ravel()] = theirs, own  # right where one comes alone
    points, begins, _ = _shared(goes.ravel())
    if len(begins):
        part = own[points].astype(np.float64)
        total, squares = np.add.reduceat(part, begins), np.add.reduceat(part**2, begins)
        places = goes.ravel()[points[begins]]
        flat[places] = np.add.reduceat(theirs[points] * part[:, None], begins, axis=0) / np.sqrt(squares)[:, None]
        weights[places] = total
    return Grid(noise, weight)


def _shared(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The places of values that stand several times, side by side; where each value begins among them; how often."""
    order = np.argsort(values, kind="stable")
    values = values[order]
    begins = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    counts = np.diff(np.append(begins, len(values)))
    points, counts = order[np.repeat(counts > 1, counts)], counts[counts > 1]
    return points, np.append(0, np.cumsum(counts))[:-1], counts


def to_latents(frames: np.ndarray, count: int, way: str) -> np.ndarray:
    """The noise of T = `count` latents of that of frames, (F, h, w, C) -> (T, h, w, C); F is 4T - 3 to 4T.

    Args:
      way: of WAYS.
    """
    return frames if len(frames) == count else WAYS[way](frames, count)


def _nearest(frames: np.ndarray, count: int) -> np.ndarray:
    """Every fourth frame, beginning with the first."""
    return frames[np.arange(count) * 4]


def _blend(frames: np.ndarray, count: int) -> np.ndarray:
    """The mean of about four frames, whose deviation is less than 1 where they move."""
    cuts = [len(frames) * i // count for i in range(count + 1)]
    return np.stack([frames[a:b].mean(axis=0) for a, b in zip(cuts[:-1], cuts[1:], strict=True)])


def _blend_norm(frames: np.ndarray, count: int) -> np.ndarray:
    """The same; the source divides each column of each channel by its own deviation."""
    blended = _blend(frames, count)
    return blended / blended.std(axis=1, ddof=1, keepdims=True)


WAYS: Mapping[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "nearest": _nearest,
    "blend": _blend,
    "blend_norm": _blend_norm,
}


def degraded(noise: np.ndarray, fresh: np.ndarray, degradation: float) -> np.ndarray:
    """Noise of which a part is new, of variance 1 where both are: 0 leaves it, 1 gives the fresh one."""
    mixed = degradation * fresh + (1 - degradation) * noise
    return (mixed / np.hypot(degradation, 1 - degradation)).astype(np.float32)


def area_mean(noise: np.ndarray, cell: int) -> np.ndarray:
    """The noise of cells of `cell` x `cell` points, of variance 1: (h, w, C) -> (h / cell, w / cell, C)."""
    height, width, channels = noise.shape
    cells = noise.reshape(height // cell, cell, width // cell, cell, channels)
    return cells.mean(axis=(1, 3)) * np.float32(cell)
