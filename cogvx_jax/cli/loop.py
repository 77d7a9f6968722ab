"""The verb `cogvx loop`."""

import dataclasses
from typing import Annotated

import tyro

from cogvx_jax.cli.generate import generate
from cogvx_jax.cli.options import GenerateFlags, GivenFlags, LoopFlags, ModelFlags, RunFlags
from cogvx_jax.diffusion.windows import Windows


def loop(
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT")],
    /,
    *,
    run: Annotated[RunFlags, tyro.conf.OmitArgPrefixes] = RunFlags(),  # noqa: B008
    video: Annotated[LoopFlags, tyro.conf.OmitArgPrefixes] = LoopFlags(),  # noqa: B008
    given: ModelFlags = GivenFlags(),  # noqa: B008
) -> None:
    """Makes a video whose end leads into its beginning: `cogvx generate PROMPT --windows FRAMES:OVERLAP,policy=looped`.

    Args:
      prompt: what the video shows; what comes back to where it began, such as waves or a wheel.
    """
    options = video.checked()
    asked = options.windows
    if asked is not None and asked.policy not in (Windows.policy, "looped"):
        raise ValueError(f"a loop is made by windows with policy=looped, not {asked.policy}; leave out the policy")
    if asked is None:
        from cogvx_jax.pipelines.model import load_spec

        own = load_spec(run.model, given.checked()).defaults.num_frames
        frames = (options.frames or own) - 1
        asked = loop_windows(min(frames, own - 1))
        if options.noises is not None or options.flow is not None:  # which are as they are
            asked = dataclasses.replace(asked, noise="plain")
    windows = dataclasses.replace(asked, policy="looped")
    generate(prompt, run=GenerateFlags(**vars(run)), video=dataclasses.replace(video, windows=windows), given=given)


def loop_windows(frames: int) -> Windows:
    """Windows of so many frames, of whole latents, half of which overlap: a latent less than the clip makes a ring."""
    return Windows(frames, overlap=frames // 8 * 4, policy="looped")
