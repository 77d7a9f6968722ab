"""The verb `cogvx edit`."""

import dataclasses
from typing import Annotated

import tyro

from cogvx_jax.cli.generate import generate
from cogvx_jax.cli.options import GenerateFlags, GivenFlags, ModelFlags, RunFlags, VideoFlags


def edit(
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="VIDEO")],
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT")],
    /,
    *,
    run: Annotated[RunFlags, tyro.conf.OmitArgPrefixes] = RunFlags(),  # noqa: B008
    video: Annotated[VideoFlags, tyro.conf.OmitArgPrefixes] = VideoFlags(),  # noqa: B008
    given: ModelFlags = GivenFlags(),  # noqa: B008
) -> None:
    """Makes a video that moves as another and shows something else: `cogvx generate PROMPT --edit VIDEO`.

    Args:
      source: the video whose motion and layout are kept.
      prompt: what the new video shows, all of it, not only what changes.
    """
    if video.edit is not None:
        raise ValueError("the video to edit stands before the prompt; leave out --edit")
    generate(prompt, run=GenerateFlags(**vars(run)), video=dataclasses.replace(video, edit=source), given=given)
