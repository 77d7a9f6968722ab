"""Step `motion`: optical flow (DIS), how much of it there is and where, how fast corners move, what the camera does."""

from typing import Any

import numpy as np

from cogvx_jax.metrics.tracking import corner_moves, moving_speed
from cogvx_jax.prepare.look import SMALL_SIDE, Look
from cogvx_jax.prepare.quality import vision
from cogvx_jax.prepare.rows import Row
from cogvx_jax.prepare.settings import Settings

FIELDS = (
    "motion_mean",
    "motion_top5",
    "motion_speed",
    "motion_static_share",
    "motion_area",
    "motion_place",
    "camera",
    "camera_shift",
)
APART = 0.5  # seconds between the frames of a pair
STILL = 0.5  # pixels of a frame 320 wide; a pair whose mean flow is less stands still
TOP = 0.05  # share of the pixels that move most
GRID = 8  # every so manieth pixel tells what the camera does
PAN, ZOOM, ROLL = 2.0, 0.01, 0.5  # a pair: pixels of 320, change of scale, degrees
MOVING = 0.5  # pixels of 320 from which on a pixel counts as moving
AGREE = 0.5  # share of pixels that must follow the camera's movement


def motion(clip: Row, look: Look, settings: Settings) -> Row:
    """Returns:
    `motion_mean`, the mean length of the flow between frames half a second apart, in pixels of a frame whose longer
      side is 320; `motion_top5`, the mean of the longest 5% (VBench's radius, which measures other pairs);
    `motion_speed`, how far what moves moves, the median of its corners in the same pixels: 0 where all corners stand
      still, None without any. Dense flow is a guess where a picture is flat, so of a plain object it is 10% to 40% off;
    `motion_static_share`, the share of pairs whose mean is below half a pixel;
    `motion_area`, the share of the pixels that move more than that, the mean of the pairs; `motion_place`, that area as
      a share of all pixels that ever move: 1 where the same ones always do, None where none does;
    `camera`: static, pan, tilt, zoom, roll or mixed, of most pairs, by a similarity fitted to the flow; None where
      most of the picture follows none; `camera_shift`, its pixels a pair.
    """
    cv2, step = vision(), max(round(APART * look.rate), 1)
    gray = [np.ascontiguousarray(frame) for frame in look.small[::step]]
    if len(gray) < 2 or min(gray[0].shape) < 16:
        return {}
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    scale = SMALL_SIDE / max(gray[0].shape)
    means, tops, kinds, shifts, moves, moving = [], [], list[str | None](), [], [], []
    for before, after in zip(gray, gray[1:], strict=False):
        flow = dis.calc(before, after, None) * scale
        length = np.hypot(flow[..., 0], flow[..., 1])
        count = max(int(length.size * TOP), 1)
        means.append(float(length.mean()))
        tops.append(float(np.partition(length, -count, axis=None)[-count:].mean()))
        moves.append(corner_moves(before, after) * scale)
        moving.append(length > MOVING)
        kind, shift = _camera(cv2, flow)
        kinds.append(kind)
        shifts.append(shift)
    area, ever = float(np.mean(moving)), float(np.mean(np.any(moving, axis=0)))
    told = [kind for kind in kinds if kind is not None]
    return {
        "motion_mean": float(np.mean(means)),
        "motion_top5": float(np.mean(tops)),
        "motion_speed": moving_speed(np.concatenate(moves), MOVING),
        "motion_static_share": float(np.mean(np.asarray(means) < STILL)),
        "motion_area": area,
        "motion_place": area / ever if ever else None,
        "camera": max(sorted(set(told)), key=told.count) if 2 * len(told) > len(kinds) else None,
        "camera_shift": float(np.mean(shifts)),
    }


def _camera(cv2: Any, flow: np.ndarray) -> tuple[str | None, float]:
    """What one pair shows, and by how many pixels the middle of the picture moves."""
    height, width = flow.shape[:2]
    y, x = np.mgrid[GRID // 2 : height : GRID, GRID // 2 : width : GRID].reshape(2, -1)
    start = np.stack([x - width / 2, y - height / 2], 1).astype(np.float32)
    moved = start + flow[y, x]
    cv2.setRNGSeed(0)  # what RANSAC draws must not differ from run to run
    matrix, inside = cv2.estimateAffinePartial2D(start, moved, ransacReprojThreshold=1.5)
    if matrix is None:
        return None, 0.0
    shift, scale = matrix[:, 2], float(np.hypot(matrix[0, 0], matrix[1, 0]))
    angle = float(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])))
    length = float(np.hypot(*shift))
    if inside.mean() < AGREE:
        return None, length
    kinds = []
    if length > PAN:
        kinds.append("pan" if abs(shift[0]) >= abs(shift[1]) else "tilt")
    kinds += ["zoom"] * (abs(scale - 1) > ZOOM) + ["roll"] * (abs(angle) > ROLL)
    return ("static" if not kinds else kinds[0] if len(kinds) == 1 else "mixed"), length
