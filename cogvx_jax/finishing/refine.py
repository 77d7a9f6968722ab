"""A video refined by the model that makes videos: what is enlarged is redrawn a little, by the model's own knowledge.

No other weights are needed. The clip gets a little noise and is sampled from there, as in video to video. The model
sees windows of its native size, whose predictions are blended in every step, so no seams are left. A long clip goes
through in segments that fade into each other: memory is that of one.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from cogvx_jax.configs import ModelSpec
from cogvx_jax.data.video import Video, resize_frames
from cogvx_jax.diffusion.places import PictureWindows
from cogvx_jax.finishing.finish import (
    Coming,
    Finished,
    FinishedStream,
    check_delivery,
    comment_of,
    finish_file,
    recorded,
)
from cogvx_jax.finishing.options import Delivery, Finish
from cogvx_jax.finishing.refining import Refining
from cogvx_jax.pipelines.generate import encode_texts, fitting, sample
from cogvx_jax.pipelines.latents import decode_frames
from cogvx_jax.pipelines.memory import check_encode
from cogvx_jax.pipelines.model import Model, load, load_spec
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.provenance import versions
from cogvx_jax.pipelines.record import parse_record
from cogvx_jax.pipelines.request import Request, check_request, frame_unit

ENLARGING = ("upscaler", "tile", "mesh")  # options of `Finish` beside its scale that are about what is enlarged


class Segment(NamedTuple):
    """Frames that are refined together: of them `kept` come out, the first `faded` mixed with the segment before."""

    frames: np.ndarray  # (F, H, W, 3) uint8, as many as the model takes; those after the clip's end repeat its last
    kept: int
    faded: int


def refine(
    model: Model,
    video: Any,
    prompt: str | None = None,
    *,
    scale: int = 2,
    source_fps: float | Fraction | None = None,
    progress: bool = True,
    **options: Any,
) -> Video:
    """A video enlarged, then redrawn a little by a model of videos.

        cx.refine(model, video, scale=2, strength=0.3).save("refined.mp4")

    Args:
      model: a text-to-video model.
      video: as for `finish`.
      prompt: what it shows; None is the prompt of its record.
      scale: how many times larger a network makes each side first; 1 uses none.
      options: those of `Refining` that are not about loading a model, and `upscaler`, `tile` and `mesh` of `Finish`.
    Raises: ValueError; FileNotFoundError.
    """
    larger = Finish(scale=scale, **{name: options.pop(name) for name in ENLARGING if name in options})
    asked = Refining(refine=model.spec.name, **options)
    comment = comment_of(video)
    text = prompt_of(prompt, comment, "the video")
    with contextlib.closing(FinishedStream(video, larger, source_fps)) as stream:
        check_refined(model.spec, (stream.height, stream.width), asked, text)
        frames = np.concatenate(list(refined_frames(model, stream, asked, text, progress=progress)))
        return Video(frames[None], stream.fps, (recorded(comment, refine_step(model, asked, text, larger)),))


def refine_file(
    source: str | os.PathLike,
    out: str | os.PathLike,
    options: Finish,
    delivery: Delivery,
    refining: Refining,
    *,
    progress: bool = True,
    **how: Any,
) -> Finished:
    """`finish_file` with a model of videos between enlarging and the rest; `how` are its arguments.

    Raises: what `finish_file` and `load` raise; ValueError for a video without a prompt.
    """
    assert refining.refine is not None
    if delivery.keep_sound:
        delivery = dataclasses.replace(delivery, keep_sound=False, audio=os.fspath(source))
    check_delivery(source, out, delivery)
    comment = comment_of(source)
    prompt = prompt_of(refining.prompt, comment, str(source))
    larger = Finish(**{name: getattr(options, name) for name in ("scale", *ENLARGING)})
    rest = dataclasses.replace(options, **{name: getattr(Finish, name) for name in ("scale", *ENLARGING)})
    with contextlib.closing(FinishedStream(source, larger, None)) as stream:
        check_refined(load_spec(refining.refine), (stream.height, stream.width), refining, prompt)
        model = load(refining.refine, dtype=refining.dtype, quantize=refining.quantize, memory=refining.memory)
        frames = refined_frames(model, stream, refining, prompt, progress=progress)
        text = recorded(comment, refine_step(model, refining, prompt, larger))
        return finish_file(Coming(frames, stream.fps, stream.count, text), out, rest, delivery, **how)


def prompt_of(given: str | None, comment: str | None, name: str) -> str:
    """What a video shows. Raises: ValueError where neither the user nor its record says it."""
    if given is not None:
        return given
    try:
        return parse_record(comment or "").prompt
    except ValueError:
        raise ValueError(f"{name} carries no record that tells its prompt; give one, what it shows") from None


def check_refined(spec: ModelSpec, size: tuple[int, int], options: Refining, prompt: str) -> None:
    """Checks that a model can redraw pictures of this size, before any work. Raises: ValueError."""
    frames = segment_frames(spec, options)
    request_of(spec, np.broadcast_to(np.zeros(3, np.uint8), (frames, *size, 3)), options, prompt)


def refined_frames(
    model: Model,
    frames: Iterable[np.ndarray],
    options: Refining,
    prompt: str,
    *,
    progress: bool = True,
    on_segment: Callable[[int], None] | None = None,
) -> Iterator[np.ndarray]:
    """Frames (F', H, W, 3) uint8 of the same size and number, as they are done.

    Args:
      frames: of one video, (F', H, W, 3) uint8 at a time.
      prompt: what the video shows.
      on_segment: gets the number of each segment before it is begun.
    Raises: ValueError for a model or a size that cannot be; NotFiniteError.
    """
    size, text, before = segment_frames(model.spec, options), None, None
    for number, one in enumerate(segments(frames, size, options.fade_frames(size), frame_unit(model.spec))):
        if on_segment is not None:
            on_segment(number)
        request = request_of(model.spec, one.frames, options, prompt)
        if text is None:
            text = encode_texts(model, request)
        made = _redrawn(model, request, text, progress)[: one.kept]
        made = resize_frames(made, *one.frames.shape[1:3])
        if before is not None and one.faded:
            made[: one.faded] = faded(before, made[: one.faded])
        # The end waits for the segment after it, which begins with the same frames.
        hold = options.fade_frames(size)
        before = made[len(made) - hold :]
        if one.kept < size or len(made) <= hold:
            before, done = None, made
        else:
            done = made[: len(made) - hold]
        yield done
    if before is not None:
        yield before


def _redrawn(model: Model, request: Request, text: Any, progress: bool) -> np.ndarray:
    """All frames of a request, (F, H, W, 3) uint8."""
    shape = (1, request.frames, request.height, request.width, 3)
    fit = fitting(check_encode(model, shape, request.strips), request)
    latents = sample(fit, request, text=text, progress=progress)
    return np.concatenate(list(decode_frames(fit, latents, request.padding)))


def request_of(spec: ModelSpec, clip: np.ndarray, options: Refining, prompt: str) -> Request:
    """The request that redraws a clip (F, H, W, 3) in windows. Raises: ValueError."""
    if spec.transformer.position == "rope+learned" or spec.kind not in ("t2v", "inpaint"):
        raise ValueError(f"{spec.name} does not redraw videos; refine by a text-to-video model, such as 5b or 2b")
    cell = spec.vae.spatial_compression * spec.transformer.patch
    height, width = (max(round(side / cell), 1) * cell for side in clip.shape[1:3])
    asked = Options(
        size=(height, width),
        frames=len(clip),
        video=clip,
        strength=options.strength,
        steps=options.steps,
        guidance_scale=options.guidance_scale,
        seed=options.seed,
    )
    return dataclasses.replace(
        check_request(spec, prompt, asked), picture_windows=windows_of(spec, height, width, options)
    )


def windows_of(spec: ModelSpec, height: int, width: int, options: Refining) -> PictureWindows:
    """Windows of the model's native size, turned as the picture is."""
    own = sorted((spec.defaults.height, spec.defaults.width))
    window = (own[0], own[1]) if height <= width else (own[1], own[0])
    cell = spec.vae.spatial_compression * spec.transformer.patch
    overlap = [round(options.overlap * side / cell) * cell for side in window]
    return PictureWindows(*window, (overlap[0], overlap[1]))


def segment_frames(spec: ModelSpec, options: Refining) -> int:
    """Frames of a segment, as the model makes. Raises: ValueError for a number that it does not."""
    found = spec.defaults.num_frames if options.frames is None else options.frames
    unit = frame_unit(spec)
    if found < unit + 1 or found % unit != 1:
        raise ValueError(f"segments of {spec.name} have {unit}N+1 frames, got {found}")
    return found


def segments(frames: Iterable[np.ndarray], size: int, shared: int, unit: int) -> Iterator[Segment]:
    """A clip in parts of `size` frames, neighbours sharing `shared` of them; the last is as long as it must be."""
    held: list[np.ndarray] = []
    faded = 0
    for frame in (one for some in frames for one in some):
        if len(held) == size:
            yield Segment(np.stack(held), size, faded)
            held, faded = held[size - shared :], shared
        held.append(frame)
    if not held:
        return
    kept = len(held)
    wanted = -(-(kept - 1) // unit) * unit + 1
    yield Segment(np.stack([*held, *[held[-1]] * (wanted - kept)]), kept, faded)


def faded(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """From one segment's frames to the next one's, (F, H, W, 3) uint8 each."""
    share = (np.arange(len(after), dtype=np.float32) + 1)[:, None, None, None] / (len(after) + 1)
    return np.round((1 - share) * before + share * after).astype(np.uint8)


def refine_step(model: Model, options: Refining, prompt: str, larger: Finish) -> dict[str, Any]:
    """What a record tells of it."""
    origin = model.known_origin
    files = {} if origin is None else dict(origin.fingerprints)
    step = {
        "refined": {"model": model.spec.name, "prompt": prompt, **options.as_json},
        "options": larger.as_json,
        "weights": files,
        "versions": versions(),
    }
    return json.loads(json.dumps(step))
