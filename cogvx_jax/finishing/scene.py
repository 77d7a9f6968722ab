"""What a maker of sound gets to see and read of a video: a small copy of its pictures, the prompt, a seed."""

import dataclasses
import itertools
from collections.abc import Generator, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from cogvx_jax.data.decode import stream_video
from cogvx_jax.data.video import resize_frames
from cogvx_jax.data.writer import VideoWriter
from cogvx_jax.finishing.source import open_source

SIDE = 640  # pixels of the longer side, at most: networks that hear pictures look at 224 to 384


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """A video that sound is made for.

    Args:
      video: an .mp4 of H.264 without sound and without texts, sides of at most `SIDE`. It is gone after the answer.
      fps: frames a second.
      count: how many frames.
      height, width: of a frame.
      seconds: how long the sound should be, that of the finished video.
      prompt: what the video shows; "" where nobody said.
      seed: other numbers give other sound, where the maker draws any.
    """

    video: Path
    fps: Fraction
    count: int
    height: int
    width: int
    seconds: float
    prompt: str
    seed: int

    def frames(self) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 each, decoded as they are asked for."""
        with stream_video(self.video) as stream:
            yield from stream.at(itertools.count())


class SmallCopy:
    """The pictures of a video, small, as an .mp4. The file is whole once all frames have passed.

    Attributes:
      count: of the frames that have passed.
      height, width: of a small picture, once one has passed.
    """

    def __init__(self, path: Path, fps: Fraction):
        self.path, self.fps = path, fps
        self.count, self.height, self.width = 0, 0, 0

    def passing(self, chunks: Iterable[np.ndarray]) -> Generator[np.ndarray, None, None]:
        """The same chunks of frames, (F', H, W, 3) uint8, each copied as it passes."""
        with VideoWriter(self.path, self.fps) as writer:
            for frames in chunks:
                if not self.count:
                    self.height, self.width = _small(*frames.shape[1:3])
                writer.write(resize_frames(frames, self.height, self.width))
                self.count += len(frames)
                yield frames


def _small(height: int, width: int) -> tuple[int, int]:
    shrink = min(1.0, SIDE / max(height, width))
    small = [max(round(side * shrink / 2) * 2, 2) for side in (height, width)]
    return small[0], small[1]


def small_copy(video: Any, path: Path, source_fps: float | Fraction | None = None) -> SmallCopy:
    """Writes the pictures of a video, small.

    Args:
      video, source_fps: see `open_source`.
    Raises: as `open_source`.
    """
    with open_source(video, source_fps) as source:
        copy = SmallCopy(path, source.fps)
        for _ in copy.passing(frame[None] for frame in source.frames):
            pass
        return copy
