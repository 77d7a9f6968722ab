"""Regions of a video with prompts of their own: what is said of them, and which latent belongs to which.

A region is a box, or what is white in a picture or a video. The later of two has what both cover; what none covers has
the video's own prompt.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image

from cogvx_jax.data.number_lists import is_numbers

MAX_REGIONS = 16
Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
    """A part of a video, and its prompt.

    Args:
      place: (left, top, right, bottom) as shares of the picture from 0 to 1; or a path, a picture, or an array
        (H, W) or (F, H, W) of which white, or True, is the region.
      prompt: what is there.
    Raises: ValueError, one sentence.
    """

    place: Any
    prompt: str

    def __post_init__(self):
        if not isinstance(self.prompt, str):
            raise ValueError(f"the prompt of a region must be text, got {str(self.prompt)[:40]!r}")
        if (box := self.box) is not None:
            left, top, right, bottom = box
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                raise ValueError(
                    f"a box is left, top, right, bottom, as shares of the picture such as 0,0,0.5,1, got {box}"
                )
        elif isinstance(self.place, str | os.PathLike):
            if not os.fspath(self.place) or "\0" in str(self.place):
                raise ValueError(f"this is no path of a region: {str(self.place)!r}")
        elif not (hasattr(self.place, "__array__") or hasattr(self.place, "__array_interface__")):
            raise ValueError(f"a region is a box, a path or a picture, got {str(self.place)[:40]!r}")

    @property
    def box(self) -> Box | None:
        if not isinstance(self.place, tuple | list):
            return None
        if len(self.place) != 4 or not all(isinstance(x, int | float) and math.isfinite(x) for x in self.place):
            raise ValueError(f"a box has four numbers, left, top, right, bottom, got {str(self.place)[:60]}")
        left, top, right, bottom = map(float, self.place)
        return left, top, right, bottom


def parse_region(text: str) -> Region:
    """The value of "0,0,0.5,1=a blue star" or "left.png=a blue star". Raises: ValueError, one sentence."""
    place, equals, prompt = text.partition("=")
    if not equals or not prompt:
        raise ValueError(f"a region is its place and its prompt, such as 0,0,0.5,1=a blue star, got {text[:60]!r}")
    if is_numbers(place):
        try:
            return Region(tuple(float(number) for number in place.split(",")), prompt)
        except ValueError as error:
            raise ValueError(f"{place[:60]!r} is no box: {error}") from None
    return Region(place, prompt)


def box_mask(box: Box, height: int, width: int) -> np.ndarray:
    """(1, H, W) bool, the pixels whose middle lies in a box."""
    left, top, right, bottom = box
    rows, columns = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    return (((top <= rows) & (rows < bottom))[:, None] & ((left <= columns) & (columns < right))[None])[None]


def region_map(masks: Sequence[np.ndarray], grid: tuple[int, int, int], per_token: int, first: int) -> np.ndarray:
    """The region of each token, (T, h, w) int32: 0 is of none, 1 is `masks[0]`.

    A token is of a region that covers half of its pixels.

    Args:
      masks: (F, H, W) bool, or (1, H, W) for all frames.
      grid: T, h, w of the tokens.
      per_token: frames of a token, but for the first, which has `first`.
    """
    found = np.zeros(grid, np.int32)
    for number, mask in enumerate(masks, 1):
        found[_shares(mask, grid, per_token, first) >= 0.5] = number
    return found


def _shares(mask: np.ndarray, grid: tuple[int, int, int], per_token: int, first: int) -> np.ndarray:
    """How much of each token a mask covers, (T, h, w)."""
    count, height, width = grid
    frames = []
    for frame in mask:
        picture = PIL.Image.fromarray(frame.astype(np.float32))
        frames.append(np.asarray(picture.resize((width, height), PIL.Image.Resampling.BOX)))
    if len(frames) == 1:
        return np.broadcast_to(frames[0], grid)
    ends = [min(first + per_token * t, len(frames)) for t in range(count)]
    begins = [0, *ends[:-1]]
    return np.stack([np.mean(frames[min(a, b - 1) : b], axis=0) for a, b in zip(begins, ends, strict=True)])
