"""What a maker of sound gets to see and read of a video: a small copy of its pictures, the prompt, a seed."""

import dataclasses
import itertools
from collections.abc import Iterator
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


def small_copy(video: Any, path: Path, source_fps: float | Fraction | None = None) -> tuple[Fraction, int, int, int]:
    """Writes the pictures of a video, small, as an .mp4.

    Args:
      video, source_fps: see `open_source`.
    Returns: its rate, how many frames it has, their height and width.
    Raises: as `open_source`.
    """
    with open_source(video, source_fps) as source:
        shrink = min(1.0, SIDE / max(source.height, source.width))
        height, width = (max(round(side * shrink / 2) * 2, 2) for side in (source.height, source.width))
        count = 0
        with VideoWriter(path, source.fps) as writer:
            for frame in source.frames:
                writer.write(resize_frames(frame[None], height, width))
                count += 1
        return source.fps, count, height, width
