"""`cx.finish_to`: `finishing.finish.finish_file` by keywords, of whatever a video comes as."""

import dataclasses
import os
from fractions import Fraction
from typing import Any

import numpy as np

from cogvx_jax.data.video import Video
from cogvx_jax.finishing.finish import Finished, finish_file
from cogvx_jax.finishing.options import Delivery, Finish

OF_FILE = {field.name for field in dataclasses.fields(Delivery)}


def finish_to(
    video: Any, out: str | os.PathLike, *, source_fps: float | Fraction | None = None, **options: Any
) -> Finished:
    """A video with larger pictures, more frames or sound, in a file of any codec.

        cx.finish_to(video, "out.mp4", scale=2, fps=32, sound_from="http://localhost:8100/sound")

    Args:
      video: a path, a `Video` of one clip, or frames (F, H, W, 3) uint8.
      out: .mp4, .mov, .mkv or .webm; .gif or .webp; or a name without a suffix, for a folder of PNGs.
      source_fps: the rate of frames.
      options: those of `Finish` and `Delivery`. `sound_from` may be a function, too, of a `finishing.scene.Scene`.
    Raises: as `finish`; OSError, which names `out`, if it cannot be written.
    """
    if isinstance(video, np.ndarray):
        if source_fps is None:
            raise ValueError("frames know no rate; give source_fps, their frames a second")
        video = Video(video[None], source_fps)
    elif source_fps is not None:
        raise ValueError("source_fps is of frames; a file and a Video know their own rate")
    file = {name: options.pop(name) for name in [*options] if name in OF_FILE}
    return finish_file(video, out, Finish(**options), Delivery(**file))
