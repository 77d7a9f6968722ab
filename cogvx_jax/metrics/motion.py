"""How much a video moves: optical flow, and VBench's rules about it.

VBench finds the flow by RAFT, whose weights nothing here brings. DIS stands in for it, so whatever is made of it is a
proxy. The rules are VBench's own.

Shapes: H W pixels. A radius is the length of the flow of a pixel, in pixels.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

NEEDED = "opencv-python-headless: pip install 'cogvx_jax[evaluate]'"
FULL = 256.0  # pixels of the shorter side that thresholds are stated for
TOP_DYNAMIC, TOP_STATIC = 0.05, 0.02  # parts of a frame with the longest flow
FPS = 8  # at which the dynamic degree is judged


def dis_flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The optical flow from a frame to another one, (H, W, 3) uint8 RGB -> (H, W, 2) float32 pixels, x and y.

    Raises: ImportError without OpenCV; ValueError for two sizes or frames of fewer than 16 pixels a side.
    Source: Kroeger et al. 2016, arXiv:1603.03590; OpenCV's medium preset.
    """
    import cv2

    if first.shape != second.shape or min(first.shape[:2]) < 16:
        raise ValueError(f"flow is of two frames of one size, 16x16 or more, got {first.shape} and {second.shape}")
    gray = (cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in (first, second))
    return _dis().calc(*gray, None)


def top_radius(flow: np.ndarray, part: float) -> float:
    """The mean of the longest radii of a flow (H, W, 2): of this part of its pixels, of one at least."""
    radii = np.sqrt(np.sum(np.square(flow), axis=-1)).ravel()
    count = max(int(len(radii) * part), 1)
    return float(np.mean(np.sort(radii)[-count:]))


def is_dynamic(radii: Sequence[float], side: int, frames: int) -> bool:
    """Whether a video moves, by VBench's dynamic degree.

    Args:
      radii: `top_radius` by `TOP_DYNAMIC` of each pair of neighbours, of frames that are 1/8 s apart.
      side: pixels of the shorter side.
      frames: how many those are.
    """
    moving = sum(radius > 6 * side / FULL for radius in radii)
    return bool(radii) and moving >= round(4 * frames / 16)  # none are needed of two frames, as there


def is_static(radii: Sequence[float], ends: Sequence[float], side: int, frames: int) -> bool:
    """Whether VBench's static filter lets a video pass.

    Args:
      radii: `top_radius` by `TOP_STATIC` of each pair of neighbours.
      ends: the same from the first frame to the last, and back.
      side: pixels of the shorter side.
      frames: of the video.
    """
    threshold, count = 3 * side / FULL, round(2 * frames / 16)
    return sum(radius > threshold for radius in radii) <= count and max(ends) <= threshold * count * 2


@functools.lru_cache(maxsize=1)
def _dis() -> Any:
    import cv2

    return cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
