"""Videos to finish, whatever they come as: a file, a `Video`, frames, or frames as they are made."""

import contextlib
import dataclasses
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from cogvx_jax.data.decode import pictures_last, stream_video
from cogvx_jax.data.rates import frame_rate
from cogvx_jax.data.video import Video
from cogvx_jax.data.writer import check_frames


@dataclasses.dataclass(frozen=True)
class Opened:
    """A video while it is read.

    frames: (H, W, 3) uint8 each.
    count: how many there should be; None where that is not known before the end.
    slots: of those that are not taken yet, the numbers; None where frames come as they are made.
    """

    frames: Iterator[np.ndarray]
    fps: Fraction
    height: int
    width: int
    count: int | None
    slots: "Slots | None" = None

    def frames_from(self, number: int) -> Iterator[np.ndarray]:
        """The frames from one on, to be asked for once; those before it are decoded where need be, and no more."""
        if number and self.slots is not None:
            next(self.frames)
            self.slots.following = number
            return self.frames
        return itertools.islice(self.frames, number, None)


class Slots:
    """0, 1, 2 and so on; or another one follows."""

    def __init__(self) -> None:
        self.following = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.following += 1
        return self.following - 1


@contextlib.contextmanager
def open_source(video: Any, fps: float | Fraction | None = None, count: int | None = None) -> Iterator[Opened]:
    """Opens a video to read it once.

    Args:
      video: a path, a `Video` of one clip, frames (F, H, W, 3) uint8, or an iterable of such, as they are made.
      fps: the rate of frames, which know none; of a file, another than it says.
      count: of frames that are made one after the other, where it is known.
    Raises: FileNotFoundError; ValueError for what is no video, holds no frame, or has no known rate.
    """
    if isinstance(video, str | os.PathLike):
        with stream_video(video) as stream:
            if stream.interlaced:
                warnings.warn(
                    f"{str(video)!r} is interlaced, and its lines are taken as they are; "
                    "better is to give what `ffmpeg -i IN -vf bwdif OUT` makes of it",
                    stacklevel=2,
                )
            rate = stream.fps if fps is None else frame_rate(fps)
            if rate is None:
                raise ValueError(f"{str(video)!r} does not tell its rate; give source_fps, its frames a second")
            count = None if stream.duration is None else max(round(stream.duration * rate), 1)
            slots = Slots()
            opened = _opened(stream.at(slots), rate, count, repr(str(video)))
            yield dataclasses.replace(opened, slots=slots)
        return
    if isinstance(video, Video):
        if len(video.frames) != 1:
            raise ValueError(f"one clip is finished at a time, and this video has {len(video.frames)}")
        video, fps = video.frames[0], video.fps if fps is None else fps
    if fps is None:
        raise ValueError("frames know no rate; give source_fps, their frames a second")
    count = len(video) if isinstance(video, np.ndarray) else count
    yield _opened(_frames(video), frame_rate(fps), count, "the video")


def _opened(frames: Iterator[np.ndarray], fps: Fraction, count: int | None, name: str) -> Opened:
    first = next(frames, None)
    if first is None:
        raise ValueError(f"{name} holds no frames; give one with at least one")
    height, width = first.shape[:2]
    return Opened(itertools.chain([first], frames), fps, height, width, count)


def _frames(video: np.ndarray | Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Raises: ValueError for frames of another shape, type or size than the first."""
    size = None
    for some in [video] if isinstance(video, np.ndarray) else video:
        frames = check_frames(some, "FHW3")
        size = size or frames.shape[1:3]
        if frames.shape[1:3] != size:
            raise ValueError(f"all frames must be {size[0]}x{size[1]}, got {frames.shape[1]}x{frames.shape[2]}")
        yield from frames


def warn_of_missing(video: Any, job: Any, made: int) -> None:
    """Warns where fewer frames could be read than a file says it has: it is cut off or damaged.

    Files round how long they last, so that a frame, or one of fifty, is not looked at.
    """
    if job.count is None or not isinstance(video, str | os.PathLike):
        return
    missing = (job.count - made) / job.rate
    if missing > max(1.5 / job.source.fps, job.count / job.rate / 50) and (said := pictures_last(video)):
        read = float(made / job.rate)
        warnings.warn(
            f"{str(video)!r} says that it lasts {said:.2f} s, and {read:.2f} s could be read: it is cut off or damaged",
            stacklevel=2,
        )
