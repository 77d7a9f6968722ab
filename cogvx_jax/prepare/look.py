"""What steps see of a clip: small frames often, and large ones seldom. Both are read in one pass over the film."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cogvx_jax.prepare.films import ask
from cogvx_jax.prepare.rows import Row

SMALL_SIDE, SMALL_RATE = 320, 8.0  # pixels of the longer side, frames a second
LARGE_SIDE = 960
LARGE_EVERY, LARGE_LEAST, LARGE_MOST = 2.0, 3, 24  # seconds; frames of a clip


@dataclasses.dataclass(frozen=True)
class Look:
    """Frames of a clip, without its borders once these are known.

    small: luma (F, H, W) uint8, 0 to 255, at `rate` a second.
    large: (F, H, W, 3) uint8, of the moments `times`, seconds from the clip's beginning.
    native: whether the large ones have the film's own size.
    """

    small: np.ndarray
    rate: float
    large: np.ndarray
    times: tuple[float, ...]
    native: bool

    @functools.cached_property
    def gray(self) -> np.ndarray:
        """The small frames as (F, H, W) float32."""
        return self.small.astype(np.float32)

    def cropped(self, crop: Sequence[float] | None) -> "Look":
        """Without what is outside top, left, bottom and right, shares of the frame."""
        if crop is None or tuple(crop) == (0, 0, 1, 1):
            return self
        return dataclasses.replace(self, small=cut(self.small, crop), large=cut(self.large, crop))


def cut(frames: np.ndarray, crop: Sequence[float]) -> np.ndarray:
    """Frames (F, H, W, ...) without what is outside top, left, bottom and right, shares of the frame."""
    height, width = frames.shape[1:3]
    top, left, bottom, right = (
        round(share * side) for share, side in zip(crop, (height, width, height, width), strict=True)
    )
    return frames[:, top : max(bottom, top + 1), left : max(right, left + 1)]


def slots_of(clip: Row) -> tuple[list[int], list[int], float]:
    """Slots of the small and of the large frames, and the rate of the small ones."""
    first, stop, fps = clip["start_frame"], clip["end_frame"], clip["fps"] or 25.0
    step = max(fps / SMALL_RATE, 1.0)
    small = sorted({first + round(i * step) for i in range(math.ceil((stop - first) / step))} - {stop})
    count = min(max(math.ceil((stop - first) / fps / LARGE_EVERY), LARGE_LEAST), LARGE_MOST, stop - first)
    large = sorted({first + int((i + 0.5) * (stop - first) / count) for i in range(count)})
    return small, large, fps / step


@contextlib.contextmanager
def looks(film: Row, clips: Sequence[Row], limit: float) -> Iterator[Iterator[Look]]:
    """The look of each of a film's clips, in their order. Raises, on the way: as `films.ask`."""
    laid = [slots_of(clip) for clip in clips]
    asked = [[[SMALL_SIDE, False, small], [LARGE_SIDE, True, large]] for small, large, _ in laid]
    native = max(film["width"], film["height"]) <= LARGE_SIDE
    with ask("looks", Path(film["source"]), limit, clips=asked) as answers:

        def each() -> Iterator[Look]:
            for clip, (_, large, rate) in zip(clips, laid, strict=True):
                (_, seen), (_, seldom) = next(answers), next(answers)
                assert seen is not None and seldom is not None
                times = tuple((slot - clip["start_frame"]) / (clip["fps"] or 25.0) for slot in large[: len(seldom)])
                yield Look(seen, rate, seldom, times, native)

        yield each()
