"""Frames of a video file as VBench's tools see them: through OpenCV, whose conversion to RGB is not the project's own.

A score that is to be the board's needs the board's bytes: swscale's default conversion, and frames as they are stored.
"""

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cogvx_jax.data.decode import MAX_PIXELS
from cogvx_jax.data.files import existing

MAX_FRAMES = 20_000  # of a video: a quarter of an hour at 24 a second; the boards' have 20 seconds at most
# Playlists and the like must not open other addresses, and what FFmpeg says of damage is no sentence.
QUIET = {
    "OPENCV_FFMPEG_CAPTURE_OPTIONS": "protocol_whitelist;file,subfile",
    "OPENCV_FFMPEG_LOGLEVEL": "-8",
    "OPENCV_LOG_LEVEL": "SILENT",
}


class Opened(NamedTuple):
    """A video that is read frame by frame.

    frames: (H, W, 3) uint8 RGB each; they can be taken once.
    """

    height: int
    width: int
    fps: Fraction
    frames: Iterator[np.ndarray]


def has_opencv() -> bool:
    import importlib.util

    return importlib.util.find_spec("cv2") is not None


def open_frames(path: Path) -> Opened:
    """Opens a video file.

    Raises: ImportError without OpenCV; FileNotFoundError; ValueError, here or on the way, for a file that OpenCV reads
      no frames of, and for more of them or larger ones than any board has.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import cv2

    # An absolute path: "-" and the like are names, and no image sequence is meant.
    capture = cv2.VideoCapture(str(Path(str(existing(path))).absolute()), cv2.CAP_FFMPEG)
    height, width = (int(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH))
    if not capture.isOpened() or height < 1 or width < 1:
        capture.release()
        raise ValueError(f"{str(path)!r} cannot be read as a video; give an mp4 file")
    if height * width > MAX_PIXELS:
        capture.release()
        raise ValueError(f"{str(path)!r} is too large: a frame of {height}x{width}; at most {MAX_PIXELS} pixels")
    rate = capture.get(cv2.CAP_PROP_FPS)
    fps = Fraction(rate).limit_denominator(1001) if 0 < rate < 1e4 else Fraction(25)
    return Opened(height, width, fps, _frames(capture, path))


def _frames(capture: Any, path: Path) -> Iterator[np.ndarray]:
    import cv2

    try:
        count = 0
        while True:
            there, frame = capture.read()
            if not there:
                break
            count += 1
            if count > MAX_FRAMES:
                raise ValueError(f"{str(path)!r} has more than {MAX_FRAMES} frames; no board's video is that long")
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        if not count:
            raise ValueError(f"{str(path)!r} holds no video frames; give an mp4 file with at least one")
    finally:
        capture.release()
