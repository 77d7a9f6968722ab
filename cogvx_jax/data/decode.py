"""Video files decoded frame by frame."""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator

import imageio_ffmpeg
import numpy as np

from cogvx_jax.data.pictures import existing
from cogvx_jax.data.tars import Member

# What imageio_ffmpeg raises; the last three for a header unlike any.
BROKEN = (OSError, RuntimeError, ValueError, LookupError, AttributeError)
# It warns of every video that is turned, as phones' are.
logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)
# Else it forks with a function to run in the child, which can hang in a process of many threads, as those with JAX are.
os.environ.setdefault("IMAGEIO_FFMPEG_NO_PREVENT_SIGINT", "1")

# How ffmpeg reads: by default its conversion to RGB leaves colours blocky and about one level too dark.
DECODER = "-fps_mode passthrough -sws_flags bicubic+accurate_rnd+full_chroma_int"


@dataclasses.dataclass(frozen=True)
class Stream:
    """A video while it is decoded: frames (H, W, 3) uint8 RGB, frames per second and seconds, where known."""

    frames: Iterator[np.ndarray]
    height: int
    width: int
    fps: float | None
    duration: float | None


@contextlib.contextmanager
def stream_video(source: str | os.PathLike | Member, *, start: float = 0.0, strict: bool = False) -> Iterator[Stream]:
    """Decodes a video file as its frames are asked for; see `read_video`.

        with stream_video("clip.mp4") as stream:
            first = next(stream.frames)

    Args:
      start: seconds into the video, before which no frame is given.
      strict: end where the file is damaged. By default ffmpeg makes frames up there.
    Raises: FileNotFoundError; ValueError, here or on the way, for a file without a video in it.
    """
    if isinstance(source, Member):
        url = source.url
    else:  # "file:" keeps ffmpeg from reading a name such as "a:b.mp4" as a protocol
        url = f"file:{existing(source).absolute()}"
    options = (["-ss", f"{start:.4f}"] if start else []) + (["-xerror"] if strict else [])
    reader = imageio_ffmpeg.read_frames(url, input_params=options, output_params=DECODER.split())
    unreadable = ValueError(f"{str(source)!r} cannot be read as a video; give an mp4, webm or gif file")
    try:
        try:
            meta = next(reader)
            width, height = meta["size"]
        except BROKEN as error:
            raise unreadable from error

        def frames() -> Iterator[np.ndarray]:
            try:
                for frame in reader:
                    yield np.frombuffer(frame, np.uint8).reshape(height, width, 3)
            except BROKEN as error:
                raise unreadable from error

        yield Stream(frames(), height, width, meta["fps"] or None, meta["duration"] or None)
    finally:
        reader.close()
