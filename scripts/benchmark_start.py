"""Seconds from the start of a process to its first video: with nothing kept, with jax's cache, with stored programs.

    python -m cogvx_jax.scripts.benchmark_start
    python -m cogvx_jax.scripts.benchmark_start --models tiny --runs 1

Each figure is a process of its own, which imports, loads a model and makes a video of two steps; "medium" is a random
model with the transformer and text encoder of `benchmark.py` and the published VAE, at 64x96, 17 frames.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

import tyro

from cogvx_jax.configs import GenerationDefaults
from cogvx_jax.convert import export
from cogvx_jax.pipelines.model import TINY
from cogvx_jax.pipelines.weights import COMPONENTS
from cogvx_jax.scripts.benchmark_generate import FULL, PROMPT, random_params
from cogvx_jax.storage import copy_files

WAYS = ("nothing kept", "jax's cache", "stored programs")
# Prints the seconds since the process began until the model is there and until the video is, and the processor's.
PROCESS = """
import time; began = time.monotonic()
import sys, json
import cogvx_jax as cx
model, programs = sys.argv[1:]
loaded = cx.load(model, programs=programs or None); there = time.monotonic() - began
cx.generate(loaded, {prompt!r}, num_inference_steps=2, progress=False)
print(json.dumps([there, time.monotonic() - began, time.process_time()]))
"""


def main(*, models: tuple[Literal["tiny", "medium"], ...] = ("tiny", "medium"), runs: int = 3) -> None:
    """Prints a table of medians.

    Args:
      models: "tiny", "medium".
      runs: processes of each kind.
    """
    print("| model | " + " | ".join(f"{way}: loaded, first video, processor" for way in WAYS) + " |")
    print("|---" * (1 + len(WAYS)) + "|")
    for model in models:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            source = "tiny" if model == "tiny" else str(medium(folder / "medium"))
            print(f"| {model} | " + " | ".join(measure(source, folder, runs)) + " |", flush=True)


def measure(source: str, folder: Path, runs: int) -> list[str]:
    """A cell of the table for each of `WAYS`."""
    command = [sys.executable, "-m", "cogvx_jax.cli", "compile", "--model", source, "--out", str(folder / "programs")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for i in range(runs):
        for way in WAYS:
            # "stored programs" are measured with an empty cache, too.
            cache = folder / ("kept" if way == "jax's cache" else f"{way} {i}")
            if way == "jax's cache" and i == 0:
                start(source, cache)
            seconds[way].append(start(source, cache, folder / "programs" if way == "stored programs" else None))
    columns = [zip(*several, strict=True) for several in seconds.values()]
    return [", ".join(f"{statistics.median(each):.1f} s" for each in cell) for cell in columns]


def start(source: str, cache: Path, programs: Path | None = None) -> list[float]:
    """Seconds until a process has its model and until it has its video, and its processor time."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", PROCESS.format(prompt=PROMPT), source, str(programs or "")],
        env=environment | {"XDG_CACHE_HOME": str(cache)},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


def medium(folder: Path) -> Path:
    """Writes the random model."""
    own = GenerationDefaults(height=64, width=96, num_frames=17)
    spec = dataclasses.replace(FULL.spec, name="medium", defaults=own)
    export(folder, spec, {component: random_params(spec, component) for component in COMPONENTS})
    copy_files(TINY / "tokenizer", folder / "tokenizer")
    return folder


if __name__ == "__main__":
    tyro.cli(main)
