"""Videos written to files, frames as they come."""

import os
import pathlib
import subprocess
import tempfile
import uuid
from typing import Any

import imageio_ffmpeg
import numpy as np

# What ffmpeg writes for each suffix. The matrix is given and tagged, or players guess different colours.
# A GIF gets one palette per frame: one for the whole clip would hold back every frame until the last.
ENCODERS = {
    ".mp4": "-vf scale=out_color_matrix=bt709:out_range=tv,"
    "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709 "
    "-c:v libx264 -crf 17 -pix_fmt yuv420p -movflags +faststart -f mp4",
    ".gif": "-filter_complex split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1 -loop 0 -f gif",
}


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
        self.path, self.fps = pathlib.Path(path), positive(fps)
        # In the same folder, so that the final rename stays within one file system.
        self._temporary = self.path.with_name(f".cogvx-{uuid.uuid4().hex[:12]}{self.path.suffix}")
        self._size: tuple[int, int] | None = None
        self._process: Any = None  # ffmpeg, once the first frames say how large they are
        self._log: Any = None

    def __enter__(self) -> "VideoWriter":
        return self

    def write(self, frames: np.ndarray) -> None:
        """Appends frames, (F, H, W, 3) uint8; H and W as in the first call."""
        frames = check_frames(frames, "FHW3")
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


def check_frames(frames, axes: str) -> np.ndarray:
    """`frames` as an array, if it is uint8 with these axes, one letter each; leading dots stand for any."""
    frames = np.asarray(frames)
    rank_ok = frames.ndim >= 3 if axes.startswith("...") else frames.ndim == len(axes)
    if frames.dtype != np.uint8 or not rank_ok or frames.shape[-1] != 3 or not frames.size:
        shape = ", ".join(axes.replace("...", "…")).replace("…", "...")
        raise ValueError(f"frames must be uint8 ({shape}) and not empty, got {frames.dtype} {frames.shape}")
    return frames


def positive(fps: float) -> float:
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    return fps
