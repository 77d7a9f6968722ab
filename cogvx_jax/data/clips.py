"""Captioned videos, and clips cut from them: what fine-tuning reads."""

import dataclasses
import fractions
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from cogvx_jax.data.decode import stream_video
from cogvx_jax.data.files import existing
from cogvx_jax.data.pictures import read_image
from cogvx_jax.data.rates import frame_rate
from cogvx_jax.data.tars import File, read_chunks

VIDEOS = {".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif"}
PICTURES = {".png", ".jpg", ".jpeg", ".webp"}


@dataclasses.dataclass(frozen=True)
class Source:
    """A video file, or a picture as a clip of one frame, and what it shows."""

    video: File
    prompt: str
    image: File | None = None  # what an image-to-video model is given; None is the clip's first frame
    control: File | None = None  # a video of the same frames, such as their edges, that a ControlNet is given
    # numbers and short texts that the list has beside these, such as scores, by which a stage of training may choose
    scores: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)


class TooShort(ValueError):
    """A video has fewer frames than were asked for."""


def read_clip(source: File, *, frames: int, fps: float, height: int, width: int) -> np.ndarray:
    """The first `frames` frames at `fps` of a video, scaled and cropped about the centre: (F, H, W, 3) uint8.

    Frames are chosen by their time stamps: frame i is the one shown i / `fps` seconds after the first, or the nearest
    to it where the rate is constant. A video of a lower rate than `fps` is taken at its own rate. A picture is one
    frame. Nothing after the last of these frames is decoded, and only one frame is held that is not yet scaled.

    Raises: FileNotFoundError; TooShort; ValueError for a file that is neither, or damaged.
    """
    if next(read_chunks(existing(source)), None) is None:
        raise ValueError("the file is empty")
    if source.suffix.lower() in PICTURES:
        if frames > 1:
            raise TooShort(f"a picture is one frame, too short for {frames}; encode pictures with --frames 1")
        return read_picture(source, height, width)[None]
    with stream_video(source, strict=True) as stream:
        own = stream.fps or frame_rate(fps)
        shown = stream.at(slots(own, fps, frames))
        clip = [crop(frame[None], height, width)[0] for frame in shown]
    if len(clip) == frames:
        return np.stack(clip)
    count, expected = stream.passed, round((stream.duration or 0) * own)
    if count < 0.9 * expected - 1:  # the length in the header is not exact
        raise ValueError(f"it is damaged: it breaks off after {count} of about {expected} frames")
    if not count:
        raise ValueError("it holds no video frames")
    raise TooShort(f"{count} frames at {float(own):g} fps are too short for {frames} at {float(fps):g} fps")


class Shown(NamedTuple):
    """Of a picture, or of a video's frames."""

    height: int
    width: int
    fps: float | None  # None where the file tells nothing


def shown(source: File) -> Shown:
    """What a file shows. Raises: as `read_clip`."""
    if source.suffix.lower() in PICTURES:
        height, width, _ = read_image(source).shape
        return Shown(height, width, None)
    with stream_video(existing(source), strict=True) as stream:
        return Shown(stream.height, stream.width, None if stream.fps is None else float(stream.fps))


def slots(own: fractions.Fraction, fps: float, frames: int) -> list[int]:
    """Where in a video of rate `own` the frames of a clip at `fps` are, the first in slot 0; see `decode`."""
    return [round(i * max(own / frame_rate(fps), fractions.Fraction(1))) for i in range(frames)]


def read_picture(source: File, height: int, width: int) -> np.ndarray:
    """A picture scaled and cropped about the centre, (H, W, 3) uint8. Raises: as `video.read_image`."""
    return crop(read_image(source)[None], height, width)[0]


def crop(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """The largest centred part of the right shape, (F, H', W', 3) -> (F, height, width, 3) uint8, bicubic."""
    tall, wide = frames.shape[1:3]
    if (tall, wide) == (height, width):
        return frames
    scale = min(tall / height, wide / width)
    top, left = (tall - scale * height) / 2, (wide - scale * width) / 2
    box = (left, top, wide - left, tall - top)
    bicubic = PIL.Image.Resampling.BICUBIC
    return np.stack([np.asarray(PIL.Image.fromarray(f).resize((width, height), bicubic, box)) for f in frames])
