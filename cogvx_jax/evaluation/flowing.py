"""How a video file moves: the proxies of VBench's static filter, dynamic degree and motion smoothness.

The rules are VBench's; the networks are not. DIS is in RAFT's place, RIFE in that of AMT-S.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cogvx_jax.evaluation.frames import open_frames
from cogvx_jax.metrics.flickering import mean_difference
from cogvx_jax.metrics.motion import FPS, TOP_DYNAMIC, TOP_STATIC, dis_flow, is_dynamic, is_static, top_radius


def dynamic(path: Path) -> bool:
    """Whether a video moves, of frames that are about 1/8 s apart.

    Raises: as `open_frames`; ValueError for a single frame.
    """
    opened = open_frames(path)
    step = max(1, round(opened.fps / FPS))
    frames = Counted(frame for i, frame in enumerate(opened.frames) if not i % step)
    radii = [top_radius(dis_flow(*pair), TOP_DYNAMIC) for pair in _pairs(frames)]
    _check_several(frames, path)
    return is_dynamic(radii, min(opened.height, opened.width), frames.count)


def static(path: Path) -> bool:
    """Whether a video passes the static filter. Raises: as `dynamic`."""
    opened = open_frames(path)
    frames = Counted(opened.frames)
    radii = [top_radius(dis_flow(*pair), TOP_STATIC) for pair in _pairs(frames)]
    _check_several(frames, path)
    first, last = frames.first, frames.last
    ends = [top_radius(dis_flow(*pair), TOP_STATIC) for pair in ((first, last), (last, first))]
    return is_static(radii, ends, min(opened.height, opened.width), frames.count)


def smoothness(path: Path, middle: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
    """(255 - mean difference) / 255 of every second frame and what is made of its neighbours.

    Args:
      middle: makes the picture between two, (H, W, 3) uint8.
    Raises: as `open_frames`; ValueError for fewer than three frames.
    """
    differences, before, inside = list[np.floating](), None, None
    for i, frame in enumerate(open_frames(path).frames):
        if i % 2:
            inside = frame
            continue
        if before is not None and inside is not None:
            differences.append(mean_difference(inside, middle(before, frame)))
        before = frame
    if not differences:
        raise ValueError(f"{str(path)!r} has fewer than three frames; motion smoothness is of three or more")
    return float(255 - np.mean(differences, dtype=np.float64)) / 255


def rife_middle(weights: Path) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The picture between two by RIFE. Raises: as `load_interpolator`."""
    from cogvx_jax.finishing.networks import load_interpolator

    loaded = load_interpolator(weights)

    def middle(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        pictures = (np.float32(one) / 255 for one in (first, second))
        made = _program(loaded.network, *first.shape[:2])(loaded.params, *pictures)
        return np.clip(np.round(np.asarray(made) * 255), 0, 255).astype(np.uint8)

    return middle


class Counted:
    """Frames as they come, of which the first and the last are kept and all are counted."""

    def __init__(self, frames: Iterable[np.ndarray]):
        self._frames, self.count = iter(frames), 0
        self.first = self.last = np.zeros((0, 0, 3), np.uint8)

    def __iter__(self) -> Iterator[np.ndarray]:
        for frame in self._frames:
            self.first = self.first if self.count else frame
            self.last, self.count = frame, self.count + 1
            yield frame


def _check_several(frames: Counted, path: Path) -> None:
    if frames.count < 2:
        raise ValueError(f"{str(path)!r} has a single frame, which neither moves nor is static")


def _pairs(frames: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Neighbours, two of which are held at a time."""
    before = None
    for frame in frames:
        if before is not None:
            yield before, frame
        before = frame


@functools.lru_cache(maxsize=8)
def _program(network: Any, height: int, width: int) -> Callable[..., Any]:
    from cogvx_jax.finishing.interpolate import middle_program

    return middle_program(network, height, width)
