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
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from cogvx_jax import cache, sharding
from cogvx_jax.configs import Compute, ModelSpec
from cogvx_jax.data.regions import MAX_REGIONS
from cogvx_jax.pipelines.controlnets import open_controlnet
from cogvx_jax.pipelines.duration import fusers_share, nets_share, sampling_flops
from cogvx_jax.pipelines.inputs import Task, check_edits
from cogvx_jax.pipelines.memory_modes import (
    AUTO,
    MODES,
    RESIDENT,
    MemoryMode,
    check_slices,
    find_mode,
    strips_note,
)
from cogvx_jax.pipelines.model import choose_compute, load_quantization, load_spec
from cogvx_jax.pipelines.options import Sampling, check_alone
from cogvx_jax.pipelines.regions import OTHERS as WITHOUT_REGIONS
from cogvx_jax.pipelines.regions import check_positions as check_text_positions
from cogvx_jax.pipelines.request import (
    Settings,
    check_controlnets,
    check_sampling,
    check_videos,
    evaluations,
    inversions,
    latent_frames,
    padded_latent_frames,
    row_evaluations,
    shorter_clips,
)
from cogvx_jax.pipelines.short_schedule import asked_of, check_in_mode, computed_count, wanted_of
from cogvx_jax.pipelines.tora import OTHERS as WITHOUT_MOTION
from cogvx_jax.pipelines.tora import check_frames, open_files
from cogvx_jax.planning import lower as programs
from cogvx_jax.planning.lower import Beside
from cogvx_jax.planning.targets import Target, candidates, find_target
from cogvx_jax.planning.trials import Plan, read_plan
from cogvx_jax.planning.trying import Costs, Question, Report, try_mesh
from cogvx_jax.sharding.topologies import TOPOLOGIES
from cogvx_jax.storage import write_whole

# What the published q/k norms allow is read off the weights by `load`; until then attention is taken to need
# no running maximum.
LIKELY_BOUND = 20.0


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
    check_videos(videos)
    target = find_target(topology, mesh, device_gb)
    compute = dataclasses.replace(_compute(spec, dtype, target), quantize=load_quantization(source, quantize))
    modes = _modes(memory, made_of, compute, target.platform)
    wanted = Question(
        spec=spec,
        compute=compute,
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
    if not fresh and (known := read_plan(kept)) is not None:
        return known
    trials, costs = [], Costs(report)
    branches = wanted.guided and made_of.way is None  # side by side, or not all steps have both
    meshes = list(candidates(spec.transformer.heads, len(target.devices), videos, guided=branches))
    for mode in modes:
        for sizes in meshes if sizes_of is None else [sizes_of]:
            trials.append(try_mesh(dataclasses.replace(wanted, mode=mode), sizes, costs))
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


def _flops(wanted: "Question", made_of: Settings, videos: int) -> int:
    """Operations of the transformer, and of what is beside it, in all steps."""
    spec, beside = wanted.spec, wanted.beside
    more = nets_share(spec, made_of, beside.nets, beside.texts)
    more += fusers_share(spec, made_of, beside.tora, videos, beside.texts)
    return round(sampling_flops(spec, made_of, videos, beside.texts) * (1 + more))


def _compute(spec: ModelSpec, dtype: str | None, target: Target) -> Compute:
    return dataclasses.replace(choose_compute(spec, dtype, platform=target.platform), logit_bound=LIKELY_BOUND)


def _modes(
    memory: str | MemoryMode | None, settings: Settings, compute: Compute, platform: str
) -> tuple[MemoryMode, ...]:
    """The mode that is named, or all that can make such a video. Raises: ValueError where the named one cannot."""
    if memory not in (None, AUTO):
        check_in_mode(find_mode(memory), settings)
        check_slices(find_mode(memory), compute, platform)
        return (find_mode(memory),)
    found = []
    for mode in MODES:
        with contextlib.suppress(ValueError):
            check_in_mode(mode, settings)
            check_slices(mode, compute, platform)
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


def _instead(wanted: Question, made: Plan, costs: Costs) -> str:
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
        trial = try_mesh(dataclasses.replace(wanted, shape=shape, padding=padding, mode=mode), nearest.mesh, costs)
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


def _file(wanted: Question, facts: dict[str, Any]) -> Path:
    """Where a plan is kept: by everything that decides it, versions too."""
    versions = cache.versions() | {"cogvx_jax": importlib.metadata.version("cogvx_jax")}
    decides: Any = wanted.spec, wanted.compute, wanted.sampler, sorted(facts.items()), sorted(versions.items())
    decides += (wanted.beside,) if wanted.beside != programs.NOTHING else ()
    key = hashlib.sha256(repr(decides).encode()).hexdigest()[:24]
    return cache.folder() / "plans" / f"{key}.json"
