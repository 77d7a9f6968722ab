"""Which steps of a request are made of what others computed: checked before any work, laid out before the first."""

import functools
import warnings
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from cogvx_jax.configs import ModelSpec
from cogvx_jax.diffusion.guidance_ways import WAYS, Way, guided_steps
from cogvx_jax.diffusion.reuse import METHODS, Facts, Schedule, schedule
from cogvx_jax.diffusion.samplers import SAMPLERS, Sampler
from cogvx_jax.models.transformer import Transformer, time_embeddings
from cogvx_jax.pipelines.calibration import find_calibration
from cogvx_jax.pipelines.memory_modes import MemoryMode
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.request import Request, Settings, evaluations
from cogvx_jax.pipelines.shortcuts import Wanted
from cogvx_jax.sharding import everywhere, format_mesh

# Of four prompts; the costs of METHODS and WAYS are of many steps.
FEW_STEPS_COST = (
    "more so with a LoRA of few steps: every:2 makes tiny-fast's videos 27 dB from those of its 4 steps, 2 steps 31 dB"
)


def wanted_of(settings: Settings) -> Wanted | None:
    """What the programs of its steps depend on; None where all steps are plain."""
    if settings.reuse is not None:
        return Wanted(settings.reuse.kind, settings.reuse.order)
    return None if settings.way is None else Wanted(settings.way.name)


def check_short(model: Model, request: Request) -> None:
    """Raises: as `check_asked`; ValueError, too, where the model's stored programs cannot make such steps."""
    if model.programs is not None and not model.exact:
        check_stored(request)
        wanted = wanted_of(request)
        model.programs.check_mode("" if wanted is None else wanted.mode, asked_of(request))
    check_asked(request, model.spec.name, model.folder, model.mesh, exact=model.exact)
    check_in_mode(model.memory, request)


def check_stored(settings: Settings) -> None:
    """Raises ValueError for what no stored program does."""
    if settings.task == "edit":
        raise ValueError("stored programs look at no clip; leave out the programs, or the video to edit")
    if isinstance(settings, Request):
        if settings.travel is not None:
            raise ValueError("stored programs know one prompt for windows and steps; leave out travel, or the programs")
        if settings.regions is not None:
            raise ValueError("stored programs know one prompt for the picture; leave out region, or the programs")
        if settings.motion is not None:
            raise ValueError("stored programs know no trajectory; leave out the programs, or the trajectory")
    if settings.positions is not None:
        raise ValueError(f"stored programs have the positions of training; leave out positions {settings.positions}")


def check_asked(
    request: Request, model: str, folder: str | Path | None, mesh: Mesh | None, *, exact: bool = False
) -> None:
    """Raises: ValueError or OSError where what is asked of the steps cannot be done.

    Args:
      model: the name of its spec; `folder` is where it lies.
    """
    if exact and request.enhance is not None:
        raise ValueError(
            "exact results are of each branch alone, and enhance is a mean over both; leave one of them out"
        )
    if exact and request.controls is not None:
        raise ValueError("exact results know no ControlNet, whose sums depend on the mesh; leave one of them out")
    if wanted_of(request) is None:
        return
    if exact:
        raise ValueError(f"exact results need every step computed; leave out {asked_of(request)}, or exact")
    check_mesh(request.way, mesh)
    if request.reuse is not None:
        find_calibration(request.reuse, model, folder, request.calibration)


def check_in_mode(mode: MemoryMode, settings: Settings) -> None:
    """Raises ValueError where a method looks into the blocks, and a memory mode runs them in parts."""
    reuse = settings.reuse
    if settings.enhance is not None and mode.compute.get("rows_apart"):
        raise ValueError(
            f"enhance is a mean over both branches of guidance, which memory mode {mode.name} computes one after the "
            "other; use memory mode turns"
        )
    if reuse is not None and reuse.kind != "added" and mode.compute:
        raise ValueError(
            f"reuse {reuse} looks into the blocks, which memory mode {mode.name} runs in parts; use another method, "
            "such as every:2, or memory mode turns"
        )


def asked_of(settings: Settings) -> str:
    """What is asked of its steps, in the words of the options."""
    if settings.reuse is not None:
        return f"reuse {settings.reuse}"
    return f"guidance {settings.way}" if settings.way is not None else "neither reuse nor a way of guidance"


def lossy_note(settings: Settings, spec: ModelSpec) -> str | None:
    """What is asked of the steps and its judged cost, for people; None where nothing is."""
    if settings.reuse is not None:
        cost = METHODS[settings.reuse.method].cost
    elif settings.way is not None:
        cost = WAYS[settings.way.name].cost
    else:
        return None
    return f"{asked_of(settings)} is lossy{f', {FEW_STEPS_COST}' if spec.defaults.distilled else f': {cost}'}"


def check_mesh(way: Way | None, mesh: Mesh | None) -> None:
    """Raises ValueError where steps without the second branch would leave half of a mesh idle."""
    if way is None or mesh is None or mesh.shape.get("cfg", 1) == 1:
        return
    sizes = {axis: size for axis, size in mesh.shape.items() if size > 1}
    branches = sizes.pop("cfg")
    sizes["sp"] = sizes.get("sp", 1) * branches
    raise ValueError(
        f"guidance {way} computes one branch in some steps, in which half of a mesh with cfg={branches} would idle; "
        f"use {format_mesh(sizes)} instead"
    )


def computed_count(settings: Settings, spec: ModelSpec) -> int | None:
    """Of a full run, the steps that are computed; None where that depends on weights or on what is measured."""
    if wanted_of(settings) is None:
        return evaluations(spec, settings)
    timesteps = SAMPLERS[settings.sampler](spec.schedule, settings.steps).timesteps
    if settings.way is not None:
        return int(guided_steps(settings.way, timesteps, spec.schedule.steps).computed.sum())
    reuse = settings.reuse
    if reuse is None or METHODS[reuse.method].measures:
        return None
    return int(schedule(reuse, Facts(timesteps=timesteps, steps=len(timesteps), model=spec.name)).computed.sum())


def every_step(count: int) -> Schedule:
    """All steps computed, each keeping what its blocks added, for whoever looks at that."""
    return Schedule(kind="added", order=0, computed=np.ones(count, bool), control=np.zeros((count, 1), np.float32))


def short_schedule(model: Model, request: Request, sampler: Sampler) -> Schedule | None:
    """The schedule of what is asked for; None where all steps are computed. Warns where nearly none is.

    Raises: as `check_short`.
    """
    made = None
    if request.way is not None:
        made = guided_steps(request.way, sampler.timesteps, model.spec.schedule.steps)
    elif request.reuse is not None:
        facts = Facts(
            timesteps=sampler.timesteps,
            steps=SAMPLERS[request.sampler].evaluations(model.spec.schedule, request.steps, 0),
            model=model.spec.name,
            calibration=find_calibration(request.reuse, model.spec.name, model.folder, request.calibration),
            embeddings=functools.partial(embeddings, model),
        )
        made = schedule(request.reuse, facts)
    if made is None or not made.skips:
        return None
    count, computed = len(made.computed), int(made.computed.sum())
    if request.reuse is not None and computed <= 2:
        warnings.warn(f"{asked_of(request)} computes only {computed} of {count} steps; lower it", stacklevel=4)
    return made


def embeddings(model: Model, timesteps: np.ndarray) -> np.ndarray:
    """Time embeddings of timesteps (N,), (N, time_dim) float32, on the host."""
    params = model.params["transformer"]
    own = {name: params[name] for name in ("time", "ofs") if name in params}
    return np.asarray(_embed(model.transformer, model.mesh)(own, timesteps.astype(np.float32)))


@functools.lru_cache
def _embed(transformer: Transformer, mesh: Mesh | None):
    def embed(params, t):
        return time_embeddings(transformer.cfg, params, t)

    return jax.jit(embed, out_shardings=everywhere(mesh))
