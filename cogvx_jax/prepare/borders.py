"""Step `borders`: letterboxes, and rectangles that never change, as logos do not."""

import numpy as np

from cogvx_jax.prepare.look import Look
from cogvx_jax.prepare.rows import Row
from cogvx_jax.prepare.settings import Settings

DARK = 24.0  # the most luma of a line of a letterbox, but for a few pixels
SPECKS = 98  # percent of a line's pixels that are dark
WIDEST = 0.4  # share of a side that a letterbox may take on one side
FRAMES = 12  # of a clip that tell a letterbox
GRID = 16  # cells that the longer side is divided into
EDGES, STILL = 10.0, 2.0  # levels: the contrast inside a cell, and how far its pixels move in time


def borders(clip: Row, look: Look, settings: Settings) -> Row:
    """Returns: `crop`, top, left, bottom and right of the picture in shares of the frame; `border_area`, the share
    outside it; `logo_area`, the share of cells with contrast whose pixels never change while others do."""
    gray = look.gray
    if not len(gray):
        return {}
    few = gray[:: -(-len(gray) // FRAMES)]
    crop = _letterbox(*(np.percentile(few, SPECKS, axis=axis).max(0) for axis in (2, 1)))
    top, left, bottom, right = crop
    return {
        "crop": list(crop),
        "border_area": 1 - (bottom - top) * (right - left),
        "logo_area": _still_cells(gray) if len(gray) > 3 else None,
    }


def _letterbox(rows: np.ndarray, columns: np.ndarray) -> tuple[float, float, float, float]:
    """Of the brightness of each row and column; nothing is cut where all is dark."""
    bounds = []
    for lines in (rows, columns):
        lit = np.flatnonzero(lines > DARK)
        first, stop = (int(lit[0]), int(lit[-1]) + 1) if len(lit) else (0, len(lines))
        most = int(len(lines) * WIDEST)
        if first > most or len(lines) - stop > most or first + len(lines) - stop < 2:
            first, stop = 0, len(lines)
        # Where a border ends, pixels of a small frame are a mix.
        bounds.append(
            ((first + 1) / len(lines) if first else 0.0, (stop - 1) / len(lines) if stop < len(lines) else 1.0)
        )
    (top, bottom), (left, right) = bounds
    return top, left, bottom, right


def _still_cells(gray: np.ndarray) -> float:
    frames, height, width = gray.shape
    size = max(max(height, width) // GRID, 4)
    tall, wide = height // size, width // size
    if not tall or not wide:
        return 0.0
    cells = gray[:, : tall * size, : wide * size].reshape(frames, tall, size, wide, size)
    moved = cells.std(0).mean((1, 3))  # (tall, wide)
    contrast = cells.mean(0).std((1, 3))
    still = (moved < STILL) & (contrast > EDGES)
    return float(still.mean()) if moved.mean() > 2 * STILL else 0.0
