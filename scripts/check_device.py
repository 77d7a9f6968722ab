"""Checks a device in one command: whether it computes rightly, how fast, and in how much memory.

    python -m cogvx_jax.scripts.check_device --out device.json

Each part has a process of its own, so that no part can take the others with it. The JSON is written after each of them.
Parts for which no time is left are named in it. Beside torch with CUDA and diffusers, those are timed as well.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from cogvx_jax.chips import chip_of
from cogvx_jax.cli.ends import ends
from cogvx_jax.metrics import psnr
from cogvx_jax.scripts import benchmark_gpu
from cogvx_jax.scripts.alone import Failed, alone
from cogvx_jax.scripts.benchmark_generate import PROMPT, tiny_latents
from cogvx_jax.scripts.device_workloads import attention_error, case, matmul_rate, ours
from cogvx_jax.temporaries import temporary_beside, temporary_folder

TESTS = Path(__file__).resolve().parents[1] / "tests"
USUAL = 8.0  # minutes
SPARE = 10.0  # seconds that a part needs to begin at all, and pytest to report
STEPS = {"full": 20, "toy": 2}  # of the video of `tiny`
Figures = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What all parts know."""

    size: Literal["full", "toy"]
    runs: int
    folder: Path  # for what one part leaves to another
    pace: float = 1.0  # times the usual seconds of each part

    @property
    def small(self) -> bool:
        return self.size == "toy"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One thing that is checked: a function of `Settings` and its arguments, in a process of its own."""

    function: Callable[..., Figures]
    arguments: tuple[Any, ...] = ()
    seconds: float  # after which it is ended, of a check that takes `USUAL` minutes
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


def main(
    *,
    out: Path = Path("device.json"),
    size: Literal["full", "toy"] = "full",
    minutes: float = USUAL,
    only: str | None = None,
    runs: int = 3,
) -> None:
    """Prints a line for each part, and writes all figures to one file.

    Args:
      out: where to write them.
      size: "full" is 49 frames of 480x720 in bfloat16; "toy" runs anywhere, and its figures mean nothing.
      minutes: after which no part begins or goes on; each has its share of them.
      only: names of parts, with commas between them, of those that the file lists.
      runs: measured runs of each part after the first; the median counts.
    """
    if minutes <= 0 or runs < 1:
        raise ValueError(f"minutes must be above 0 and runs at least 1, got {minutes:g} and {runs}")
    asked = list(PARTS) if only is None else only.split(",")
    if unknown := [name for name in asked if name not in PARTS]:
        raise ValueError(f"there is no part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    deadline = time.monotonic() + 60 * minutes
    report: Figures = {"size": size, "minutes": minutes, "parts": {}, "left out": dict.fromkeys(asked, "not begun")}
    with temporary_folder() as folder:
        write(out, report)  # before anything is computed: the place may not be writable
        settings = Settings(size=size, runs=runs, folder=folder, pace=minutes / USUAL)
        for name, figures in check(asked, settings, deadline):
            del report["left out"][name]
            report["left out" if "left out" in figures else "parts"][name] = figures.get("left out", figures)
            add_shares(report["parts"])
            write(out, report)
            print(f"{name}: {line(report['parts'].get(name, figures))}", flush=True)


def check(names: list[str], settings: Settings, deadline: float) -> Iterator[tuple[str, Figures]]:
    """Runs parts one after the other; figures of one that gave none say why, as "failed" or "left out"."""
    for name in names:
        part, left = PARTS[name], deadline - time.monotonic()
        seconds = min(part.seconds * settings.pace, left)
        if left < SPARE:
            yield name, {"left out": "no time was left"}
            continue
        began = time.monotonic()
        try:
            found = alone(
                part.function, settings, seconds, *part.arguments, seconds=seconds, environment=part.environment
            )
        except Failed as error:
            found = {"failed": str(error)}
        yield name, found | {"took s": time.monotonic() - began}


def add_shares(parts: Mapping[str, Figures]) -> None:
    """Adds to each part its rate, the share of the measured rate of a product, and ours over theirs."""
    rate = parts.get("device", {}).get("matmul TFLOP/s")
    for name, found in parts.items():
        beside = parts.get(f"{name} compiled", {})
        if "TFLOP" in found:
            found["TFLOP/s"] = found["TFLOP"] / found["s"]
        if "TFLOP" in found and rate:
            found["of matmul rate"] = found["TFLOP/s"] / rate
        if "s" in found and "s" in beside:
            found["of compiled"] = found["s"] / beside["s"]


def write(out: Path, report: Figures) -> None:
    with temporary_beside(out) as file:
        file.write_text(json.dumps(readable(report), indent=2, allow_nan=False) + "\n")


def readable(value: Any) -> Any:
    """Figures as JSON has them: it has no NaN, which a device that computes wrongly may give."""
    if isinstance(value, dict):
        return {name: readable(figure) for name, figure in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def line(figures: Figures) -> str:
    """Figures but for lists, in a line."""
    shown = {name: value for name, value in figures.items() if not isinstance(value, (list, dict))}
    return ", ".join(f"{name} {v:.3g}" if isinstance(v, float) else f"{name} {v}" for name, v in shown.items())


# --- the parts, each in its process ---


def device(settings: Settings, seconds: float) -> Figures:
    """What the device is, and how fast it multiplies."""
    first = jax.devices()[0]
    chip, stats = chip_of(first.device_kind), first.memory_stats() or {}
    dtype = "float32" if settings.small else "bfloat16"
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
        "GiB that programs may use": stats["bytes_limit"] / 2**30 if "bytes_limit" in stats else None,
        "published TFLOP/s": None if chip is None else chip.peak,
        "matmul TFLOP/s": matmul_rate(dtype, small=settings.small) / 1e12,
        "matmul dtype": dtype,
        "driver": " ".join(first.client.platform_version.split()),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of the packages that compute, as far as they are installed."""
    known = ("jax", "jaxlib", "libtpu", "flax", "torch", "diffusers", "transformers")
    return {name: importlib.metadata.version(name) for name in known if importlib.util.find_spec(name) is not None}


def timed(settings: Settings, seconds: float, model: str, part: str) -> Figures:
    """Our seconds, memory and operations of a part; the compilation is the first run less a later one."""
    one = case(model, small=settings.small)
    found = ours(one, part, settings.runs)
    found["compile s"] = found["first s"] - found["s"]
    return found | ({"error": attention_error(one)} if part == "attention" else {})


def timed_theirs(settings: Settings, seconds: float, model: str, part: str) -> Figures:
    """The same of torch.compile'd diffusers. On a CPU at full size it would take hours."""
    missing = [package for package in ("torch", "diffusers") if importlib.util.find_spec(package) is None]
    if missing:
        return {"left out": f"{' and '.join(missing)} not installed"}
    import torch

    if not torch.cuda.is_available():
        return {"left out": "torch finds no CUDA device"}
    found = benchmark_gpu.theirs(case(model, small=settings.small), part, settings.runs, compiled=True)
    return found | {"compile s": found["first s"] - found["s"]}


class Outcomes:
    """A plugin of pytest: which tests passed, failed and were skipped."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, str]] = {"passed": {}, "failed": {}, "skipped": {}}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            said = str(report.longrepr).strip().splitlines()
            self.found[report.outcome][report.nodeid] = said[-1] if said else ""

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.found["failed"][report.nodeid] = str(report.longrepr).strip().splitlines()[-1]


def tests(settings: Settings, seconds: float) -> Figures:
    """Tests that are marked `device`: parity with recorded arrays, and every formulation with the plain one.

    Products have all digits of float32, as the tests' tolerances want. Programs are optimised as usual.
    """
    if importlib.util.find_spec("pytest") is None:
        return {"left out": "pytest is not installed"}
    if not TESTS.is_dir():
        return {"left out": f"there are no tests at {TESTS}: run it in a checkout"}
    import pytest

    jax.config.update("jax_default_matmul_precision", "highest")
    if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", "") and not settings.small:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=3".strip()
    outcomes = Outcomes()
    options = ["-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider", "-p", "no:xdist", "-v"]
    chosen = ["-k", "golden and text_encoder"] if settings.small else []
    where = ["-c", str(TESTS.parent / "pyproject.toml"), "--rootdir", str(TESTS.parent), str(TESTS)]
    until = ["--deadline", str(time.time() + seconds - SPARE)]
    status = pytest.main([*options, "-m", "device and not full", *chosen, *until, *where], plugins=[outcomes])
    found: Figures = {kind: len(which) for kind, which in outcomes.found.items()}
    return found | {"status": int(status), "failures": outcomes.found["failed"], "left": outcomes.found["skipped"]}


def video(settings: Settings, seconds: float) -> Figures:
    """A video of `tiny`, which is left in the folder for `video_on_cpu`."""
    found, frames = tiny_video(settings)
    np.save(settings.folder / "video.npy", frames)
    return found


def video_on_cpu(settings: Settings, seconds: float) -> Figures:
    """The same on the CPU, and how far the device's is from it."""
    there = settings.folder / "video.npy"
    if not there.exists():
        return {"left out": "the device has made no video to compare with"}
    found, frames = tiny_video(settings)
    other = np.load(there)
    decibels = np.asarray(psnr(jnp.asarray(other), jnp.asarray(frames), peak=255.0))
    apart = int(np.max(np.abs(np.int16(other) - np.int16(frames))))
    return found | {
        "least dB": float(decibels.min()) if np.isfinite(decibels).all() else None,  # None: frames are equal
        "largest difference of 255": apart,
    }


def tiny_video(settings: Settings) -> tuple[Figures, np.ndarray]:
    """Seconds of two runs, and frames (B, F, H, W, 3) as bytes, from noise that is the same everywhere."""
    import cogvx_jax as cx
    from cogvx_jax.pipelines.model import TINY

    model = cx.load(TINY)
    jax.config.update("jax_enable_compilation_cache", False)  # `load` has turned it on
    steps, latents, seconds = STEPS[settings.size], tiny_latents(model.spec), []
    for _ in range(2):
        began = time.perf_counter()
        made = cx.generate(model, PROMPT, latents=latents, num_inference_steps=steps, progress=False)
        frames = np.asarray(made.frames)
        seconds.append(time.perf_counter() - began)
    found = {"s": seconds[1], "compile s": seconds[0] - seconds[1], "steps": steps, "dtype": model.compute.dtype}
    return found, frames


def _timed(model: str, part: str, seconds: float) -> dict[str, Part]:
    return {f"{part} {model}": Part(function=timed, arguments=(model, part), seconds=seconds)}


def _theirs(model: str, part: str, seconds: float) -> dict[str, Part]:
    return {f"{part} {model} compiled": Part(function=timed_theirs, arguments=(model, part), seconds=seconds)}


# In the order of what matters most, should the time end.
PARTS: Mapping[str, Part] = {
    "device": Part(function=device, seconds=60),
    **_timed("5b", "attention", 60),
    **_timed("5b", "step", 100),
    **_timed("5b", "decode", 120),
    **_theirs("5b", "step", 120),
    **_theirs("5b", "decode", 120),
    "tests": Part(function=tests, seconds=120),
    "video": Part(function=video, seconds=60),
    "video on cpu": Part(function=video_on_cpu, seconds=60, environment={"JAX_PLATFORMS": "cpu"}),
    **_timed("2b", "step", 80),
    **_timed("5b", "text", 60),
    **_theirs("5b", "attention", 40),
    **_theirs("2b", "step", 100),
    **_theirs("5b", "text", 60),
}


if __name__ == "__main__":
    with ends("the file has the parts that were done"):
        tyro.cli(main)
