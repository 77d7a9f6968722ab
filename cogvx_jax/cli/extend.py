"""The verb `cogvx extend`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from cogvx_jax.cli.generate import generate
from cogvx_jax.cli.options import (
    DType,
    GivenFlags,
    LoRAText,
    MemoryText,
    MeshText,
    ModelFlags,
    QuantizeOption,
    VideoFlags,
)


def extend(
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="VIDEO")],
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT")],
    /,
    *,
    out: Path = Path("out.mp4"),
    model: str = "tiny",
    lora: LoRAText = (),
    video: Annotated[VideoFlags, tyro.conf.OmitArgPrefixes] = VideoFlags(),  # noqa: B008
    dtype: DType | None = None,
    quantize: QuantizeOption = None,
    mesh: MeshText = None,
    memory: MemoryText = None,
    one_program: bool = False,
    exact: bool = False,
    progress: bool = True,
    given: ModelFlags = GivenFlags(),  # noqa: B008
) -> None:
    """Makes a video longer: `cogvx generate PROMPT --extend VIDEO`.

    Args:
      source: the video to go on with; the new one begins with its frames.
      prompt: what the new frames show.
      out: as for `generate`, and so are all others.
      model: text to video, image to video or inpainting.
      lora: a LoRA to use, and its weight if not 1.
      dtype: to compute in.
      quantize: keep kernels as integers; lossy.
      mesh: the devices to use and how.
      memory: a memory mode.
      one_program: run all steps of a segment as one compiled program.
      exact: the same bits on one device and on any mesh of data and cfg; slower.
      progress: show a progress bar.
    """
    if video.extend is not None:
        raise ValueError("the video to extend stands before the prompt; leave out --extend")
    generate(
        prompt,
        out=out,
        model=model,
        lora=lora,
        video=dataclasses.replace(video, extend=source),
        dtype=dtype,
        quantize=quantize,
        mesh=mesh,
        memory=memory,
        one_program=one_program,
        exact=exact,
        progress=progress,
        given=given,
    )
