"""Trajectories of points, and the pictures of their motion that Tora sees.

A trajectory is points (x, y) on a canvas of 256 x 256, whatever the size of the video.
Source: ComfyUI-CogVideoXWrapper fdb8abd, `tora/traj_utils.py`; the colours are those of torchvision's `flow_to_image`.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cogvx_jax.data.files import existing
from cogvx_jax.data.number_lists import is_numbers

CANVAS = 256
MAX_POINTS = 2**14
MAX_BYTES = 2**20
SIGMA, REACH = 10, 49  # of the blur, in pixels
POINT = r"([0-9]{1,5}(?:\.[0-9]{1,9})?),([0-9]{1,5}(?:\.[0-9]{1,9})?)"
WHEEL = (15, 6, 4, 11, 13, 6)  # colours from red over yellow, green, cyan, blue and magenta to red
Points = tuple[tuple[int, int], ...]


def read_trajectory(source: Any) -> Points:
    """Points of a file with a line "x,y" for each, of text "60,128 200,128", or of pairs.

    Raises: ValueError, one sentence, for anything else, fewer than two points, or points outside the canvas; OSError.
    """
    if isinstance(source, str | os.PathLike):
        source = _parsed(str(source))
    wrong = f"a trajectory is 2 to {MAX_POINTS} points x,y, such as 60,128 200,128, got {str(source)[:60]!r}"
    try:
        pairs = np.asarray(source)
    except ValueError:  # of lists of several lengths
        raise ValueError(wrong) from None
    numeric = pairs.dtype.kind in "iuf" and pairs.ndim == 2 and pairs.shape[1] == 2
    if not numeric or not 2 <= len(pairs) <= MAX_POINTS:
        raise ValueError(wrong)
    if not np.all((pairs >= 0) & (pairs < CANVAS)):
        raise ValueError(
            f"points of a trajectory lie on a canvas of {CANVAS} x {CANVAS}, got {pairs.min()} to {pairs.max()}"
        )
    return tuple((int(x), int(y)) for x, y in pairs)


def is_text(text: str) -> bool:
    """Whether it holds points, or is meant to; else it names a file."""
    return is_numbers(text) or re.fullmatch(r"[0-9\s.,;-]*", text) is not None


def _parsed(text: str) -> list[tuple[float, float]]:
    """The points that text holds, or the file that it names."""
    if is_text(text):
        points, name = text, "this text"
    else:
        file, name = Path(str(existing(text))), repr(text)
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"{name} has more than {MAX_BYTES} bytes; a trajectory has a line x,y for each point")
        points = file.read_text("utf-8", "replace")
    if not re.fullmatch(rf"\s*{POINT}([\s;]+{POINT})*[\s;]*", points):
        raise ValueError(f"{name} holds no trajectory, whose points are x,y, such as 60,128 200,128: {points[:40]!r}")
    return [(float(x), float(y)) for x, y in re.findall(POINT, points)]


def resampled(points: Points, frames: int) -> Points:
    """A point for each of at least two frames: others are put between, on straight lines, or some left out."""
    if len(points) > frames:
        points = points[:: len(points) // frames][:frames]
    if len(points) == frames:
        return points
    spare, gaps = frames - len(points), len(points) - 1
    found: list[tuple[int, int]] = []
    for i, ((x, y), (to_x, to_y)) in enumerate(zip(points[:-1], points[1:], strict=True)):
        count = spare // gaps + (i < spare % gaps) + 1
        found += [(x, y)]
        found += [(int(x + k / count * (to_x - x)), int(y + k / count * (to_y - y))) for k in range(1, count)]
    return (*found, points[-1])


def motion_field(trajectories: Sequence[Points], frames: int, height: int, width: int) -> np.ndarray:
    """Motion into each frame, (F, H, W, 2) float32 pixels to the right and down; zeros into the first one.

    It is that of the points, which it spreads to their surroundings. Of two at one pixel the later trajectory counts.
    """
    rows, columns = _blur(height), _blur(width)
    moves: list[dict[tuple[int, int], tuple[int, int]]] = [{} for _ in range(frames)]
    for trajectory in trajectories:
        points = [(width * x // CANVAS, height * y // CANVAS) for x, y in resampled(trajectory, frames)]
        for i, ((x, y), (to_x, to_y)) in enumerate(zip(points[:-1], points[1:], strict=True), 1):
            moves[i][y, x] = to_x - x, to_y - y
    found = np.zeros((frames, height, width, 2), np.float32)
    for frame, own in zip(found, moves, strict=True):
        for (y, x), move in own.items():
            spread = rows[:, y, None] * columns[None, :, x]
            frame += (spread[..., None] * np.array(move)).astype(np.float32)
    return found


def _blur(size: int) -> np.ndarray:
    """How much of a pixel each pixel gets, (to, from), 1 of itself; what leaves the picture is mirrored at its edge."""
    places = np.pad(np.arange(size), REACH, mode="reflect")
    distances = np.arange(-REACH, REACH + 1)
    found = np.zeros((size, size))
    for i in range(size):
        np.add.at(found[i], places[i : i + 2 * REACH + 1], np.exp(-0.5 * (distances / SIGMA) ** 2))
    return found


def motion_pictures(motion: np.ndarray) -> np.ndarray:
    """Motion (F, H, W, 2) as colours, (F, H, W, 3) uint8: the direction is the hue, white is none.

    The largest motion of all frames has the full colour.
    """
    motion = motion.astype(np.float32)
    motion = motion / (np.sqrt(np.square(motion).sum(-1)).max() + np.finfo(np.float32).eps)
    length = np.sqrt(np.square(motion).sum(-1))
    wheel = _wheel()
    angle = np.arctan2(-motion[..., 1], -motion[..., 0]) / np.float32(np.pi)
    place = (angle + 1) / 2 * (len(wheel) - 1)
    low = np.floor(place).astype(np.int64)
    share = (place - low)[..., None]
    colour = (1 - share) * (wheel[low] / np.float32(255)) + share * (wheel[(low + 1) % len(wheel)] / np.float32(255))
    return np.floor(255 * (1 - length[..., None] * (1 - colour))).astype(np.uint8)


def _wheel() -> np.ndarray:
    """(55, 3) float32, the colours of directions, 0 to 255."""
    found, at = np.zeros((sum(WHEEL), 3), np.float32), 0
    rising = (1, 0, 2, 1, 0, 2)  # the channel that changes, which grows and falls in turns
    for i, (count, channel) in enumerate(zip(WHEEL, rising, strict=True)):
        part, ramp = found[at : at + count], np.floor(255 * np.arange(count) / count)
        full = (0, 1, 1, 2, 2, 0)[i]
        part[:, full] = 255
        part[:, channel] = ramp if i % 2 == 0 else 255 - ramp
        at += count
    return found
