"""A video that goes on with another: segments of the model's length, each of which begins with the end of the last."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import jax
import numpy as np

from cogvx_jax.configs import Kind
from cogvx_jax.data.video import to_uint8
from cogvx_jax.pipelines.inputs import begins_with
from cogvx_jax.pipelines.latents import decode_frames
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.request import Request

SEEDS = 2**32  # of which the random numbers of jax know


def extended(model: Model, request: Request, sample: Callable[[Request], jax.Array]) -> Iterator[np.ndarray]:
    """The frames of the whole video, (F', H, W, 3) uint8 at a time: those of the clip, then the new ones.

    Args:
      model: of `generate.fitting`.
      request: with `extend`.
      sample: gives the latents (1, T, h, w, C) of a segment.
    Raises: NotFiniteError, on the way.
    """
    assert request.extend is not None and request.carried is not None and request.finished is not None
    carried, left = request.carried, request.finished - len(request.extend)
    if len(request.extend) > carried:
        yield request.extend[:-carried]
    end = request.extend[-carried:]
    for number in itertools.count():
        latents = sample(segment(model.spec.kind, request, end, number))
        made = np.concatenate(list(decode_frames(model, latents, request.padding, tiling=request.tiling)))
        new = made[carried : carried + left]
        frames = np.concatenate([joined(model.spec.kind, end, made[:carried]), new])
        left -= len(new)
        if not left:
            yield frames
            return
        yield frames[:-carried]
        end = frames[-carried:]


def segment(kind: Kind, request: Request, end: np.ndarray, number: int) -> Request:
    """The request of a segment that begins with the end (F, H, W, 3) of the one before; each has noise of its own."""
    seed = request.seed if number == 0 else (request.seed + number) % SEEDS
    return dataclasses.replace(request, seed=seed, **begins_with(kind, end))


def joined(kind: Kind, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """What is shown where segments overlap, (F, H, W, 3) uint8.

    An inpainting model may change what it is given, so old frames fade into new ones; others show the old ones.

    Source: the scripts of VideoX-Fun 804a425, whose frame k of n is of both by k / n.
    """
    if kind != "inpaint":
        return old
    share = (np.arange(len(old), dtype=np.float32) / len(old))[:, None, None, None]
    pixels = old * (1 - share) + new * share
    return to_uint8(pixels / 127.5 - 1)
