"""How far the corners of a picture move from one frame to another.

Dense flow is a guess where a picture is flat: nothing there tells how it moves, and an edge tells only its own normal.
At a corner both directions are told, so the plain square of a drawing has its own speed there.

Shapes: H W pixels, N corners.
"""

import numpy as np

MOST = 200  # corners that are followed
FAINTEST, NEAREST = 0.02, 5.0  # share of the best corner's strength; pixels between two corners
# Pixels of the neighbourhood that is followed. In a larger one what lies behind counts as well: with 13 pixels a plain
# square over texture came out 15% slow, with 7 5% to 9%.
WINDOW = 7
LEVELS = 3  # halvings of the size, at the coarsest of which corners are looked for first
BACK = 0.5  # pixels by which a corner that is followed back may miss its place
STILL = 0.5  # pixels; corners that move less stand still


def corner_moves(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How far each corner of a frame moves, by Lucas and Kanade's method in pyramids, there and back again.

    Args:
      first, second: luma (H, W) uint8 of one size.
    Returns: (N, 2) float32, x and y in pixels, of the corners that are found again; (0, 2) of a flat frame.
    Raises: ImportError without OpenCV; ValueError for two sizes or frames of fewer than 16 pixels a side.
    Source: Bouguet 2000, "Pyramidal implementation of the Lucas Kanade feature tracker"; Shi and Tomasi 1994.
    """
    import cv2

    if first.shape != second.shape or first.ndim != 2 or min(first.shape) < 16:
        raise ValueError(f"corners are of two frames (H, W), 16x16 or more, got {first.shape} and {second.shape}")
    first, second = np.ascontiguousarray(first), np.ascontiguousarray(second)
    corners = cv2.goodFeaturesToTrack(first, MOST, FAINTEST, NEAREST, blockSize=5)
    if corners is None:
        return np.zeros((0, 2), np.float32)
    how = {"winSize": (WINDOW, WINDOW), "maxLevel": LEVELS}
    there, found, _ = cv2.calcOpticalFlowPyrLK(first, second, corners, None, **how)  # type: ignore[call-overload]
    back, again, _ = cv2.calcOpticalFlowPyrLK(second, first, there, None, **how)  # type: ignore[call-overload]
    corners, there, back = (points.reshape(-1, 2) for points in (corners, there, back))
    sure = (found.ravel() == 1) & (again.ravel() == 1) & (np.linalg.norm(back - corners, axis=1) < BACK)
    return (there - corners)[sure]


def moving_speed(moves: np.ndarray, still: float = STILL) -> float | None:
    """The median length of the moves (N, 2) of corners that do not stand still: 0 where all do, None of no corners."""
    if not len(moves):
        return None
    lengths = np.linalg.norm(moves, axis=1)
    moving = lengths[lengths > still]
    return float(np.median(moving)) if len(moving) else 0.0
