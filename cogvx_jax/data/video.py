"""Pictures and video files, in and out.

A clip is uint8 (F, H, W, 3) on the side of files and float (F, H, W, 3) in [-1, 1] on the side of models;
`to_model_pixels` and `to_uint8` cross over, with the arithmetic of diffusers' `VideoProcessor`.
"""

import base64
import dataclasses
import fractions
import itertools
import os
import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np
import PIL.Image

from cogvx_jax.data.decode import stream_video
from cogvx_jax.data.pictures import read_image as read_image
from cogvx_jax.data.rates import frame_rate
from cogvx_jax.data.writer import VideoWriter as VideoWriter
from cogvx_jax.data.writer import check_frames, check_writable
from cogvx_jax.temporaries import check_local

# Of the copies in a notebook, which sends 1 MB a second: a detailed clip of 81 frames of 768x1360 is 3.3 MB as saved.
SHOWN_SIDE, SHOWN_CRF = 480, 28
MAX_BYTES = 2**35  # of the frames of one video: 12,000 of 720p


@dataclasses.dataclass(frozen=True, eq=False)
class Video:
    """Clips of one length and size. Shows itself in a notebook.

    Attributes:
      frames: (B, F, H, W, 3) uint8, RGB.
      fps: frames per second; kept as an exact fraction, whose numerator and denominator are those of the rate.
      records: of each clip, the text that says how it was made; None, or nothing at all, where that is not known.
    Raises: ValueError if `frames` has another shape or type, or `fps` is not positive.
    """

    frames: np.ndarray
    fps: fractions.Fraction | float
    records: Sequence[str | None] = ()

    def __post_init__(self):
        object.__setattr__(self, "frames", check_frames(self.frames, "BFHW3"))
        object.__setattr__(self, "fps", frame_rate(self.fps))
        object.__setattr__(self, "records", tuple(self.records) or (None,) * len(self.frames))
        if len(self.records) != len(self.frames):
            raise ValueError(f"{len(self.records)} records of {len(self.frames)} clips; give one each, or none")

    def save(self, path, *, record: bool = True) -> list[pathlib.Path]:
        """Writes the clips, by the suffix of `path`: .mp4, .gif, .webm, .webp or, without one, a folder of PNGs.

        Files of the same name are replaced; a folder must be new or empty.

        Args:
          record: let the files tell how they were made, prompt included, where that is known; `cogvx show` prints it.
        Returns: the paths written: `path` itself if B is 1, else `stem-0.mp4`, `stem-1.mp4`, ... beside it.
        Raises: what `check_writable` and `VideoWriter` raise.
        """
        check_local(path, "a video's file or folder")
        path = pathlib.Path(path)
        if len(self.frames) == 1:
            paths = [path]
        else:
            paths = [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(len(self.frames))]
        comments = self.records if record else (None,) * len(paths)
        for target, comment in zip(paths, comments, strict=True):
            check_writable(target, commented=comment is not None)
        for target, clip, comment in zip(paths, self.frames, comments, strict=True):
            with VideoWriter(target, self.fps, comment) as writer:
                writer.write(clip)
        return paths

    def contact_sheet(self, columns: int | None = None) -> PIL.Image.Image:
        """One picture: a row for each clip, of `columns` frames evenly spread from first to last (8 unless told)."""
        length = self.frames.shape[1]
        columns = min(length, 8) if columns is None else columns
        if not 1 <= columns <= length:
            raise ValueError(f"columns must be from 1 to the {length} frames of the clip, got {columns}")
        chosen = self.frames[:, np.linspace(0, length - 1, columns).round().astype(int)]
        return PIL.Image.fromarray(np.vstack([np.hstack(list(row)) for row in chosen]))

    def __repr__(self) -> str:
        b, f, h, w, _ = self.frames.shape
        return f"Video({b} x {f} frames of {h}x{w}, {float(self.fps):g} fps, {float(f / self.fps):.1f} s)"

    def _repr_html_(self) -> str:
        """Small copies of the clips, which a notebook holds for ever: `save` writes them as they are."""
        with tempfile.TemporaryDirectory() as folder:
            clips = [self._small_copy(clip, pathlib.Path(folder, "clip.mp4")) for clip in self.frames]
        tag = '<video controls loop autoplay muted playsinline src="data:video/mp4;base64,{}"></video>'
        shown = "".join(tag.format(base64.b64encode(clip).decode()) for clip in clips)
        return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{shown}</div>'

    def _small_copy(self, clip: np.ndarray, path: pathlib.Path) -> bytes:
        """An .mp4 of frames (F, H, W, 3), whose shorter side is of at most `SHOWN_SIDE` pixels."""
        _, height, width, _ = clip.shape
        factor = min(1, SHOWN_SIDE / min(height, width))
        height, width = (max(round(side * factor / 2) * 2, 2) for side in (height, width))  # even, as .mp4 needs it
        with VideoWriter(path, self.fps, crf=SHOWN_CRF) as writer:
            writer.write(resize_frames(clip, height, width))
        return path.read_bytes()


def read_video(source, frames: int | None = None) -> tuple[np.ndarray, fractions.Fraction | None]:
    """Reads a clip as frames (F, H, W, 3) uint8 RGB and its frames per second.

    A video of variable rate is read at the rate that its time stamps lie on: a frame that is shown for longer comes
    out several times. One of constant rate comes out as it is stored, each frame once.

    Args:
      source: a path of anything ffmpeg decodes (mp4, webm, gif, ...), or frames as a uint8 array (F, H, W, 3).
      frames: how many to read at most, from the first on; None is all. No others are decoded or held. Fewer come back
        if the video has no more: then their count is all that it has.
    Returns: the frames, and their exact rate, such as 30000/1001; None for an array or if the file tells none.
    Raises: FileNotFoundError for a path that does not exist; ValueError for a file without a video in it, for HDR
      and for frames of another shape or type.
    """
    if frames is not None and frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    if not isinstance(source, str | os.PathLike):
        return check_frames(source, "FHW3")[:frames], None
    clip: list[np.ndarray] = []
    with stream_video(source) as stream:
        for frame in stream.at(itertools.count() if frames is None else range(frames)):
            clip.append(frame)
            if len(clip) * frame.nbytes > MAX_BYTES:
                raise ValueError(f"{str(source)!r} has more frames than can be held; read fewer, with frames=N")
    if not clip:
        raise ValueError(f"{str(source)!r} holds no video frames; give an mp4, webm or gif file with at least one")
    return np.stack(clip), stream.fps


def to_model_pixels(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes frames to what a model takes, (..., H, W, 3) uint8 -> (..., height, width, 3) float32 in [-1, 1].

    The picture is stretched, not cropped, by PIL's Lanczos filter, as diffusers' `VaeImageProcessor` does.
    """
    frames = check_frames(frames, "...HW3")
    flat = frames.reshape(-1, *frames.shape[-3:])
    out = np.empty((len(flat), height, width, 3), np.float32)
    for i, frame in enumerate(flat):
        out[i] = np.asarray(PIL.Image.fromarray(frame).resize((width, height), PIL.Image.Resampling.LANCZOS))
    return (out / 255.0 * 2.0 - 1.0).reshape(*frames.shape[:-3], height, width, 3)


def resize_frames(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Frames (F, H, W, 3) uint8 in another size, as models see them: stretched; those of the size as they are."""
    if frames.shape[1:3] == (height, width):
        return frames
    return np.concatenate([to_uint8(to_model_pixels(frame[None], height, width)) for frame in frames])


def to_uint8(pixels) -> np.ndarray:
    """Rounds pixels of any shape from [-1, 1], values beyond clipped, to uint8. 0 -> 128 (127.5 rounds to even)."""
    unit = np.clip(np.asarray(pixels, np.float32) * 0.5 + 0.5, 0, 1)
    return (unit * 255).round().astype(np.uint8)
