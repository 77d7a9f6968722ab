"""Windows over pictures larger than trained: a step predicts each part by itself, and what overlaps takes a mean.

The mean is weighted: a window counts less towards its edges, so that no seam stays where one ends. The model sees a
window as if it were the whole picture; memory and the cost of attention are those of a window.

H W latents of a picture, h w of a window, P places.
Source: Bar-Tal et al. 2023, arXiv:2302.08113, with weights.
"""

import math
from typing import Any, NamedTuple

import numpy as np


class PictureWindows(NamedTuple):
    """What windows are asked for, in pixels; both overlaps are those of neighbours, at least."""

    height: int
    width: int
    overlap: tuple[int, int]

    def lay_out(self, size: tuple[int, int], per_latent: int, patch: int) -> "Places":
        """Over a picture of so many latents. Raises: ValueError."""
        window = self.height // per_latent, self.width // per_latent
        shared = self.overlap[0] // per_latent, self.overlap[1] // per_latent
        return lay_out_places(size, window, shared, patch)


class Places(NamedTuple):
    """Where the windows of a picture lie."""

    corners: Any  # (P, 2) int32, the first row and column of each
    ramp: Any  # (h, w) float32, above 0: how much each latent of a window counts
    total: Any  # (H, W) float32, the sum of these over all windows


def lay_out_places(size: tuple[int, int], window: tuple[int, int], overlap: tuple[int, int], patch: int = 1) -> Places:
    """Windows over a picture of `size`, evenly spread, neighbours sharing at least `overlap` rows or columns.

    Args:
      size, window, overlap: in latents; a window that is larger than the picture is as large as that.
      patch: latents of a token's side; windows begin at whole tokens.
    Raises: ValueError for an overlap that is not below the window.
    """
    axes, ramps = [], []
    for whole, part, shared in zip(size, window, overlap, strict=True):
        part = min(part, whole)
        if part < whole and not 0 <= shared < part:
            raise ValueError(f"windows of {part} latents are not larger than their overlap of {shared}; lower it")
        axes.append(_starts(whole, part, shared, patch))
        ramps.append(_ramp(part, max(shared, 1)))
    corners = [(top, left) for top in axes[0] for left in axes[1]]
    ramp = ramps[0][:, None] * ramps[1][None, :]
    total = np.zeros(size, np.float32)
    for top, left in corners:
        total[top : top + ramp.shape[0], left : left + ramp.shape[1]] += ramp
    return Places(np.asarray(corners, np.int32), ramp, total)


def _starts(whole: int, part: int, shared: int, patch: int) -> list[int]:
    if part == whole:
        return [0]
    step = max((part - shared) // patch * patch, patch)
    count = math.ceil((whole - part) / step) + 1
    spread = [i * (whole - part) / (count - 1) for i in range(count)]
    return sorted({min(int(at) // patch * patch, whole - part) for at in spread[:-1]} | {whole - part})


def _ramp(part: int, shared: int) -> np.ndarray:
    """1 in the middle, falling towards both ends over what neighbours share."""
    distance = np.minimum(np.arange(part), np.arange(part)[::-1]) + 1
    return np.minimum(distance / (shared + 1), 1).astype(np.float32)
