"""VMAF of one video file beside another, by a child process: an ffmpeg that was built with libvmaf."""

import functools
import importlib.util
import shutil
import subprocess
from pathlib import Path

from cogvx_jax.json_files import parse_json
from cogvx_jax.storage import read_file
from cogvx_jax.temporaries import temporary_folder

NEEDED = "an ffmpeg with libvmaf, as of pip install 'cogvx_jax[evaluate]'"
SECONDS = 600.0  # that a video may take
# Frames are paired by their number, whatever their stamps; the second is the reference.
NUMBERED = "settb=AVTB,setpts=N/25/TB"
GRAPH = f"[0:v:0]{NUMBERED}[a];[1:v:0]{NUMBERED}[b];[a][b]libvmaf=log_fmt=json:log_path=log:shortest=1"


@functools.lru_cache(maxsize=1)
def find_ffmpeg() -> str | None:
    """An ffmpeg that knows libvmaf: that of the path or of the package imageio-ffmpeg; None where there is none."""
    candidates = [shutil.which("ffmpeg")]
    if importlib.util.find_spec("imageio_ffmpeg") is not None:
        import imageio_ffmpeg

        try:
            candidates.append(imageio_ffmpeg.get_ffmpeg_exe())
        except RuntimeError:  # the package has no program for this system
            pass
    return next((one for one in candidates if one is not None and _knows_vmaf(one)), None)


def vmaf(video: Path, reference: Path) -> float:
    """The mean over frames, 0 to 100, by ffmpeg's default model.

    Both have the same size; where one has more frames, its others are left out.

    Raises: ValueError where ffmpeg cannot compare them or takes longer than `SECONDS`; FileNotFoundError without one
      that has libvmaf.
    """
    if (program := find_ffmpeg()) is None:
        raise FileNotFoundError(f"VMAF needs {NEEDED}")
    inputs = [word for path in (video, reference) for word in ("-i", f"file:{path.absolute()}")]
    safe = ["-nostdin", "-v", "error", "-protocol_whitelist", "file,subfile"]
    second = ["-protocol_whitelist", "file,subfile"]
    words = [program, *safe, *inputs[:2], *second, *inputs[2:], "-lavfi", GRAPH, "-f", "null", "-"]
    with temporary_folder() as folder:
        try:
            done = subprocess.run(words, cwd=folder, capture_output=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise ValueError(f"ffmpeg took more than {SECONDS:g} s to compare {video} and {reference}") from None
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it says nothing"]
            raise ValueError(f"ffmpeg cannot compare {video} and {reference}: {lines[-1][:200]}")
        return float(parse_json(read_file(folder / "log"))["pooled_metrics"]["vmaf"]["mean"])


def _knows_vmaf(program: str) -> bool:
    try:
        done = subprocess.run([program, "-hide_banner", "-filters"], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return b" libvmaf " in done.stdout
