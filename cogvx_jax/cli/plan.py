"""The verb `cogvx plan`, and what it prints."""

from typing import TYPE_CHECKING, Annotated

import tyro

from cogvx_jax.cli.families import family_of
from cogvx_jax.cli.options import (
    ControlNetText,
    DType,
    MemoryText,
    QuantizeOption,
    SamplingFlags,
    check_memory,
    report,
)
from cogvx_jax.pipelines.memory_modes import RESIDENT, find_mode, strips_note
from cogvx_jax.pipelines.options import parse_weighted

if TYPE_CHECKING:
    from cogvx_jax.planning.trials import Plan, Trial

# What jax and flax need seconds to import comes inside, after the arguments are known to be sound.


def plan(
    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")] = "tiny",
    /,
    *,
    topology: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    video: Annotated[SamplingFlags, tyro.conf.OmitArgPrefixes] = SamplingFlags(),  # noqa: B008
    videos: int = 1,
    dtype: DType | None = None,
    quantize: QuantizeOption = None,
    memory: MemoryText = None,
    device_gb: float | None = None,
    edit: bool = False,
    controlnet: ControlNetText = (),
    tora: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None,
    regions: int = 0,
    every: bool = False,
    fresh: bool = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Says whether a model fits a slice of devices, on which mesh, and how long a video takes at best.

    The slice need not be here: with libtpu installed (pip install libtpu), programs are compiled for it ahead of
    time, which takes minutes; what was planned once is remembered.

    Args:
      model: as for `generate`; no weights are read.
      topology: a TPU slice such as v5e:2x4, or cpu:N for virtual devices, or "all" of the TPU slices; None is
        the devices that are here.
      videos: made at a time.
      dtype: to compute in.
      quantize: plan for a model that is quantised: int8, w8a8 or int4. None is as it is stored.
      memory: a memory mode to plan for; None tries them in the order of exact, exact and slower, lossy.
      device_gb: plan as if a device had so many GB (1e9 bytes).
      edit: plan for `cogvx edit`, whose steps look at a clip that is inverted first.
      controlnet: a ControlNet that all steps have, as for `generate`; several add up.
      tora: Tora's files, as for `generate`, where videos follow trajectories.
      regions: how many parts of the picture have prompts of their own.
      every: try all meshes that make sense, not only up to the first that fits.
      fresh: compile again what was planned before.
      as_json: print JSON.
    """
    sampling = video.checked()
    check_memory(memory)
    nets = [parse_weighted(text, "ControlNet")[0] for text in controlnet]
    import jax

    if topology is not None:  # its programs are compiled, not run: no accelerator that may be here is taken
        jax.config.update("jax_platforms", "cpu")
        if topology.startswith("cpu:") and topology[4:].isdecimal():
            jax.config.update("jax_num_cpu_devices", int(topology[4:]))
    from cogvx_jax.planning.plan import plan as make
    from cogvx_jax.sharding.topologies import TOPOLOGIES

    if (family := family_of(model)) is not None:
        others = dict(videos=videos > 1, memory=memory, edit=edit, controlnet=controlnet, tora=tora, regions=regions)
        for name in TOPOLOGIES if topology == "all" else (topology,):
            family.plan(
                model,
                topology=name,
                video=sampling,
                dtype=dtype,
                quantize=quantize,
                device_gb=device_gb,
                every=every,
                as_json=as_json,
                unused=others,
            )
        return
    for name in TOPOLOGIES if topology == "all" else (topology,):
        made = make(
            model,
            topology=name,
            sampling=sampling,
            videos=videos,
            dtype=dtype,
            quantize=quantize,
            memory=memory,
            device_gb=device_gb,
            task="edit" if edit else None,
            controlnet=nets,
            tora=None if tora is None else parse_weighted(tora, "Tora")[0],
            regions=regions,
            every=every,
            fresh=fresh,
            report=report,
        )
        print(made.json() if as_json else table(made), flush=True)


def table(made: "Plan") -> str:
    """A plan for people: a line a mesh, then what is chosen and why."""
    (height, width), how = made.size, (made.dtype, made.quantize)
    limit = "unknown memory" if made.memory is None else f"{made.memory:.1f} GiB"
    lines = [
        f"{made.model} on {made.topology} ({made.devices} devices of {limit}): {made.videos} x "
        f"{height}x{width}, {made.frames} frames, {_steps(made)}, {', '.join(filter(None, how))}",
        "",
        f"{'mesh':28}{'fits':6}{'weights':>8}{'+ text':>8}{'+ step':>8}{'+ decode':>9}"
        f"{'GiB':>7}{'s/step':>8}{'s/video':>9}",
    ]
    lines += [_row(made, trial) for trial in made.trials]
    lines += [f"  {_name(trial)}: {trial.why}" for trial in made.trials if trial.why]
    chosen = made.chosen
    if chosen is None:
        return "\n".join([*lines, "", f"Nothing fits: {made.instead}."])
    parts = ", ".join(f"{name.replace('_', ' ')} {size:.2f}" for name, size in chosen.weights.items())
    mode = find_mode(chosen.mode)
    flag = "" if mode == RESIDENT else f" --memory {mode.name}"
    lines += ["", f"Chosen: --mesh {_mesh(chosen)}{flag}: {_reason(made)}. Weights on a device, GiB: {parts}."]
    if flag:
        lines.append(f"It {mode.changes}. That costs {mode.costs}.")
    if chosen.strips > 1:
        lines.append(strips_note(chosen.strips))
    if chosen.host:
        lines.append(f"Every step brings {chosen.host:.1f} GiB from the host's memory; its time is not counted.")
    if made.short:
        lines.append(_short(made, chosen))
    if made.inversions:
        lines.append(_inversion(made, chosen))
    if made.controlnets:
        lines.append(f"Every step has ControlNets, of {made.controlnets}; encoding their video is not counted.")
    if made.tora:
        lines.append("Every step has Tora's fusers; encoding the trajectories is not counted.")
    if made.regions:
        lines.append(f"Prompts of {made.regions} regions stand beside the video's own.")
    if made.windows:
        lines.append(
            f"A step sees {made.windows_a_step:.1f} windows, one after the other, in the mean: {made.windows}."
        )
    if made.thirds:
        lines.append(
            f"Guider {made.guider} takes a third evaluation in {made.thirds} of {made.evaluations} steps; "
            "the times are those of steps that do."
        )
    if chosen.step_seconds is None:
        lines.append("No time is estimated: only TPU compilers say how many cycles a program takes.")
    else:
        lines.append(
            "Times are static and optimistic: the compiler's cycles at the nominal clock, without transfers between "
            "devices and without waiting for memory; nothing was run."
        )
    return "\n".join(lines)


def _steps(made: "Plan") -> str:
    several = made.evaluations != made.steps
    return f"{made.steps} steps" + (f" of {made.evaluations} evaluations" if several else "")


def _short(made: "Plan", chosen: "Trial") -> str:
    """How many steps are computed, and what the others take."""
    if made.computed is None:
        return f"How many steps {made.short} computes is known when they run; the times are those of all of them."
    others = "" if chosen.skipped_seconds is None else f", of {chosen.skipped_seconds:.3f} s each"
    return f"{made.short}: {made.computed} of {made.evaluations} steps are computed, the others reuse{others}."


def _inversion(made: "Plan", chosen: "Trial") -> str:
    """How many evaluations invert the clip of an edit, and what one takes."""
    each = "" if chosen.inversion_seconds is None else f", of {chosen.inversion_seconds:.3f} s each"
    return f"The clip is inverted first, by {made.inversions} evaluations of one branch{each}."


def _row(made: "Plan", trial: "Trial") -> str:
    def number(value: float | None, width: int, digits: int = 2) -> str:
        return f"{'-' if value is None else f'{value:.{digits}f}':>{width}}"

    video = None
    if trial.step_seconds is not None and trial.other_seconds is not None:
        computed = made.evaluations if made.computed is None else made.computed
        steps = computed * trial.step_seconds + (made.evaluations - computed) * (trial.skipped_seconds or 0)
        inversion = made.inversions * (trial.inversion_seconds or 0)
        video = (steps + inversion + trial.other_seconds) / made.videos
    fits = "-" if made.memory is None else "yes" if trial.fits else "no"
    return (
        f"{_name(trial):28}{fits:6}{number(sum(trial.weights.values()), 8)}"
        f"{number(trial.text, 8)}{number(trial.step, 8)}{number(trial.decode, 9)}{number(trial.memory, 7, 1)}"
        f"{number(trial.step_seconds, 8, 3)}{number(video, 9, 1)}"
    )


def _mesh(trial: "Trial") -> str:
    from cogvx_jax.sharding import format_mesh

    return format_mesh(trial.mesh)


def _name(trial: "Trial") -> str:
    return _mesh(trial) if trial.mode == RESIDENT.name else f"{_mesh(trial)} {trial.mode}"


def _reason(made: "Plan") -> str:
    chosen = made.chosen
    if chosen is None or made.trials[0].fits:
        return "it talks least between devices" + (", and fits" if made.memory is not None else "")
    if chosen.mode != made.trials[0].mode:
        return "the first that fits, of exact modes, exact and slower ones, and lossy ones"
    return "the first that fits, of those that split the weights more and talk more"
