"""Which mesh a slice should use for a model, whether it fits there, and how long a video takes at best.

    plan = cx.plan("1.5-5b", topology="v6e:2x4")      # for a slice one does not own; needs libtpu
    plan = cx.plan("5b"); model = cx.load("5b", mesh=plan.mesh)      # for the devices that are here

Meshes that make sense are compiled in the order of `candidates`, and the first that fits is chosen.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from cogvx_jax import cache, sharding
from cogvx_jax.chips import Chip, chip_of
from cogvx_jax.configs import Compute, ModelSpec
from cogvx_jax.json_files import read_json
from cogvx_jax.models.flops import sequence_tokens, transformer_flops
from cogvx_jax.nn.backend import platform_of
from cogvx_jax.pipelines.model import choose_compute, load_spec
from cogvx_jax.pipelines.options import Sampling
from cogvx_jax.pipelines.program_cost import Cost, beside_weights, compile_cost
from cogvx_jax.pipelines.request import (
    check_sampling,
    check_videos,
    frame_unit,
    latent_frames,
    padded_latent_frames,
)
from cogvx_jax.pipelines.short_schedule import asked_of, computed_count, wanted_of
from cogvx_jax.pipelines.shortcuts import Wanted
from cogvx_jax.pipelines.stored_programs import COMPONENT
from cogvx_jax.planning import lower as programs
from cogvx_jax.sharding.topologies import TOPOLOGIES, Topology, topology
from cogvx_jax.storage import write_whole

GIB = 2**30
# What the published q/k norms allow is read off the weights by `load`; until then attention is taken to need
# no running maximum.
LIKELY_BOUND = 20.0
Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One mesh. Memory is GiB on a device; times are seconds, None where nothing is known of the clock."""

    mesh: dict[str, int]  # axis -> size, those above 1
    fits: bool
    weights: dict[str, float]  # by component
    text: float | None = None  # beside the weights, while that program runs; None where it was not compiled
    step: float | None = None
    decode: float | None = None
    step_seconds: float | None = None
    skipped_seconds: float | None = None  # a step that is made of what others computed
    other_seconds: float | None = None  # text encoder and decoder, a video
    compile_seconds: float = 0.0
    why: str = ""

    @property
    def memory(self) -> float:
        """GiB at the fullest moment."""
        return sum(self.weights.values()) + max(self.text or 0, self.step or 0, self.decode or 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What was asked for, what was tried, and which trial is chosen: the first that fits, if any does."""

    model: str
    topology: str
    devices: int
    memory: float | None  # GiB of a device; None where it does not say
    dtype: str
    size: tuple[int, int]
    frames: int
    videos: int
    steps: int
    flops: int  # of the transformer, all steps
    trials: tuple[Trial, ...]
    instead: str = ""  # what would fit, where nothing does
    short: str = ""  # what is asked of the steps, such as "reuse every:2"
    computed: int | None = None  # steps that are computed; None where that is known only when they run

    @property
    def chosen(self) -> Trial | None:
        return next((trial for trial in self.trials if trial.fits), None)

    @property
    def mesh(self) -> Mesh | None:
        """The chosen mesh on the devices that are here; None is one device.

        Raises: ValueError where nothing fits, or other devices are here than planned for.
        """
        if self.chosen is None:
            raise ValueError(f"{self.model} does not fit {self.topology}; {self.instead}")
        sizes: dict[str, Any] = dict(self.chosen.mesh)
        return sharding.make_mesh(**sizes) if self.devices > 1 else None

    def json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)


def plan(
    source: str,
    *,
    sampling: Sampling | None = None,
    topology: str | None = None,
    videos: int = 1,
    dtype: str | None = None,
    every: bool = False,
    fresh: bool = False,
    report: Report = lambda line: None,
    **options: Any,
) -> Plan:
    """Chooses a mesh by compiling ahead of time; results are kept in the user's cache folder.

    Args:
      source: as for `load`; no weights are read.
      sampling: of the videos, such as `generate`'s `Options`; or, instead, `options`.
      topology: a TPU slice such as "v5e:2x4", which need not be here, or cpu:N; None is the devices that are here.
      videos: made at a time.
      dtype: None is what `load` would choose on such a device.
      every: compile all candidates, not only up to the first that fits.
      fresh: compile again what was planned before.
      report: gets a line before each compilation, which may take minutes.
      height, width, num_frames, num_inference_steps, guidance_scale, sampler, reuse, guidance: as for `generate`.
    Raises: ValueError for an unknown topology, missing libtpu, or a size that the model cannot make.
    """
    spec = load_spec(source)
    made_of = check_sampling(spec, Sampling.of(sampling, options))
    check_videos(videos)
    target = _target(topology)
    wanted = _Question(
        spec=spec,
        compute=_compute(spec, dtype, target),
        target=target,
        shape=(videos, *made_of.shape),
        padding=made_of.padding,
        guided=made_of.guided,
        sampler=made_of.sampler,
        short=wanted_of(made_of),
    )
    facts: dict[str, Any] = {
        "model": spec.name,
        "topology": target.name,
        "devices": len(target.devices),
        "memory": target.memory,
        "dtype": wanted.compute.dtype,
        "size": (made_of.height, made_of.width),
        "frames": made_of.frames,
        "videos": videos,
        "steps": made_of.steps,
        "flops": made_of.steps * _flops(wanted),
    }
    if wanted.short is not None:
        facts |= {"short": asked_of(made_of), "computed": computed_count(made_of, spec)}
    kept = _file(wanted, facts | {"every": every})
    if not fresh and (known := _read(kept)) is not None:
        return known
    trials: list[Trial] = []
    branches = wanted.guided and made_of.way is None  # side by side, or not all steps have both
    for sizes in candidates(spec.transformer.heads, len(target.devices), videos, guided=branches):
        trials.append(_try(wanted, sizes, report))
        if trials[-1].fits and not every:
            break
    made = Plan(**facts, trials=tuple(trials))
    if made.chosen is None:
        made = dataclasses.replace(made, instead=_instead(wanted, made, report))
    with contextlib.suppress(OSError):  # a home that cannot be written to must not cost the plan
        write_whole(kept, made.json().encode())
        cache.trim(kept.parent, cache.MAX_PLANS)
    return made


def auto_mesh(
    source: str,
    *,
    sampling: Sampling | None = None,
    videos: int = 1,
    dtype: str | None = None,
    report: Report = lambda line: None,
) -> Mesh | None:
    """The mesh for the devices that are here; None is one device. Arguments as for `plan`.

    Where they do not say how much memory they have, as on CPU, nothing is compiled: the first candidate it is.
    Raises: ValueError where the model does not fit.
    """
    target = _target(None)
    if len(target.devices) == 1:
        return None
    if target.memory is None:
        spec = load_spec(source)
        made_of = check_sampling(spec, sampling or Sampling())
        guided = made_of.guided and made_of.way is None
        sizes: dict[str, Any] = next(candidates(spec.transformer.heads, len(target.devices), videos, guided=guided))
        return sharding.make_mesh(**sizes)
    made = plan(source, sampling=sampling, videos=videos, dtype=dtype, report=report)
    if made.chosen is not None:
        report(f"--mesh {sharding.format_mesh(made.chosen.mesh)}")
    return made.mesh


def candidates(heads: int, devices: int, videos: int, *, guided: bool) -> Iterator[dict[str, int]]:
    """Meshes that make sense for so many devices, best first: axis -> size, those above 1.

    Videos side by side talk least, then the branches of guidance; tokens are traded for heads as far as
    those divide, and beyond that keys and values are gathered. Weights are copied to all devices first, then
    split over more and more of them. Tensor parallelism is left out: it fits no more than that, and is slower.
    """
    data = math.gcd(videos, devices)
    cfg = 2 if guided and devices // data % 2 == 0 else 1
    for branches in dict.fromkeys((cfg, 1)):
        rest = devices // data // branches
        for fsdp in (n for n in range(1, rest + 1) if rest % n == 0):
            sp = math.gcd(heads, rest // fsdp)
            sizes = {"data": data, "fsdp": fsdp, "cfg": branches, "context": rest // fsdp // sp, "sp": sp}
            if branches == cfg or fsdp == rest:  # without the branches' axis only to split weights further
                yield {axis: size for axis, size in sizes.items() if size > 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Target:
    name: str
    devices: tuple[Any, ...]
    platform: str
    topology: Topology | None

    @property
    def slice_chip(self) -> Chip | None:
        """The chip of a TPU slice by name; None for the devices that are here, whose clock nobody knows."""
        return None if self.topology is None else self.topology.chip

    @property
    def memory(self) -> float | None:
        if self.slice_chip is not None:
            return self.slice_chip.memory
        stats = self.devices[0].memory_stats() if self.topology is None else None
        return stats["bytes_limit"] / GIB if stats and "bytes_limit" in stats else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Question:
    spec: ModelSpec
    compute: Compute
    target: _Target
    shape: tuple[int, int, int, int, int]
    padding: int
    guided: bool
    sampler: str
    short: Wanted | None = None


def _target(name: str | None) -> _Target:
    if name is None:
        devices = tuple(jax.devices())
        return _Target(
            name=f"{len(devices)} x {devices[0].device_kind}",
            devices=devices,
            platform=platform_of(devices[0]),
            topology=None,
        )
    slice_ = topology(name)
    devices = tuple(slice_.devices())
    return _Target(name=name, devices=devices, platform=platform_of(devices[0]), topology=slice_)


def _compute(spec: ModelSpec, dtype: str | None, target: _Target) -> Compute:
    return dataclasses.replace(choose_compute(spec, dtype, platform=target.platform), logit_bound=LIKELY_BOUND)


def _flops(wanted: _Question) -> int:
    """Of one step, over all devices."""
    cfg, shape = wanted.spec.transformer, wanted.shape
    return transformer_flops(cfg, sequence_tokens(cfg, shape[1:4]), batch=shape[0] * (1 + wanted.guided))


def _try(wanted: _Question, sizes: dict[str, int], report: Report) -> Trial:
    """Compiles what a video takes on one mesh, as far as it fits."""
    mesh = sharding.make_mesh(**sizes, devices=wanted.target.devices)
    limit = wanted.target.memory
    weights = {name: size / GIB for name, size in programs.weight_bytes(wanted.spec, wanted.compute, mesh).items()}
    held = sum(weights.values())
    trial = Trial(mesh=sizes, fits=False, weights=weights)
    if limit is not None and held > limit:
        return dataclasses.replace(trial, why=f"the weights alone take {held:.1f} of {limit:.1f} GiB")
    found: dict[str, list[Cost]] = {}
    with programs.compiling_for(wanted.target.platform, mesh):
        for name in ("step", "text", "decode"):  # what needs the most is compiled first
            report(f"compiling {name} for {sharding.format_mesh(sizes)}")
            try:
                found[name] = [_cost(wanted, lowered) for lowered in _lowered(wanted, mesh, name)]
            except MemoryError as error:
                return dataclasses.replace(trial, why=f"{name} does not fit: {error}")
            measured: dict[str, Any] = {name: beside_weights(found[name], weights[COMPONENT[name]] * GIB) / GIB}
            trial = dataclasses.replace(trial, **measured)
            if limit is not None and trial.memory > limit:
                return dataclasses.replace(trial, why=f"{name} takes {trial.memory:.1f} of {limit:.1f} GiB")
        trial = dataclasses.replace(trial, skipped_seconds=_skipped_seconds(wanted, mesh, report))
    clock = wanted.target.slice_chip and wanted.target.slice_chip.clock
    seconds = None
    if clock:
        (step,), (text,), decode = ([(c.cycles + c.kernel_cycles) / clock / 1e9 for c in found[n]] for n in found)
        batches = max(wanted.shape[1] - wanted.padding, 1) // (wanted.spec.vae.decode_frames or wanted.shape[1])
        seconds = step, text + wanted.shape[0] * (decode[0] + max(batches - 1, 0) * decode[-1])
    return dataclasses.replace(
        trial,
        fits=True,
        step_seconds=seconds and seconds[0],
        other_seconds=seconds and seconds[1],
        compile_seconds=sum(cost.seconds for costs in found.values() for cost in costs),
    )


def _skipped_seconds(wanted: _Question, mesh: Mesh, report: Report) -> float | None:
    """Of a step that is made of what others computed; None where there is none, or nobody knows the clock."""
    clock = wanted.target.slice_chip and wanted.target.slice_chip.clock
    if not clock or wanted.short is None or not wanted.short.skips:
        return None
    report("compiling a skipped step")
    (cost,) = (_cost(wanted, lowered) for lowered in _lowered(wanted, mesh, "skipped"))
    return (cost.cycles + cost.kernel_cycles) / clock / 1e9


def _lowered(wanted: _Question, mesh: Mesh, name: str) -> Iterator[Any]:
    video = programs.VideoPrograms(
        spec=wanted.spec,
        compute=wanted.compute,
        mesh=mesh,
        shape=wanted.shape,
        padding=wanted.padding,
        guided=wanted.guided,
        sampler=wanted.sampler,
        short=wanted.short,
    )
    return video.lower(name)


def _cost(wanted: _Question, lowered: Any) -> Cost:
    return compile_cost(lowered, chip=wanted.target.slice_chip or chip_of(wanted.target.devices[0].device_kind))


def _instead(wanted: _Question, made: Plan, report: Report) -> str:
    """What would fit, as far as weights and a few more compilations tell."""
    leanest = min(made.trials, key=lambda trial: sum(trial.weights.values())).mesh
    ways = []
    if made.videos > 1:
        ways.append("one video at a time")
    spec = wanted.spec
    for frames in _shorter(spec, made.frames):
        shape = (wanted.shape[0], padded_latent_frames(spec, frames), *wanted.shape[2:])
        trial = _try(
            dataclasses.replace(wanted, shape=shape, padding=shape[1] - latent_frames(spec, frames)), leanest, report
        )
        if trial.fits:
            ways.append(f"{frames} frames on {sharding.format_mesh(leanest)} ({trial.memory:.1f} GiB)")
            break
        if not (trial.step or trial.text):  # the weights are what is too large
            break
    if made.topology in TOPOLOGIES:
        kind = made.topology.partition(":")[0]
        larger = TOPOLOGIES[TOPOLOGIES.index(made.topology) + 1 :]
        ways += [f"a larger slice, such as {name}" for name in larger[:1] if name.startswith(kind)]
    short = min(trial.memory for trial in made.trials) - (made.memory or 0)
    what = ", or ".join(ways) or "nothing that was tried"
    return f"it is {max(short, 0):.1f} GiB too large for each device; what would fit: {what}"


def _shorter(spec: ModelSpec, frames: int) -> list[int]:
    """Two shorter clips that the model can make."""
    unit = frame_unit(spec)
    return [
        n for n in dict.fromkeys((1 + frames // 2 // unit * unit, 1 + frames // 4 // unit * unit)) if 1 < n < frames
    ]


def _file(wanted: _Question, facts: dict[str, Any]) -> Path:
    """Where a plan is kept: by everything that decides it, versions too."""
    versions = cache.versions() | {"cogvx_jax": importlib.metadata.version("cogvx_jax")}
    decides = wanted.spec, wanted.compute, wanted.sampler, sorted(facts.items()), sorted(versions.items())
    key = hashlib.sha256(repr(decides).encode()).hexdigest()[:24]
    return cache.folder() / "plans" / f"{key}.json"


def _read(file: Path) -> Plan | None:
    """A plan that was kept; None if there is none, or it is damaged."""
    try:
        facts = read_json(file)
        trials = tuple(Trial(**trial) for trial in facts.pop("trials"))
        return Plan(**facts | {"size": tuple(facts["size"]), "trials": trials})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
