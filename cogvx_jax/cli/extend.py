"""The verb `cogvx extend`."""

import dataclasses
from typing import Annotated

import tyro

from cogvx_jax.cli.generate import generate
from cogvx_jax.cli.options import ExtendFlags, GenerateFlags, GivenFlags, ModelFlags, RunFlags


def extend(
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="VIDEO")],
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT")],
    /,
    *,
    run: Annotated[RunFlags, tyro.conf.OmitArgPrefixes] = RunFlags(),  # noqa: B008
    video: Annotated[ExtendFlags, tyro.conf.OmitArgPrefixes] = ExtendFlags(),  # noqa: B008
    given: ModelFlags = GivenFlags(),  # noqa: B008
) -> None:
    """Makes a video longer: `cogvx generate PROMPT --extend VIDEO`, for text, image and inpainting models.

    Args:
      source: the video to go on with; what comes out begins with its frames.
      prompt: what the new frames show.
    """
    generate(prompt, run=GenerateFlags(**vars(run)), video=dataclasses.replace(video, extend=source), given=given)
