"""`cogvx plan` of CogVideo (2022), and what it prints."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cogvx_jax.cli.options import report
from cogvx_jax.pipelines.options import Sampling
from cogvx_jax.presets import PUBLISHED_2022
from cogvx_jax.quantization import find_quantization

if TYPE_CHECKING:
    from cogvx_jax.planning.cogvideo2022 import Plan, Trial

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.


def plan(
    model: str,
    *,
    topology: str | None,
    video: Sampling,
    dtype: str | None,
    quantize: str | None,
    device_gb: float | None,
    every: bool,
    as_json: bool,
    unused: Mapping[str, object],
) -> None:
    """Prints what fits.

    Args:
      model: a folder, or the name of the published model, of which nothing is read.
      unused: by name, what the verb was told beside that; nothing of it may be.
    """
    told = [name for name, value in unused.items() if value]
    told += [name for name, value in vars(video).items() if name not in ("guidance_scale", "frames", "size") and value]
    if told:
        raise ValueError(f"{told[0]} means nothing for {model}, which is CogVideo (2022); leave it out")
    from cogvx_jax.planning.cogvideo2022 import Sizes
    from cogvx_jax.planning.cogvideo2022 import plan as make

    guided = video.guidance_scale is None or video.guidance_scale > 1
    how = None if quantize is None else find_quantization(quantize)
    sizes = Sizes(dtype=dtype or "bfloat16", how=how, guided=guided)
    if model != PUBLISHED_2022:
        from cogvx_jax.convert.cogvideo2022_folder import open_parts
        from cogvx_jax.convert.cogvideo2022_quantized import check_quantization

        parts = open_parts(model)
        check_quantization(parts, how)
        sizes = dataclasses.replace(sizes, stages=parts.stages, images=parts.image_sizes, how=how or parts.how)
    made = make(model, sizes, topology=topology, device_gb=device_gb, every=every, report=report)
    print(made.json() if as_json else table(made), flush=True)


def table(made: "Plan") -> str:
    """A plan for people: a line a mesh, then what is chosen."""
    limit = "unknown memory" if made.limit is None else f"{made.limit:.1f} GiB"
    kinds = ", ".join(filter(None, (made.dtype, made.quantize)))
    lines = [
        f"{made.model} on {made.topology} ({made.devices} devices of {limit}): {kinds}",
        "",
        f"{'mesh':28}{'fits':6}{'weights':>8}{'cache':>8}{'GiB':>7}{'read a code':>13}",
    ]
    lines += [_row(made, trial) for trial in made.trials]
    lines += [f"  {_mesh(trial)}: {trial.why}" for trial in made.trials if trial.why]
    if (chosen := made.chosen) is None:
        return "\n".join([*lines, "", "Nothing fits: take more devices, or --quantize int8."])
    fits = "" if made.limit is None else ", and it fits"
    words = ", ".join(f"{name} {size:.2f}" for name, size in chosen.beside.items())
    return "\n".join(
        [
            *lines,
            "",
            f"Chosen: --mesh {_mesh(chosen)}: a device reads the least for a code{fits}.",
            f"Beside the weights, GiB: {words}.",
            *_moved(chosen),
            "No time is estimated: a code takes as long as what it reads.",
        ]
    )


def _moved(trial: "Trial") -> list[str]:
    """What a code moves beside what it has to read; nothing where no compiler tells."""
    return [
        f"A code of the {stage} stage moves {size:.3f} GiB, {size / trial.reads[stage]:.2f} of weights and cache."
        for stage, size in trial.moved.items()
    ]


def _row(made: "Plan", trial: "Trial") -> str:
    fits = "-" if made.limit is None else "yes" if trial.fits else "no"
    read = max(trial.reads.values())
    return f"{_mesh(trial):28}{fits:6}{trial.weights:8.2f}{trial.cache:8.2f}{trial.memory:7.1f}{read:9.2f} GiB"


def _mesh(trial: "Trial") -> str:
    from cogvx_jax.sharding import format_mesh

    return format_mesh(trial.mesh)
