"""`cx.generate`: `pipelines.generate.generate`, whose frames are finished, too, where that is asked for."""

import dataclasses
import functools
from typing import Any

import numpy as np

from cogvx_jax.data.video import Video
from cogvx_jax.finishing.asked import Finishing
from cogvx_jax.finishing.finish import finish_with
from cogvx_jax.finishing.options import Delivery
from cogvx_jax.pipelines import generate as made
from cogvx_jax.pipelines.model import Model, check_model
from cogvx_jax.pipelines.request import Request

OWN = frozenset(made.generate.__kwdefaults__ or ())  # keywords that are no options of the video


@functools.wraps(made.generate)
def generate(
    model: Model, prompt: str | list[str] | Request, *, output: str = "video", progress: bool = True, **options: Any
) -> Any:
    """`finish` enlarges and interpolates here, one clip after the other.

    Where that fails the error's attribute `video` is the video as it was before.
    """
    asked = prompt.finish if isinstance(prompt, Request) else options.get("finish")
    how: dict[str, Any] = {"output": output, "progress": progress}
    if asked is None:
        return made.generate(model, prompt, **how, **options)
    check_model(model)
    own = {name: options.pop(name) for name in [*options] if name in OWN}
    request = made.request_of(model, prompt, options, progress)
    finish = request.finish
    assert finish is not None
    _check(finish, output)
    video = made.generate(model, dataclasses.replace(request, finish=None), **how, **own)
    try:
        return _finished(video, finish)
    except Exception as error:
        vars(error)["video"] = video
        error.add_note("the attribute `video` of this error is the video as it was before finishing")
        raise


def _check(finish: Finishing, output: str) -> None:
    """Raises: ValueError for what is of a file alone, or where there are no frames."""
    if output != "video":
        raise ValueError(f"finish is of frames, and output is {output!r}; leave out one of them")
    if said := [name for name in vars(Delivery()) if getattr(finish.file, name) != getattr(Delivery, name)]:
        raise ValueError(
            f"{said[0]} of finish is of a file; leave it out, save the video, and give it to `cogvx finish`"
        )


def _finished(video: Video, finish: Finishing) -> Video:
    """Each clip finished by itself, with a step more in its record."""
    records = video.records or (None,) * len(video.frames)
    clips = (Video(frames[None], video.fps, (text,)) for frames, text in zip(video.frames, records, strict=True))
    done = [finish_with(clip, finish.pictures) for clip in clips]
    return Video(np.concatenate([one.frames for one in done]), done[0].fps, tuple(one.records[0] for one in done))
