"""Compiles what a video takes ahead of time and stores it, for processes that are to start in seconds.

    cx.compile_programs("5b", "programs", mesh=mesh)             # where they will run
    model = cx.load("5b", mesh=mesh, programs="programs")        # in another process: nothing is compiled

The folder is described in `cogvx_jax.pipelines.stored_programs`: it holds code, so trust who wrote it.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from cogvx_jax import sharding
from cogvx_jax.cache import nothing_kept
from cogvx_jax.chips import chip_of
from cogvx_jax.convert import read_spec
from cogvx_jax.models.tiling import Tiling
from cogvx_jax.nn.backend import platform_of
from cogvx_jax.pipelines import stored_programs as stored
from cogvx_jax.pipelines.controlnets import open_controlnet
from cogvx_jax.pipelines.inputs import CLIPS
from cogvx_jax.pipelines.memory_modes import AUTO, RESIDENT, MemoryMode, find_mode
from cogvx_jax.pipelines.model import bounded, choose_compute, resolve, stored_or_asked
from cogvx_jax.pipelines.options import Sampling
from cogvx_jax.pipelines.program_cost import beside_weights, compile_fitting, read_cost
from cogvx_jax.pipelines.request import (
    check_controlnets,
    check_sampling,
    check_videos,
    evaluations,
    laid_windows,
)
from cogvx_jax.pipelines.short_schedule import asked_of, check_in_mode, check_mesh, check_stored, wanted_of
from cogvx_jax.pipelines.weights import weight_bytes
from cogvx_jax.planning import lower as programs
from cogvx_jax.planning.plan import plan
from cogvx_jax.sharding.topologies import topology as find
from cogvx_jax.storage import check_new


def compile_programs(
    source: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    sampling: Sampling | None = None,
    mesh: Mesh | str | None = None,
    memory: str | MemoryMode | None = None,
    topology: str | None = None,
    videos: int = 1,
    dtype: str | None = None,
    quantize: str | None = None,
    one_program: bool = False,
    from_video: bool = False,
    strips: int | None = None,
    controlnet: Sequence[Any] = (),
    report: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> None:
    """Writes the programs of such videos to a folder, whole or not at all.

    Args:
      source: as for `load`. Of the weights only the norms of queries and keys are read, which bound attention's
        logits.
      folder: must not exist, or be empty.
      sampling: of the videos, such as `generate`'s `Options`; or, instead, `options`.
      mesh: to compute on, or its text such as "cfg=2,sp=4"; None is one device.
      memory: a mode of `pipelines.memory_modes`, which `load` must be given likewise; "auto" is the first that fits.
      topology: a TPU slice such as "v5e:2x4" to compile for, which need not be here (libtpu must); None is the
        devices that are here.
      videos: made at a time.
      dtype, quantize: as for `load`.
      one_program: compile all steps as one program, which `generate(..., one_program=True)` runs.
      from_video: also what video to video needs; control and inpainting models have it anyway.
      strips: of rows that the VAE works in, as for `generate`; None is the fewest that fit.
      controlnet: ControlNets that steps have, as for `load_controlnet`, together and in this order; steps without them
        are stored, too. Others of the same sizes run the same programs.
      report: gets a line before each compilation.
      height, width, num_frames, guidance_scale, sampler, enhance: as for `generate`.
      reuse, guidance, guider: as for `generate`; of one kind and order any numbers run the same programs.
      num_inference_steps: with `one_program`, how many are taken; else any number runs the same programs.
      windows: as for `generate`. Programs are of the most that one of these steps has, which other numbers of steps may
        not share.
    Raises: FileExistsError; ValueError for a mesh that does not fit, missing libtpu, what the model cannot make, or a
      decode that does not fit.
    """
    asked_for, mode = Sampling.of(sampling, options), find_mode(memory if memory not in (None, AUTO) else RESIDENT)
    check_videos(videos)
    check_new(folder)
    found = None if topology is None else find(topology)
    devices = jax.devices() if found is None else found.devices()
    if isinstance(mesh, str):
        mesh = sharding.parse_mesh(mesh, devices)
    if mesh is None and found is not None:
        mesh = sharding.make_mesh(devices=devices)
    mesh = None if mesh is None else sharding.auto(mesh)
    devices = devices[:1] if mesh is None else list(mesh.devices.flat)
    platform = platform_of(devices[0])

    where = resolve(source)
    spec = read_spec(where)
    how = stored_or_asked(where, spec, quantize)
    if memory == AUTO:
        on = mesh or sharding.make_mesh(devices=devices)
        asked: dict[str, Any] = {"sampling": asked_for, "topology": topology, "videos": videos, "dtype": dtype}
        planned = plan(os.fspath(source), mesh=on, quantize=quantize, controlnet=controlnet, report=report, **asked)
        mode = planned.mode
        report(f"--memory {mode.name}: it {mode.changes}; that costs {mode.costs}")
        if strips is None and planned.chosen is not None:
            strips = planned.chosen.strips
    compute = mode.of(choose_compute(spec, dtype, platform=platform))
    compute = bounded(where, spec, dataclasses.replace(compute, quantize=None if how is None else how.name))
    made_of = check_sampling(spec, asked_for)
    check_stored(made_of)
    check_mesh(made_of.way, mesh)
    check_in_mode(mode, made_of)
    nets = tuple(open_controlnet(one, spec) for one in controlnet)
    check_controlnets(made_of, bool(nets))
    clips = from_video or spec.kind in CLIPS
    wanted = programs.VideoPrograms(
        spec=spec,
        compute=compute,
        mesh=mesh,
        shape=(videos, *made_of.shape),
        padding=made_of.padding,
        guided=made_of.guided,
        sampler=made_of.sampler,
        guider=made_of.guider,
        enhance=made_of.enhance,
        steps=evaluations(spec, made_of) if one_program else None,
        source=(videos, made_of.frames, made_of.height, made_of.width, 3) if clips else None,
        tiling=mode.tiling,
        short=wanted_of(made_of),
        windows=laid_windows(spec, made_of.windows, made_of.shape[0], evaluations(spec, made_of)),
        beside=programs.Beside(nets=tuple(net.cfg for net in nets)),
    )
    request = {
        "size": [made_of.height, made_of.width],
        "frames": made_of.frames,
        "videos": videos,
        "guided": wanted.guided,
        "sampler": made_of.sampler,
        "guider": None if made_of.guider is None else str(made_of.guider),
        "enhance": made_of.enhance,
        "windows": None if made_of.windows is None else str(made_of.windows),
        "ControlNets": [net.name for net in nets],
        "evaluations in one program": wanted.steps,
        "from video": from_video,
        "memory": mode.name,
        "steps": asked_of(made_of),
    }
    in_strips, decoders = wanted, list[stored.StoredProgram]()

    def compiled() -> Iterator[stored.StoredProgram]:
        nonlocal in_strips, decoders
        with contextlib.ExitStack() as stack:
            if found is not None and wanted.mesh is not None:
                stack.enter_context(programs.compiling_for(platform, wanted.mesh))
            in_strips, decoders = _decoders(wanted, mode.strips if strips is None else (strips,), report)
            for name in wanted.names():
                yield from decoders if name == "decode" else _compiled(in_strips, name, report)
                if nets and name in in_strips.step_names():  # parts of the steps, or videos, may have none
                    yield from _compiled(dataclasses.replace(in_strips, beside=programs.NOTHING), name, report)

    def decode() -> dict[str, Any]:
        weights, chip = weight_bytes(spec, compute, wanted.mesh)["vae"], chip_of(devices[0].device_kind)
        needed = round(beside_weights([read_cost(program.compiled, chip=chip) for program in decoders], weights))
        decoded = Tiling.of(spec.vae).largest(made_of.shape) if mode.tiling else made_of.shape
        count = in_strips.compute.strips
        return {"latents": list(decoded), "padding": wanted.padding, "bytes": needed, "strips": count}

    with nothing_kept():
        stored.write_programs(folder, compiled(), stored.conditions(spec, compute, mesh, devices), request, decode)


def _compiled(
    wanted: programs.VideoPrograms, name: str, report: Callable[[str], None]
) -> Iterator[stored.StoredProgram]:
    """The programs of one name. Raises: MemoryError where the compiler finds that one does not fit."""
    count = wanted.compute.of(stored.COMPONENT[name]).strips
    how = f" in {count} strips of rows" if count > 1 else ""
    branches = wanted.beside.branches(wanted.spec, wanted.compute) if name in wanted.step_names() else ()
    how += f" with {len(branches)} ControlNets" if branches else ""
    for lowered in wanted.lower(name):
        report(f"compiling {name}{how}")
        (_, *arguments), named = lowered.args_info
        takes = stored.beside(branches) + stored.takes(arguments, named)
        yield stored.StoredProgram(name=name, takes=takes, compiled=compile_fitting(lowered))


def _decoders(
    wanted: programs.VideoPrograms, counts: Sequence[int], report: Callable[[str], None]
) -> tuple[programs.VideoPrograms, list[stored.StoredProgram]]:
    """The VAE's decoders with the first of these counts of strips whose programs fit, and what has that count.

    Raises: ValueError where none fits.
    """
    why = None
    for count in counts:
        way = dataclasses.replace(wanted, compute=dataclasses.replace(wanted.compute, strips=count))
        try:
            return way, list(_compiled(way, "decode", report))
        except MemoryError as error:
            why = error
    raise ValueError(f"decoding does not fit such a device in {counts[-1]} strips of rows: {why}; use a smaller size")
