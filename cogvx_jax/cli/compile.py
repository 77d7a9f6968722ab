"""The verb `cogvx compile`."""

import time
from pathlib import Path
from typing import Annotated

import tyro

from cogvx_jax.cli.options import (
    ControlNetText,
    DType,
    MemoryText,
    MeshText,
    QuantizeOption,
    SamplingFlags,
    check_memory,
    report,
)

# What jax and flax need seconds to import comes inside, after the arguments are known to be sound.


def compile_(
    *,
    out: Path,
    model: str = "tiny",
    video: Annotated[SamplingFlags, tyro.conf.OmitArgPrefixes] = SamplingFlags(),  # noqa: B008
    videos: int = 1,
    dtype: DType | None = None,
    quantize: QuantizeOption = None,
    mesh: MeshText = None,
    memory: MemoryText = None,
    topology: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    one_program: bool = False,
    from_video: bool = False,
    strips: int | None = None,
    controlnet: ControlNetText = (),
) -> None:
    """Compiles what `cogvx generate --programs FOLDER` runs, so that a process starts in seconds.

    The programs fit these devices, this mesh, model, dtype and size, these versions of jax and of this package;
    `generate` refuses them elsewhere. They are code: use folders only of those whom you trust.

    Args:
      out: the folder to write; it must not exist, or be empty.
      model: as for `generate`; of the weights, a few norms are read.
      videos: made at a time.
      dtype: to compute in.
      quantize: as for `generate`.
      mesh: as for `generate`, but for auto; None is one device.
      memory: as for `generate`, which must be given the same; "auto" is the first that fits, and is printed.
      topology: a TPU slice such as v5e:2x4 to compile for, which need not be here: libtpu must be installed
        (pip install libtpu). None is the devices that are here.
      one_program: all --steps as one program, for `generate --one-program`; without, any number of steps runs the
        same programs.
      from_video: also what `generate --video` needs; control and inpainting models have it anyway.
      strips: of rows that the VAE works in, as for `generate`; None is the fewest that fit.
      controlnet: a ControlNet that steps have, as for `generate`; several, in the same order as there.
    """
    from cogvx_jax.pipelines.options import check_strips, parse_weighted

    sampling = video.checked()
    check_memory(memory)
    check_strips("strips", strips)
    nets = [parse_weighted(text, "ControlNet")[0] for text in controlnet]
    if topology is not None:  # programs are compiled, not run: no accelerator that may be here is taken
        import jax

        jax.config.update("jax_platforms", "cpu")
    from cogvx_jax.planning.compile import compile_programs

    began = time.monotonic()
    compile_programs(
        model,
        out,
        mesh=mesh,
        memory=memory,
        topology=topology,
        sampling=sampling,
        videos=videos,
        dtype=dtype,
        quantize=quantize,
        one_program=one_program,
        from_video=from_video,
        strips=strips,
        controlnet=nets,
        report=report,
    )
    files = [path for path in out.iterdir() if path.suffix == ".pickle"]
    total = sum(path.stat().st_size for path in files) / 1e6
    print(f"{out}: {len(files)} programs, {total:.1f} MB in {time.monotonic() - began:.1f} s")
