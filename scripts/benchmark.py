"""Measures this package beside diffusers on a CPU: the same weights and inputs, float32, two threads.

    python -m cogvx_jax.scripts.benchmark --json benchmark.json
    python -m cogvx_jax.scripts.benchmark --only b --formulations
    python -m cogvx_jax.scripts.benchmark train
    python -m cogvx_jax.scripts.benchmark gpu

Each side lives in a process of its own, and the two take turns, so that whatever else the machine
does slows both. Without torch and diffusers ours is measured alone.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from cogvx_jax.allocator import keep_freed_memory
from cogvx_jax.convert import export
from cogvx_jax.nn.backend import Formulations, formulations, using
from cogvx_jax.pipelines.model import TINY
from cogvx_jax.scripts import benchmark_generate, benchmark_gpu, benchmark_training
from cogvx_jax.scripts.benchmark_generate import COMPONENTS, Sizes, Workload, random_params
from cogvx_jax.scripts.device_workloads import matmul_rate

THREADS = 2
MATMUL = 1536  # side of the product that the machine's rate is measured with
# The widest first; figures of processors with and without AVX-512 differ by a factor of three.
VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX"}  # flag in /proc/cpuinfo -> name

Name = tuple[str, str]  # what is benchmarked, and the workload's letter


@dataclasses.dataclass(frozen=True)
class Side:
    """Who computes: "ours" with these formulations (None: those of the platform), or "theirs"."""

    name: Literal["ours", "theirs"]
    choice: Formulations | None = None


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of every run, those of its processors, of the first call, the peak memory in MiB, and more."""

    seconds: list[float]
    cpu: list[float]  # summed over threads: other programs on the machine add little to them
    first: float
    mib: float | None
    result: np.ndarray
    rate: float | None = None  # of ours: FLOP of a large product in a processor second

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def median_cpu(self) -> float:
        return statistics.median(self.cpu)


def main(
    what: Annotated[
        tyro.conf.Positional[Literal["generate", "train", "gpu"]], tyro.conf.arg(metavar="WHAT")
    ] = "generate",
    /,
    *,
    only: str | None = None,
    runs: int = 3,
    formulations: bool = False,
    small: bool = False,
    json: Path | None = None,
    folder: Path | None = None,
) -> None:
    """Prints a table of seconds, memory and differences.

    Args:
      what: "generate", what making a video takes, or "train", one LoRA and one full update, or
        "gpu", a step and a decode of the published models in bfloat16 on an accelerator.
      only: the workloads, e.g. "a,d" of the first, "lora" of the second, "5b" of the third; None is all of them.
      runs: measured runs of each side; the median counts.
      formulations: compare ours with ours: every formulation of an operation with the chosen one.
      small: tiny sizes, to see that everything works; the figures then mean nothing.
      json: where to write the figures, too.
      folder: where to keep the weights, so that a later run finds them; else they are temporary.
    """
    if what == "gpu":
        models = tuple(only.split(",")) if only else benchmark_gpu.MODELS
        return benchmark_gpu.main(models, runs=runs, small=small, json_file=json)
    known = workloads(what)
    letters = list(known) if only is None else only.split(",")
    if unknown := set(letters) - known.keys():
        raise ValueError(f"unknown workloads {', '.join(sorted(unknown))}; the known ones are {', '.join(known)}")
    sizes = sizes_of(what, small=small)
    about = environment()
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "weights"
        if not folder.exists():
            export(folder, sizes.spec, {c: random_params(sizes.spec, c) for c in COMPONENTS})
        measure = by_formulation if formulations else side_by_side
        rows = [row for letter in letters for row in measure((what, letter), sizes, folder, runs)]
    print_table(rows)
    if json is not None:
        write_json(json, about, rows)


def workloads(what: str) -> dict[str, Workload]:
    if what == "generate":
        return benchmark_generate.WORKLOADS
    return benchmark_training.WORKLOADS


def sizes_of(what: str, *, small: bool) -> Sizes:
    if what == "generate":
        return benchmark_generate.SMALL if small else benchmark_generate.FULL
    return benchmark_training.TRAIN_SMALL if small else benchmark_training.TRAIN_FULL


def side_by_side(name: Name, sizes: Sizes, folder: Path, runs: int) -> Iterator[dict[str, Any]]:
    """One row: ours and theirs."""
    workload = workloads(name[0])[name[1]]
    row = {"workload": f"{name[1]}: {workload.title}"}
    if workload.shipped and not (TINY / "model_index.json").exists():
        yield row | {"note": f"skipped, there is no {TINY}"}
        return
    needed = ("torch", "diffusers", "transformers", *workload.needs)
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    ours, *theirs = take_turns(name, sizes, folder, runs, [Side("ours")] + [Side("theirs")] * (not missing))
    row |= {"ours s": ours.median, "compile s": ours.first - ours.median, "ours MiB": ours.mib, "runs": ours.seconds}
    row |= {"ours cpu s": ours.median_cpu}
    if workload.flops is not None and ours.rate is not None:
        row |= {"of matmul rate": workload.flops(sizes) / ours.median_cpu / ours.rate}
    if not theirs:
        yield row | {"note": f"ours alone: {', '.join(missing)} not installed"}
        return
    (theirs,) = theirs
    row |= {"theirs s": theirs.median, "theirs MiB": theirs.mib, "their runs": theirs.seconds}
    row |= {"theirs cpu s": theirs.median_cpu, "cpu ratio": ours.median_cpu / theirs.median_cpu}
    if ours.mib and theirs.mib:
        row |= {"MiB ratio": ours.mib / theirs.mib}
    yield row | {"ours/theirs": ours.median / theirs.median, "max diff": difference(ours, theirs)}


def by_formulation(name: Name, sizes: Sizes, folder: Path, runs: int) -> Iterator[dict[str, Any]]:
    """A row for every formulation that this platform does not use, with the time relative to the one it does."""
    chosen = formulations()
    for field, value in workloads(name[0])[name[1]].alternatives:
        if getattr(chosen, field) == value:
            continue
        other = dataclasses.replace(chosen, **{field: value})
        ours, theirs = take_turns(name, sizes, folder, runs, [Side("ours", chosen), Side("ours", other)])
        yield {
            "workload": f"{name[1]}: {field} {value} instead of {getattr(chosen, field)}",
            "chosen s": ours.median,
            "chosen MiB": ours.mib,
            "other s": theirs.median,
            "other MiB": theirs.mib,
            "other/chosen": theirs.median / ours.median,
            "max diff": difference(ours, theirs),
        }


def take_turns(name: Name, sizes: Sizes, folder: Path, runs: int, sides: list[Side]) -> list[Timing]:
    """Runs the sides in alternation, each in its own process."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for side in sides:
            pipe, end = context.Pipe()
            process = context.Process(target=serve, args=(end, name, sizes, folder, side), daemon=True)
            process.start()
            end.close()  # so that a process that dies is noticed
            pipes.append(pipe)
            processes.append(process)
            pipe.recv()  # ready
        times, ends = [[] for _ in sides], []
        for _ in range(1 + runs):
            for pipe, taken in zip(pipes, times, strict=True):
                pipe.send("run")
                taken.append(pipe.recv())
        for pipe in pipes:
            pipe.send("stop")
            ends.append(pipe.recv())
    finally:
        for process in processes:
            process.terminate()
            process.join()
    timings = []
    for taken, end in zip(times, ends, strict=True):
        seconds, cpu = map(list, zip(*taken, strict=True))
        timings.append(Timing(seconds[1:], cpu[1:], seconds[0], *end))
    return timings


def serve(pipe: Any, name: Name, sizes: Sizes, folder: Path, side: Side) -> None:
    """A side's process: says when it is ready, times one run per request, in the end sends memory and result."""
    if hasattr(os, "sched_setaffinity"):  # what XLA counts its threads by
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    jax.config.update("jax_enable_compilation_cache", False)
    if side.name == "theirs":
        import torch

        torch.set_num_threads(THREADS)
        torch.set_grad_enabled(False)
    else:
        keep_freed_memory()  # as `load` does
    before = resident("VmRSS")
    with using(side.choice) if side.choice else contextlib.nullcontext():
        run = getattr(workloads(name[0])[name[1]], side.name)(sizes, folder)
        pipe.send("ready")
        while pipe.recv() == "run":
            start, cpu = time.perf_counter(), time.process_time()
            result = run()
            pipe.send((time.perf_counter() - start, time.process_time() - cpu))
    peak = resident("VmHWM")
    rate = matmul_rate("float32", side=MATMUL, clock=time.process_time) if side.name == "ours" else None
    pipe.send((None if before is None or peak is None else (peak - before) / 2**10, result, rate))


def resident(field: Literal["VmRSS", "VmHWM"]) -> int | None:
    """KiB of this process in memory, now or at the peak; None where the system is not Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))


def difference(one: Timing, other: Timing) -> float:
    return float(np.max(np.abs(one.result - other.result)))


def processor(cpuinfo: str) -> dict[str, str]:
    """Name and widest vector instructions of the first processor in the text of /proc/cpuinfo.

    `--xla_cpu_max_isa` in XLA_FLAGS, which overrules the processor's, is named beside them.
    """
    pairs = (line.partition(":") for line in cpuinfo.splitlines())
    found = {name.strip(): value.strip() for name, _, value in reversed([*pairs])}
    flags, about = found.get("flags", "").split(), {}
    if "model name" in found:
        about["machine"] = found["model name"]
    if vectors := next((name for flag, name in VECTORS.items() if flag in flags), None):
        limit = re.search(r"--xla_cpu_max_isa=(\w+)", os.environ.get("XLA_FLAGS", ""))
        about["vectors"] = vectors + (f", XLA {limit[1]}" if limit else "")
    return about


def environment() -> dict[str, str]:
    """Machine and versions of the figures. A load above 0 means that something else was running."""
    about = {"machine": platform.machine(), "threads": str(THREADS), "load": f"{os.getloadavg()[0]:.1f}"}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        about |= processor(cpuinfo.read_text())
    for package in ("jax", "flax", "torch", "diffusers", "transformers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            about[package] = importlib.metadata.version(package)
    return about


def print_table(rows: list[dict[str, Any]]) -> None:
    """Markdown; single runs are left to the JSON."""
    names = list(dict.fromkeys(name for row in rows for name in row if name not in ("runs", "their runs")))
    print("\n| " + " | ".join(names) + " |\n|" + " --- |" * len(names))
    for row in rows:
        cells = (row.get(name, "") for name in names)
        print("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |")


def write_json(path: Path, about: dict[str, str], rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps({"environment": about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
