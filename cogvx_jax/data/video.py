"""Pictures and video files, in and out.

A clip is uint8 (F, H, W, 3) on the side of files and float (F, H, W, 3) in [-1, 1] on the side of models;
`to_model_pixels` and `to_uint8` cross over, with the arithmetic of diffusers' `VideoProcessor`.
"""

import base64
import contextlib
import dataclasses
import logging
import os
import pathlib
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any

import imageio_ffmpeg
import numpy as np
import PIL.Image
import PIL.ImageOps

from cogvx_jax.data.tars import Member, open_file

# What ffmpeg writes for each suffix. The matrix is given and tagged, or players guess different colours.
# A GIF gets one palette per frame: one for the whole clip would hold back every frame until the last.
ENCODERS = {
    ".mp4": "-vf scale=out_color_matrix=bt709:out_range=tv,"
    "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709 "
    "-c:v libx264 -crf 17 -pix_fmt yuv420p -movflags +faststart -f mp4",
    ".gif": "-filter_complex split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1 -loop 0 -f gif",
}

# What imageio_ffmpeg raises; the last three for a header unlike any.
BROKEN = (OSError, RuntimeError, ValueError, LookupError, AttributeError)
# It warns of every video that is turned, as phones' are.
logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)
# Else it forks with a function to run in the child, which can hang in a process of many threads, as those with JAX are.
os.environ.setdefault("IMAGEIO_FFMPEG_NO_PREVENT_SIGINT", "1")

# How ffmpeg reads: by default its conversion to RGB leaves colours blocky and about one level too dark.
DECODER = "-fps_mode passthrough -sws_flags bicubic+accurate_rnd+full_chroma_int"


@dataclasses.dataclass(frozen=True, eq=False)
class Video:
    """Clips of one length and size. Shows itself in a notebook.

    Attributes:
      frames: (B, F, H, W, 3) uint8, RGB.
      fps: frames per second.
    Raises: ValueError if `frames` has another shape or type, or `fps` is not positive.
    """

    frames: np.ndarray
    fps: int

    def __post_init__(self):
        object.__setattr__(self, "frames", _uint8(self.frames, "BFHW3"))
        _positive(self.fps)

    def save(self, path) -> list[pathlib.Path]:
        """Writes the clips as .mp4 or .gif files, by the suffix of `path`, over files of the same name.

        Returns: the paths written: `path` itself if B is 1, else `stem-0.mp4`, `stem-1.mp4`, ... beside it.
        Raises: what `check_writable` and `VideoWriter` raise.
        """
        path = pathlib.Path(path)
        if len(self.frames) == 1:
            paths = [path]
        else:
            paths = [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(len(self.frames))]
        for target in paths:
            check_writable(target)
        for target, clip in zip(paths, self.frames, strict=True):
            with VideoWriter(target, self.fps) as writer:
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
        return f"Video({b} x {f} frames of {h}x{w}, {self.fps} fps, {f / self.fps:.1f} s)"

    def _repr_html_(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            clips = [base64.b64encode(p.read_bytes()).decode() for p in self.save(f"{folder}/clip.mp4")]
        tag = '<video controls loop autoplay muted playsinline src="data:video/mp4;base64,{}"></video>'
        return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{"".join(map(tag.format, clips))}</div>'


def read_image(source) -> np.ndarray:
    """Reads a picture as (H, W, 3) uint8 RGB.

    Args:
      source: a path, a member of a tar, a PIL image, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
        Files and PIL images are turned upright by their EXIF tag; an alpha channel is dropped, not blended.
    Raises: FileNotFoundError for a path that does not exist; ValueError for anything that is not a picture.
    """
    if isinstance(source, str | os.PathLike | Member):
        try:
            with PIL.Image.open(open_file(source) if isinstance(source, Member) else _existing(source)) as image:
                return _rgb(image)
        except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as e:  # of PIL: broken files, files too large
            if isinstance(e, FileNotFoundError | PermissionError):
                raise
            raise ValueError(f"{str(source)!r} cannot be read as a picture; give a PNG, JPEG or WebP file") from e
    if isinstance(source, PIL.Image.Image):
        return _rgb(source)
    pixels = np.asarray(source)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4) or not pixels.size:
        raise ValueError(
            f"a picture must be a path, a PIL image or a uint8 array (H, W, 3), got {pixels.dtype} {pixels.shape}"
        )
    return pixels[..., :3].copy() if pixels.shape[-1] > 1 else pixels.repeat(3, axis=-1)


def read_video(source) -> tuple[np.ndarray, float | None]:
    """Reads a clip as frames (F, H, W, 3) uint8 RGB and its frames per second.

    Args:
      source: a path of anything ffmpeg decodes (mp4, webm, gif, ...), or frames as a uint8 array (F, H, W, 3).
        Each stored frame comes out once, whatever its duration.
    Returns: the frames, and the rate ffmpeg reports: to two decimals, and of a GIF, whose delays are whole
      hundredths of a second, a few per cent off. None for an array or if ffmpeg reports none.
    Raises: FileNotFoundError for a path that does not exist; ValueError for a file without a video in it or
      for frames of another shape or type.
    """
    if not isinstance(source, str | os.PathLike):
        return _uint8(source, "FHW3"), None
    with stream_video(source) as stream:
        frames = list(stream.frames)
    if not frames:
        raise ValueError(f"{str(source)!r} holds no video frames; give an mp4, webm or gif file with at least one")
    return np.stack(frames), stream.fps


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
        url = f"file:{_existing(source).absolute()}"
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


def to_model_pixels(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes frames to what a model takes, (..., H, W, 3) uint8 -> (..., height, width, 3) float32 in [-1, 1].

    The picture is stretched, not cropped, by PIL's Lanczos filter, as diffusers' `VaeImageProcessor` does.
    """
    frames = _uint8(frames, "...HW3")
    flat = frames.reshape(-1, *frames.shape[-3:])
    out = np.empty((len(flat), height, width, 3), np.float32)
    for i, frame in enumerate(flat):
        out[i] = np.asarray(PIL.Image.fromarray(frame).resize((width, height), PIL.Image.Resampling.LANCZOS))
    return (out / 255.0 * 2.0 - 1.0).reshape(*frames.shape[:-3], height, width, 3)


def to_uint8(pixels) -> np.ndarray:
    """Rounds pixels of any shape from [-1, 1], values beyond clipped, to uint8. 0 -> 128 (127.5 rounds to even)."""
    unit = np.clip(np.asarray(pixels, np.float32) * 0.5 + 0.5, 0, 1)
    return (unit * 255).round().astype(np.uint8)


class VideoWriter:
    """Writes one .mp4 (H.264, plays in browsers) or .gif, frames handed over as they come.

        with VideoWriter("out.mp4", fps=8) as writer:
            for chunk in chunks:  # (F, H, W, 3) uint8, RGB
                writer.write(chunk)

    Memory does not grow with the clip. `path` appears, or is replaced, only when the block ends well; if it ends by
    an exception nothing is left behind.

    Raises: what `check_writable` raises, on construction; ValueError if `fps` is not positive, if chunks
      differ in H or W, if H or W is odd in an .mp4, or if the block ends without a frame; OSError if ffmpeg fails.
    """

    def __init__(self, path, fps: float):
        check_writable(path)
        self.path, self.fps = pathlib.Path(path), _positive(fps)
        # In the same folder, so that the final rename stays within one file system.
        self._temporary = self.path.with_name(f".cogvx-{uuid.uuid4().hex[:12]}{self.path.suffix}")
        self._size: tuple[int, int] | None = None
        self._process: Any = None  # ffmpeg, once the first frames say how large they are
        self._log: Any = None

    def __enter__(self) -> "VideoWriter":
        return self

    def write(self, frames: np.ndarray) -> None:
        """Appends frames, (F, H, W, 3) uint8; H and W as in the first call."""
        frames = _uint8(frames, "FHW3")
        size = frames.shape[1:3]
        if self._process is None:
            self._start(*size)
        if size != self._size:
            first = "x".join(map(str, self._size or ()))
            raise ValueError(f"all frames of {str(self.path)!r} must be {first}, got {size[0]}x{size[1]}")
        try:
            for frame in frames:
                self._process.stdin.write(np.ascontiguousarray(frame))
        except (OSError, ValueError) as e:  # a broken pipe: ffmpeg ended early
            raise self._failure() from e

    def __exit__(self, kind, value, traceback) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            if self._process is not None:
                self._process.kill()  # no effect on one that has ended
                self._process.wait()
                try:
                    self._process.stdin.close()
                except OSError:  # what was still buffered has nowhere to go
                    pass
                self._log.close()
            self._temporary.unlink(missing_ok=True)

    def _start(self, height: int, width: int) -> None:
        suffix = self.path.suffix.lower()
        if suffix == ".mp4" and (height % 2 or width % 2):
            raise ValueError(f"an .mp4 needs an even height and width, got {height}x{width}; resize it or write a .gif")
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
        command += ["-s", f"{width}x{height}", "-r", str(self.fps), "-i", "-", *ENCODERS[suffix].split()]
        command += [f"file:{self._temporary.absolute()}"]
        # Not imageio_ffmpeg.write_frames: that one ignores ffmpeg's exit status, so a full disk would go unseen.
        self._size, self._log = (height, width), tempfile.TemporaryFile()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._log)

    def _finish(self) -> None:
        if self._process is None:
            raise ValueError(f"no frames were given for {str(self.path)!r}; write at least one")
        try:
            self._process.stdin.close()
        except OSError as e:
            raise self._failure() from e
        if self._process.wait() != 0:
            raise self._failure()
        os.replace(self._temporary, self.path)

    def _failure(self) -> OSError:
        self._process.kill()
        self._process.wait()
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip()[-500:]
        return OSError(f"ffmpeg could not write {str(self.path)!r}: {said or 'it ended early and said nothing'}")


def check_writable(path) -> None:
    """Checks, before any work, that a video can be written to `path`; an existing file there is fine.

    Raises: ValueError for a suffix other than .mp4 and .gif; FileNotFoundError, NotADirectoryError,
      IsADirectoryError or PermissionError, all of them OSError, for the place; OSError if there is no ffmpeg.
    """
    path = pathlib.Path(path)
    folder = path.parent
    if path.suffix.lower() not in ENCODERS:
        raise ValueError(f"{str(path)!r} must end in one of {', '.join(ENCODERS)} to say which kind of video to write")
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder; give the name of a file to write")
    if not folder.exists():
        raise FileNotFoundError(f"the folder {str(folder)!r} does not exist; create it first or write elsewhere")
    if not folder.is_dir():
        raise NotADirectoryError(f"{str(folder)!r} is a file, not a folder; write elsewhere")
    try:  # os.access says yes to root even where nothing can be written
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        raise PermissionError(f"the folder {str(folder)!r} cannot be written to ({e.strerror}); write elsewhere") from e
    try:
        imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as e:
        raise OSError("no ffmpeg was found; reinstall imageio-ffmpeg or set IMAGEIO_FFMPEG_EXE to one") from e


def _uint8(frames, axes: str) -> np.ndarray:
    """`frames` as an array, if it is uint8 with these axes, one letter each; leading dots stand for any."""
    frames = np.asarray(frames)
    rank_ok = frames.ndim >= 3 if axes.startswith("...") else frames.ndim == len(axes)
    if frames.dtype != np.uint8 or not rank_ok or frames.shape[-1] != 3 or not frames.size:
        shape = ", ".join(axes.replace("...", "…")).replace("…", "...")
        raise ValueError(f"frames must be uint8 ({shape}) and not empty, got {frames.dtype} {frames.shape}")
    return frames


def _rgb(image: PIL.Image.Image) -> np.ndarray:
    image = PIL.ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # PIL would clip 16-bit grey at 255, a white picture
        image = PIL.Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    return np.array(image.convert("RGB"))


def _existing(source) -> pathlib.Path:
    path = pathlib.Path(source)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(source)!r}; check the path")
    if not path.is_file():
        raise ValueError(f"{str(source)!r} is not a file; give the path of one")
    return path


def _positive(fps: float) -> float:
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    return fps
