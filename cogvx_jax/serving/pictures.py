"""Pictures of a finished video, still and moving ones."""

import io
import tempfile
from pathlib import Path

import numpy as np
import PIL.Image

from cogvx_jax.data.decode import stream_video
from cogvx_jax.data.writer import VideoWriter

THUMBNAIL, SPRITE = 512, 240  # pixels of the longer side
MOVING, MOVING_RATE = 240, 8  # of a GIF: pixels of its height, frames a second
SPRITES = 16  # frames of a sheet, in rows of four


def picture_of(file: Path, variant: str) -> bytes:
    """A picture file of a video: "thumbnail" is its first frame as WebP, "spritesheet" several frames as JPEG,
    "gif" all of it at a low height and rate."""
    return VARIANTS[variant](file)


def _thumbnail(file: Path) -> bytes:
    with stream_video(file) as stream:
        return _bytes(_small(next(stream.at([0])), THUMBNAIL), "WEBP")


def _spritesheet(file: Path) -> bytes:
    with stream_video(file) as stream:
        frames = [np.asarray(_small(frame, SPRITE)) for frame in stream.at(range(2**14))]
    chosen = [frames[i] for i in np.linspace(0, len(frames) - 1, SPRITES).round().astype(int)]
    rows = [np.hstack(chosen[i : i + 4]) for i in range(0, SPRITES, 4)]
    return _bytes(PIL.Image.fromarray(np.vstack(rows)), "JPEG")


def _gif(file: Path) -> bytes:
    with tempfile.TemporaryDirectory() as folder, stream_video(file) as stream:
        own = float(stream.fps or MOVING_RATE)
        rate = min(MOVING_RATE, own)
        ratio = min(1.0, MOVING / stream.height)
        size = max(1, round(stream.width * ratio)), max(1, round(stream.height * ratio))
        wanted = np.arange(0, 2**14, own / rate).round().astype(int)
        with VideoWriter(made := Path(folder) / "video.gif", rate) as writer:
            for frame in stream.at(wanted):
                writer.write(np.asarray(PIL.Image.fromarray(frame).resize(size))[None])
        return made.read_bytes()


def _small(frame: np.ndarray, side: int) -> PIL.Image.Image:
    image = PIL.Image.fromarray(frame)
    image.thumbnail((side, side))
    return image


def _bytes(image: PIL.Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, quality=85)
    return file.getvalue()


VARIANTS = {"video": lambda file: file.read_bytes(), "thumbnail": _thumbnail, "spritesheet": _spritesheet, "gif": _gif}
