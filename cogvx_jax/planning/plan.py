"""Which mesh and memory mode a slice should use for a model, whether it fits, and how long a video takes at best.

    plan = cx.plan("1.5-5b", topology="v6e:2x4")      # for a slice one does not own; needs libtpu
    plan = cx.plan("5b")                              # for the devices that are here
    model = cx.load("5b", mesh=plan.mesh, memory=plan.mode)

Memory modes are tried in the order of their table, and for each the meshes that make sense in the order of
`candidates`. The VAE works through whole frames, or through as few strips of rows as fit, as in `generate`. The first
that fits is chosen. A program that several of them run is compiled once.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from cogvx_jax import cache, sharding
from cogvx_jax.chips import Chip, chip_of
from cogvx_jax.configs import Compute, ModelSpec
from cogvx_jax.data.regions import MAX_REGIONS
from cogvx_jax.diffusion.guiders import Guider
from cogvx_jax.diffusion.windows import Laid, Windows
from cogvx_jax.json_files import read_json
from cogvx_jax.models.tiling import Tiling
from cogvx_jax.nn.backend import platform_of
from cogvx_jax.pipelines.controlnets import abstract_beside, open_controlnet
from cogvx_jax.pipelines.duration import fusers_share, nets_share, sampling_flops
from cogvx_jax.pipelines.inputs import Task, check_edits
from cogvx_jax.pipelines.memory_modes import AUTO, MODES, RESIDENT, MemoryMode, find_mode, strips_note
from cogvx_jax.pipelines.model import choose_compute, load_quantization, load_spec
from cogvx_jax.pipelines.options import Sampling, check_alone
from cogvx_jax.pipelines.program_cost import Cost, beside_weights, compile_cost
from cogvx_jax.pipelines.regions import OTHERS as WITHOUT_REGIONS
from cogvx_jax.pipelines.regions import check_positions as check_text_positions
from cogvx_jax.pipelines.request import (
    Settings,
    check_controlnets,
    check_sampling,
    check_videos,
    evaluations,
    inversions,
    laid_windows,
    latent_frames,
    padded_latent_frames,
    row_evaluations,
    shorter_clips,
)
from cogvx_jax.pipelines.short_schedule import asked_of, check_in_mode, computed_count, wanted_of
from cogvx_jax.pipelines.shortcuts import Wanted
from cogvx_jax.pipelines.stored_programs import COMPONENT
from cogvx_jax.pipelines.tora import OTHERS as WITHOUT_MOTION
from cogvx_jax.pipelines.tora import check_frames, open_files
from cogvx_jax.pipelines.weights import device_bytes, host_bytes, weight_bytes
from cogvx_jax.planning import lower as programs
from cogvx_jax.planning.lower import Beside
from cogvx_jax.sharding.topologies import TOPOLOGIES, Topology, topology
from cogvx_jax.storage import write_whole

GIB = 2**30
CONTROLNETS, TORA = "controlnets", "tora"  # beside the components, whose weights lie there while steps are taken
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
    inversion_seconds: float | None = None  # a step of the inversion of an edit's clip
    other_seconds: float | None = None  # text encoder and decoder, a video
    compile_seconds: float = 0.0
    why: str = ""
    mode: str = RESIDENT.name  # of `pipelines.memory_modes`
    strips: int = 1  # of rows that the VAE decodes in; 1 is whole frames
    host: float = 0.0  # GiB of the transformer's kernels that every step brings from the host's memory

    @property
    def memory(self) -> float:
        """GiB at the fullest moment, as far as programs were compiled."""
        beside = {"text_encoder": self.text or 0, "transformer": self.step or 0, "vae": self.decode or 0}
        if find_mode(self.mode).turns:
            return max(self.lying(component) + size for component, size in beside.items())
        return sum(self.weights.values()) + max(beside.values())

    def lying(self, component: str) -> float:
        """GiB of the weights that a component needs: the transformer those of ControlNets and of Tora, too."""
        names = (component, *((CONTROLNETS, TORA) if component == "transformer" else ()))
        return sum(self.weights.get(name, 0.0) for name in names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What was asked for, what was tried, and which trial is chosen: the first that fits, if any does."""

    model: str
    topology: str
    devices: int
    memory: float | None  # GiB of a device; None where it does not say
    dtype: str
    quantize: str | None = None
    size: tuple[int, int]
    frames: int
    videos: int
    steps: int
    evaluations: int  # of the transformer, both branches of guidance together: more than steps with some samplers
    flops: int  # of the transformer, all steps
    guider: str = ""  # such as "slg:layers=11,..."
    enhance: float | None = None
    thirds: int = 0  # evaluations that the guider needs beside both branches
    controlnets: str = ""  # such as "6 blocks and 8 blocks"
    tora: bool = False  # the video follows trajectories
    regions: int = 0  # with prompts of their own
    windows: str = ""  # such as "48:8,policy=uniform,..."
    windows_a_step: float = 1.0  # that the transformer sees, in the mean of all evaluations
    trials: tuple[Trial, ...]
    instead: str = ""  # what would fit, where nothing does
    short: str = ""  # what is asked of the steps, such as "reuse every:2"
    computed: int | None = None  # evaluations that are computed; None where that is known only when they run
    inversions: int = 0  # evaluations of one branch that invert the clip of an edit

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

    @property
    def mode(self) -> MemoryMode:
        """The chosen memory mode. Raises: ValueError where nothing fits."""
        if self.chosen is None:
            raise ValueError(f"{self.model} does not fit {self.topology}; {self.instead}")
        return find_mode(self.chosen.mode)

    def json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)


def plan(
    source: str,
    *,
    sampling: Sampling | None = None,
    topology: str | None = None,
    videos: int = 1,
    dtype: str | None = None,
    quantize: str | None = None,
    every: bool = False,
    fresh: bool = False,
    memory: str | MemoryMode | None = None,
    mesh: Mesh | None = None,
    device_gb: float | None = None,
    task: Task | None = None,
    controlnet: Sequence[Any] = (),
    tora: str | os.PathLike | None = None,
    regions: int = 0,
    report: Report = lambda line: None,
    **options: Any,
) -> Plan:
    """Chooses a mesh and a memory mode by compiling ahead of time; results are kept in the user's cache folder.

    Args:
      source: as for `load`; no weights are read.
      sampling: of the videos, such as `generate`'s `Options`; or, instead, `options`.
      topology: a TPU slice such as "v5e:2x4", which need not be here, or cpu:N; None is the devices that are here.
      videos: made at a time.
      dtype: None is what `load` would choose on such a device.
      quantize: as for `load`; None is as the model is stored.
      every: compile all meshes, not only up to the first that fits.
      fresh: compile again what was planned before.
      memory: a mode to plan for; None or "auto" tries them in order.
      mesh: to plan for, of the slice's devices or of those that are here; None tries those that make sense.
      device_gb: plans as if a device had so many GB (1e9 bytes).
      task: of the videos, which decides what lengths there are; None is the model's own. Of "edit" the clip's inverted
        latents lie in the host's memory and are not counted.
      controlnet: ControlNets that all steps have, as for `load_controlnet`, or what that gives; their memory is counted
        while steps are taken, and no numbers of files are read.
      tora: Tora's files, by which a video follows trajectories: their folder, or both with a comma between. The fusers'
        memory is counted while steps are taken, the features as arguments of those.
      regions: how many have prompts of their own; where they lie changes nothing.
      report: gets a line before each compilation, which may take minutes.
      height, width, num_frames, num_inference_steps, guidance_scale, sampler, reuse, guidance, guider, enhance,
        windows: as for `generate`.
    Raises: ValueError for an unknown topology or mode, missing libtpu, or a size that the model cannot make.
    """
    spec = load_spec(source)
    edit = task == "edit"
    if edit:
        check_edits(spec)
    made_of = check_sampling(spec, Sampling.of(sampling, options), task)
    beside = _beside(spec, made_of, controlnet, tora, regions)
    modes = _modes(memory, made_of)
    check_videos(videos)
    target = find_target(topology, mesh, device_gb)
    wanted = _Question(
        spec=spec,
        compute=dataclasses.replace(_compute(spec, dtype, target), quantize=load_quantization(source, quantize)),
        target=target,
        shape=(videos, *made_of.shape),
        padding=made_of.padding,
        guided=made_of.guided,
        sampler=made_of.sampler,
        guider=made_of.guider,
        enhance=made_of.enhance,
        short=wanted_of(made_of),
        edit=edit,
        windows=made_of.windows,
        evaluations=evaluations(spec, made_of),
        beside=beside,
    )
    count, rows = evaluations(spec, made_of), row_evaluations(spec, made_of)
    facts: dict[str, Any] = {
        "model": spec.name,
        "topology": target.name,
        "devices": len(target.devices),
        "memory": target.memory,
        "dtype": wanted.compute.dtype,
        "quantize": wanted.compute.quantize,
        "size": (made_of.height, made_of.width),
        "frames": made_of.frames,
        "videos": videos,
        "steps": made_of.steps,
        "evaluations": count,
        "flops": _flops(wanted, made_of, videos),
        "inversions": inversions(made_of),
        "guider": "" if made_of.guider is None else str(made_of.guider),
        "enhance": made_of.enhance,
        "thirds": rows - count * (1 + made_of.guided),
    }
    if beside.nets:
        facts["controlnets"] = " and ".join(f"{net.layers} blocks" for net in beside.nets)
    facts |= {"tora": True} if beside.tora is not None else {}
    facts |= {"regions": regions} if regions else {}
    if wanted.windows is not None:
        facts |= {"windows": str(wanted.windows), "windows_a_step": wanted.windows_a_step}
    if wanted.short is not None:
        facts |= {"short": asked_of(made_of), "computed": computed_count(made_of, spec)}
    sizes_of = None if mesh is None else {axis: size for axis, size in mesh.shape.items() if size > 1}
    kept = _file(wanted, facts | {"every": every, "modes": [repr(mode) for mode in modes], "mesh": sizes_of})
    if not fresh and (known := _read(kept)) is not None:
        return known
    trials, costs = [], _Costs(report)
    branches = wanted.guided and made_of.way is None  # side by side, or not all steps have both
    meshes = list(candidates(spec.transformer.heads, len(target.devices), videos, guided=branches))
    for mode in modes:
        for sizes in meshes if sizes_of is None else [sizes_of]:
            trials.append(_try(dataclasses.replace(wanted, mode=mode), sizes, costs))
            if trials[-1].fits and not every:
                break
        if any(trial.fits for trial in trials):
            break
    made = Plan(**facts, trials=tuple(trials))
    if made.chosen is None:
        made = dataclasses.replace(made, instead=_instead(wanted, made, costs))
    with contextlib.suppress(OSError):  # a home that cannot be written to must not cost the plan
        write_whole(kept, made.json().encode())
        cache.trim(kept.parent, cache.MAX_PLANS)
    return made


def _beside(
    spec: ModelSpec, made_of: Settings, controlnet: Sequence[Any], tora: str | os.PathLike | None, regions: int
) -> Beside:
    """What steps are given beside latents and a prompt. Raises: ValueError, one sentence, for what cannot be."""
    asked: dict[str, Any] = {"windows": made_of.windows, "reuse": made_of.reuse, "guidance": made_of.way}
    asked |= {"edit": made_of.task == "edit", "controlnet": controlnet}
    nets = tuple(open_controlnet(one, spec).cfg for one in controlnet)
    if asked["edit"] and nets:
        raise ValueError("an edit takes no ControlNet; plan for one of them")
    check_controlnets(made_of, bool(nets))
    if tora is not None:
        check_alone("trajectory", WITHOUT_MOTION, asked)
        check_frames(made_of.frames)
    if not 0 <= regions <= MAX_REGIONS:
        raise ValueError(f"regions must be from 0 to {MAX_REGIONS}, got {regions}")
    if regions:
        check_text_positions(spec)
        check_alone("regions", WITHOUT_REGIONS, asked)
    files = None if tora is None else open_files(os.fspath(tora), spec)
    return Beside(nets=nets, tora=None if files is None else files.cfg, texts=1 + regions)


def _flops(wanted: "_Question", made_of: Settings, videos: int) -> int:
    """Operations of the transformer, and of what is beside it, in all steps."""
    spec, beside = wanted.spec, wanted.beside
    more = nets_share(spec, made_of, beside.nets, beside.texts)
    more += fusers_share(spec, made_of, beside.tora, videos, beside.texts)
    return round(sampling_flops(spec, made_of, videos, beside.texts) * (1 + more))


def _modes(memory: str | MemoryMode | None, settings: Settings) -> tuple[MemoryMode, ...]:
    """The mode that is named, or all that can make such a video. Raises: ValueError where the named one cannot."""
    if memory not in (None, AUTO):
        check_in_mode(find_mode(memory), settings)
        return (find_mode(memory),)
    found = []
    for mode in MODES:
        with contextlib.suppress(ValueError):
            check_in_mode(mode, settings)
            found.append(mode)
    return tuple(found)


def auto_mesh(source: str, **asked: Any) -> Mesh | None:
    """The mesh for the devices that are here; None is one device. Arguments as for `choose`."""
    return choose(source, mesh=AUTO, **asked)[0]


def choose(
    source: str,
    *,
    sampling: Sampling | None = None,
    videos: int = 1,
    dtype: str | None = None,
    quantize: str | None = None,
    mesh: Mesh | str | None = None,
    memory: str | MemoryMode | None = None,
    task: Task | None = None,
    controlnet: Sequence[Any] = (),
    tora: str | os.PathLike | None = None,
    regions: int = 0,
    report: Report = lambda line: None,
) -> tuple[Mesh | None, MemoryMode]:
    """Mesh and memory mode for the devices that are here; arguments as for `plan`.

    Where they do not say how much memory they have, as on CPU, nothing is compiled: the first of each it is.

    Args:
      mesh: "auto" chooses one for all devices; None is one device.
      memory: "auto" chooses the first that fits; None is resident.
    Raises: ValueError where the model does not fit.
    """
    mode = RESIDENT if memory is None else None if memory == AUTO else find_mode(memory)
    given = mesh if isinstance(mesh, Mesh) else None
    on = sharding.make_mesh(devices=jax.devices()[:1]) if mesh is None else given
    target = find_target(None, on)
    if len(target.devices) == 1 and mode is not None:
        return given, mode
    if target.memory is None:
        if mode is None:
            report(f"how much memory a device has is not known here: the memory mode is {RESIDENT.name}")
        found = _first_mesh(source, sampling, task, videos, len(target.devices)) if mesh == AUTO else given
        return found, mode or RESIDENT
    asked: dict[str, Any] = dict(videos=videos, dtype=dtype, quantize=quantize, memory=mode or AUTO, mesh=on)
    asked["task"] = task
    asked |= {"controlnet": controlnet, "tora": tora, "regions": regions}
    made = plan(source, sampling=sampling, report=report, **asked)
    found = made.mesh if mesh == AUTO else given
    if mesh == AUTO and made.chosen is not None:
        report(f"--mesh {sharding.format_mesh(made.chosen.mesh)}")
    if mode is None:
        report(f"--memory {made.mode.name}: it {made.mode.changes}; that costs {made.mode.costs}")
        if made.chosen is not None and made.chosen.strips > 1:
            report(strips_note(made.chosen.strips))
    return found, made.mode


def _first_mesh(source: str, sampling: Sampling | None, task: Task | None, videos: int, devices: int) -> Mesh | None:
    if devices == 1:
        return None
    spec = load_spec(source)
    made_of = check_sampling(spec, sampling or Sampling(), task)
    guided = made_of.guided and made_of.way is None
    sizes: dict[str, Any] = next(candidates(spec.transformer.heads, devices, videos, guided=guided))
    return sharding.make_mesh(**sizes)


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
class Target:
    name: str
    devices: tuple[Any, ...]
    platform: str
    topology: Topology | None
    device_gb: float | None = None  # in place of what a device has

    @property
    def slice_chip(self) -> Chip | None:
        """The chip of a TPU slice by name; None for the devices that are here, whose clock nobody knows."""
        return None if self.topology is None else self.topology.chip

    @property
    def memory(self) -> float | None:
        if self.device_gb is not None:
            return self.device_gb * 1e9 / GIB
        if self.slice_chip is not None:
            return self.slice_chip.memory
        stats = self.devices[0].memory_stats() if self.topology is None else None
        return stats["bytes_limit"] / GIB if stats and "bytes_limit" in stats else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Question:
    spec: ModelSpec
    compute: Compute
    target: Target
    shape: tuple[int, int, int, int, int]
    padding: int
    guided: bool
    sampler: str
    guider: Guider | None = None
    enhance: float | None = None
    short: Wanted | None = None
    edit: bool = False
    windows: Windows | None = None
    evaluations: int = 1  # over which the windows are laid out
    beside: Beside = programs.NOTHING
    mode: MemoryMode = RESIDENT
    strips: int = 1

    @property
    def laid(self) -> Laid | None:
        """The windows of all evaluations; None where the whole clip is seen at once."""
        return laid_windows(self.spec, self.windows, self.shape[1], self.evaluations)

    @property
    def windows_a_step(self) -> float:
        return 1.0 if self.laid is None else float(self.laid.count.mean())

    @property
    def computed(self) -> Compute:
        return dataclasses.replace(self.mode.of(self.compute), strips=self.strips)

    def ways(self, name: str) -> list["_Question"]:
        """With every count of strips that the mode has and that makes another program, fewest first."""
        found: dict[Compute, _Question] = {}
        for count in self.mode.strips:
            way = dataclasses.replace(self, strips=count)
            found.setdefault(way.computed.of(COMPONENT[name]), way)
        return list(found.values())

    @property
    def timed_only(self) -> tuple[str, ...]:
        """Programs that take less memory than the step, so that only their time counts."""
        skips = self.short is not None and self.short.skips
        return (*(["skipped"] if skips else []), *(["inversion"] if self.edit else []))


def find_target(name: str | None, mesh: Mesh | None = None, device_gb: float | None = None) -> Target:
    """A slice by its name, or the devices that are here; of either, those of a mesh."""
    if device_gb is not None and not 0 < device_gb < math.inf:
        raise ValueError(f"the memory of a device must be a positive number of GB, got {device_gb:g}")
    slice_ = None if name is None else topology(name)
    devices = tuple(jax.devices() if slice_ is None else slice_.devices())
    devices = devices if mesh is None else tuple(mesh.devices.flat)
    return Target(
        name=name or f"{len(devices)} x {devices[0].device_kind}",
        devices=devices,
        platform=platform_of(devices[0]),
        topology=slice_,
        device_gb=device_gb,
    )


def _compute(spec: ModelSpec, dtype: str | None, target: Target) -> Compute:
    return dataclasses.replace(choose_compute(spec, dtype, platform=target.platform), logit_bound=LIKELY_BOUND)


def _component(program: str) -> str:
    """Whose weights a program takes; kinds of steps have no programs of their own names."""
    return COMPONENT.get(program, "transformer")


class _Costs:
    """What programs cost, each compiled once, whichever trials run it. What does not fit is a MemoryError."""

    def __init__(self, report: Report):
        self._report = report
        self._known: dict[Any, list[Cost] | MemoryError] = {}

    def knows(self, wanted: _Question, sizes: dict[str, int], name: str) -> bool:
        return self._key(wanted, sizes, name) in self._known

    def find(self, wanted: _Question, mesh: Mesh, sizes: dict[str, int], name: str) -> list[Cost] | MemoryError:
        key = self._key(wanted, sizes, name)
        if key not in self._known:
            words = [wanted.mode.name] if wanted.mode != RESIDENT else []
            words += [f"in {wanted.strips} strips of rows"] if wanted.strips > 1 else []
            self._report(" ".join([f"compiling {name} for {sharding.format_mesh(sizes)}", *words]))
            here = wanted.target.slice_chip is None
            with contextlib.nullcontext() if here else cache.nothing_on_disk():
                try:
                    self._known[key] = [_cost(wanted, lowered) for lowered in _lowered(wanted, mesh, name)]
                except MemoryError as error:
                    self._known[key] = error
        return self._known[key]

    @staticmethod
    def _key(wanted: _Question, sizes: dict[str, int], name: str) -> Any:
        tiling, computed = wanted.mode.tiling and name == "decode", wanted.computed.of(_component(name))
        # In strips each device works through whole frames, on any mesh of the slice.
        spread = tuple(sizes.items()) if computed.strips == 1 else ()
        return name, spread, computed, tiling, wanted.shape, wanted.windows, wanted.beside


def _try(wanted: _Question, sizes: dict[str, int], costs: _Costs) -> Trial:
    """Compiles what a video takes on one mesh in one memory mode, as far as it fits."""
    mesh = sharding.make_mesh(**sizes, devices=wanted.target.devices)
    limit, compute = wanted.target.memory, wanted.computed
    weights = {name: size / GIB for name, size in weight_bytes(wanted.spec, compute, mesh).items()}
    if (beside := wanted.beside).nets:
        lying = sum(device_bytes(abstract_beside(net, compute, mesh)) for net in beside.nets)
        weights[CONTROLNETS] = lying / GIB
    if beside.tora is not None:
        weights[TORA] = device_bytes(abstract_beside(beside.tora, compute, mesh)["fusers"]) / GIB
    host = host_bytes(wanted.spec, compute, mesh)["transformer"] / GIB
    trial = Trial(mesh=sizes, fits=False, weights=weights, mode=wanted.mode.name, host=host)
    if limit is not None and trial.memory > limit:
        return dataclasses.replace(trial, why=f"the weights alone take {trial.memory:.1f} of {limit:.1f} GiB")
    found: dict[str, list[Cost]] = {}
    # What needs the most is compiled first, after what is known already.
    names = sorted(("step", "text", "decode"), key=lambda name: not costs.knows(wanted, sizes, name))
    with programs.compiling_for(wanted.target.platform, mesh):
        for name in names:
            tried = []
            for way in wanted.ways(name):
                cost = costs.find(way, mesh, sizes, name)
                tried.append(_with(trial, way, name, cost, limit))
                if not tried[-1].why:
                    break
            if isinstance(cost, MemoryError) or tried[-1].why:
                return min(tried, key=lambda trial: getattr(trial, name) or math.inf)
            trial, found[name] = tried[-1], cost
        for name in wanted.timed_only if wanted.target.slice_chip and wanted.target.slice_chip.clock else ():
            other = costs.find(wanted, mesh, sizes, name)
            if not isinstance(other, MemoryError):
                found[name] = other
    return dataclasses.replace(
        trial,
        **_seconds(wanted, found),
        fits=True,
        compile_seconds=sum(cost.seconds for some in found.values() for cost in some),
    )


def _with(trial: Trial, way: _Question, name: str, cost: list[Cost] | MemoryError, limit: float | None) -> Trial:
    """The trial with what a program takes beside its component's weights, and why that does not fit, if so."""
    weight, how = trial.lying(COMPONENT[name]), f" in {way.strips} strips of rows" if way.strips > 1 else ""
    made: dict[str, Any] = {"strips": max(trial.strips, way.strips)}
    if isinstance(cost, MemoryError):
        made |= {name: _beside_at_least(cost, weight), "why": f"{name}{how} does not fit: {cost}"}
        return dataclasses.replace(trial, **made)
    made[name] = beside_weights(cost, weight * GIB) / GIB
    trial = dataclasses.replace(trial, **made)
    if limit is not None and trial.memory > limit:
        return dataclasses.replace(trial, why=f"{name}{how} takes {trial.memory:.1f} of {limit:.1f} GiB")
    return trial


def _beside_at_least(error: MemoryError, weights: float) -> float | None:
    """GiB beside the weights that the compiler says it would need; None where it does not."""
    said = re.search(r"Used ([\d.]+)([KMGT]) of", str(error))
    if said is None:
        return None
    return max(float(said[1]) * 2.0 ** {"K": -20, "M": -10, "G": 0, "T": 10}[said[2]] - weights, 0.0)


def _seconds(wanted: _Question, found: dict[str, list[Cost]]) -> dict[str, Any]:
    """Of a step, of one that is skipped, and of text encoder and decoder; nothing where nobody knows the clock."""
    clock = wanted.target.slice_chip and wanted.target.slice_chip.clock
    if not clock:
        return {}
    times = {name: [(c.cycles + c.kernel_cycles) / clock / 1e9 for c in costs] for name, costs in found.items()}
    (step,), (text,), decode = (times[name] for name in ("step", "text", "decode"))
    step *= wanted.windows_a_step  # of the loop over them, whose length the program is told, one counts
    vae = wanted.spec.vae
    batches = max(wanted.shape[1] - wanted.padding, 1) // (vae.decode_frames or wanted.shape[1])
    tiles = Tiling.of(vae).count(*wanted.shape[2:4]) if wanted.mode.tiling else 1
    video = tiles * (decode[0] + max(batches - 1, 0) * decode[-1])
    made: dict[str, Any] = {"step_seconds": step, "other_seconds": text + wanted.shape[0] * video}
    own = {"skipped": 1.0, "inversion": wanted.windows_a_step}  # how often a step runs it
    return made | {f"{name}_seconds": own[name] * times[name][0] for name in wanted.timed_only if name in times}


def _lowered(wanted: _Question, mesh: Mesh, name: str) -> Iterator[Any]:
    shape: tuple[int, ...] = wanted.shape
    if wanted.mode.tiling and name == "decode":  # the largest tile
        shape = Tiling.of(wanted.spec.vae).largest(shape)
    video = programs.VideoPrograms(
        spec=wanted.spec,
        compute=wanted.computed,
        mesh=mesh,
        shape=shape,
        padding=wanted.padding,
        guided=wanted.guided,
        sampler=wanted.sampler,
        guider=wanted.guider,
        enhance=wanted.enhance,
        short=wanted.short,
        edit=wanted.edit,
        windows=wanted.laid,
        beside=wanted.beside,
    )
    return video.lower(name)


def _cost(wanted: _Question, lowered: Any) -> Cost:
    return compile_cost(lowered, chip=wanted.target.slice_chip or chip_of(wanted.target.devices[0].device_kind))


def _instead(wanted: _Question, made: Plan, costs: _Costs) -> str:
    """What would fit, as far as weights and a few more compilations tell."""
    known = [trial for trial in made.trials if trial.text or trial.step or trial.decode] or made.trials
    nearest = min(known, key=lambda trial: trial.memory)
    ways = []
    if made.videos > 1:
        ways.append("one video at a time")
    spec, mode = wanted.spec, find_mode(nearest.mode)
    with_mode = "" if mode == RESIDENT else f" with --memory {mode.name}"
    for frames in shorter_clips(spec, made.frames):
        shape = (wanted.shape[0], padded_latent_frames(spec, frames), *wanted.shape[2:])
        padding = shape[1] - latent_frames(spec, frames)
        trial = _try(dataclasses.replace(wanted, shape=shape, padding=padding, mode=mode), nearest.mesh, costs)
        if trial.fits:
            ways.append(f"{frames} frames on {sharding.format_mesh(nearest.mesh)} ({trial.memory:.1f} GiB){with_mode}")
            break
        if not (trial.step or trial.text):  # the weights are what is too large
            break
    if made.topology in TOPOLOGIES:
        kind = made.topology.partition(":")[0]
        larger = TOPOLOGIES[TOPOLOGIES.index(made.topology) + 1 :]
        ways += [f"a larger slice, such as {name}" for name in larger[:1] if name.startswith(kind)]
    short = nearest.memory - (made.memory or 0)
    what = ", or ".join(ways) or "nothing that was tried"
    return f"it is {max(short, 0):.1f} GiB too large for each device{with_mode}; what would fit: {what}"


def _file(wanted: _Question, facts: dict[str, Any]) -> Path:
    """Where a plan is kept: by everything that decides it, versions too."""
    versions = cache.versions() | {"cogvx_jax": importlib.metadata.version("cogvx_jax")}
    decides: Any = wanted.spec, wanted.compute, wanted.sampler, sorted(facts.items()), sorted(versions.items())
    decides += (wanted.beside,) if wanted.beside != programs.NOTHING else ()
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
