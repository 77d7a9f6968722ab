"""Text, image and video to video."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from cogvx_jax.data.video import Video
from cogvx_jax.diffusion import guidance, guiders, samplers, windows
from cogvx_jax.models.kept import Kept
from cogvx_jax.pipelines.continuation import extended
from cogvx_jax.pipelines.controlnets import check_programs
from cogvx_jax.pipelines.denoise import denoise, denoise_in_one
from cogvx_jax.pipelines.duration import warn_of_hours
from cogvx_jax.pipelines.exact import check_exact
from cogvx_jax.pipelines.latents import decode_frames
from cogvx_jax.pipelines.memory import check_decode
from cogvx_jax.pipelines.model import Model, check_model
from cogvx_jax.pipelines.noise import NoiseSource, SeededNoise
from cogvx_jax.pipelines.options import RANDOM, Options
from cogvx_jax.pipelines.provenance import record_texts
from cogvx_jax.pipelines.request import Request, check_request, few_steps_note, kept_steps, window_latents
from cogvx_jax.pipelines.short_schedule import check_short, every_step, lossy_note, short_schedule
from cogvx_jax.pipelines.tasks import sampling_inputs
from cogvx_jax.pipelines.text import encode_prompts
from cogvx_jax.sharding import replicate

TextStates = tuple[Any, Any]  # (B, L, text_dim), as `encode_texts` gives them


def generate(
    model: Model,
    prompt: str | list[str] | Request,
    *,
    output: Literal["video", "latents"] = "video",
    progress: bool = True,
    noise: NoiseSource | None = None,
    one_program: bool = False,
    exact: bool = False,
    **options: Any,
) -> Any:
    """Makes one video per prompt. What is omitted is the model's own.

    Args:
      model: of `cogvx_jax.load`.
      prompt: what each video shows; or a request that `check_request` gave, which has its options already.
      output: "latents" returns the sampled latents, (B, T, h, w, 16) float32, padding included.
      progress: show a bar.
      noise: the source of all random numbers, in place of `seed`.
      one_program: run all steps as one compiled program, for hardware that pays for every call, such as
        TPU7x, which tiles the weights anew. There is no bar then, and a run cannot be interrupted between steps.
      exact: the same bits on one device and on every mesh of `data` and `cfg` alone, in any batch: each video and
        each branch of guidance is computed by itself, and every device decodes whole frames. Slower, and every device
        holds all of the text encoder while it runs.
      height, width, num_frames, num_inference_steps, ...: the options, as `pipelines.options.Options` says, which has
        size, frames and steps for the first four. Video i of the batch is a function of (seed, i) alone,
        but for first-block reuse, about which a batch decides together.
    Returns: `Video`, or the latents as an array.
    Raises: ValueError or OSError for what cannot be done, before any of it is; NotFiniteError, a ValueError, where
      weights or numbers on the way are not finite; TypeError for an unknown option.
    """
    check_model(model)
    if output not in ("video", "latents"):
        raise ValueError(f"output must be 'video' or 'latents', got {output!r}")
    if exact or model.exact:
        check_exact(model.mesh, one_program=one_program)
        model = dataclasses.replace(model, exact=True)
    request = _request(model, prompt, options, progress)
    if request.extend is not None and output == "latents":
        raise ValueError("a video that is extended comes as frames; its segments have latents of their own")
    warn_of_hours(model.spec, [request], model.mesh)
    records: tuple[str | None, ...] = ()
    if output == "video":
        records = record_texts(model, request, one_program=one_program, own_noise=noise is not None)
    model = fitting(model, request)
    if request.extend is not None:
        frames = extended_frames(model, request, noise=noise, progress=progress, one_program=one_program)
        return Video(frames=np.concatenate(list(frames))[None], fps=request.fps, records=records)
    x = sample(model, request, noise=noise, progress=progress, one_program=one_program)
    if output == "latents":
        return np.asarray(x)
    each = [decode_frames(model, x[i : i + 1], request.padding, tiling=request.tiling) for i in range(len(x))]
    return Video(frames=np.stack([np.concatenate(list(stream)) for stream in each]), fps=request.fps, records=records)


def _shown_options() -> inspect.Signature:
    """The signature with each option by name, for `help` and completion."""
    kind = inspect.Parameter.KEYWORD_ONLY
    shown = [p for p in inspect.signature(generate).parameters.values() if p.kind != inspect.Parameter.VAR_KEYWORD]
    options = [inspect.Parameter(name, kind, default=value) for name, value in Options.keywords().items()]
    return inspect.Signature([*shown, *options])


vars(generate)["__signature__"] = _shown_options()


def sample(
    model: Model,
    request: Request,
    *,
    noise: NoiseSource | None = None,
    progress: bool = True,
    one_program: bool = False,
    text: TextStates | None = None,
    watch: Callable[[Kept], None] | None = None,
) -> jax.Array:
    """Sampled latents of a request, (B, T, h, w, 16) float32, padding included; arguments as for `generate`.

    Args:
      model: that `fitting` gave, where they are to be decoded.
      text: of `encode_texts`, for the same request; None encodes them here.
      watch: called after each step with what it kept, or without reuse what its blocks added; not with `one_program`.
    Raises: ValueError for a request that was checked for other models, before anything is computed; NotFiniteError.
    """
    request.check_model(model.spec)
    check_short(model, request)
    check_programs(model.programs, request.controls)
    if watch is not None and request.controls:
        raise ValueError("what blocks add cannot be watched beside a ControlNet; leave out the ControlNet")
    model = positioned(model, request)
    noise = SeededNoise(request.seed) if noise is None else noise
    words, negative = text or encode_texts(model, request)
    if text is not None:
        words, negative = jax.tree.map(lambda x: replicate(x, model.mesh), (words, negative))
    plan = sampler_of(model, request)
    inputs = sampling_inputs(model, request, noise, plan)
    weights = guidance.weights(request.guidance, plan.timesteps, kept_steps(request, request.strength), request.dynamic)
    layers, branches = model.spec.transformer.layers, 1 + request.guided
    numbers = guiders.lay_out(request.guider, weights, layers=layers, enhance=request.enhance, branches=branches)
    short = short_schedule(model, request, plan)
    if short is None and watch is not None:
        short = every_step(len(plan.timesteps))
    loop = denoise_in_one if one_program else functools.partial(denoise, progress=progress, watch=watch)
    given: dict[str, Any] = dict(guider=request.guider, noise=noise, short=short)
    given["windows"] = windows_of(model, request, len(plan.timesteps))
    return loop(model, inputs, words, negative, plan, numbers, **given)


def extended_frames(
    model: Model, request: Request, *, text: TextStates | None = None, **how: Any
) -> Iterator[np.ndarray]:
    """The frames of a video that goes on with another, (F', H, W, 3) uint8 at a time; arguments as for `sample`."""
    text = text or encode_texts(model, request)
    return extended(model, request, lambda one: sample(model, one, text=text, **how))


def positioned(model: Model, request: Request) -> Model:
    """The model with the positions that are asked for."""
    if request.positions is None:
        return model
    cfg = dataclasses.replace(model.spec.transformer, riflex=True)
    return dataclasses.replace(model, spec=dataclasses.replace(model.spec, transformer=cfg))


def windows_of(model: Model, request: Request, count: int) -> windows.Laid | None:
    """The windows of `count` evaluations; None where the model sees the whole clip at once."""
    if request.windows is None:
        return None
    size, overlap = window_latents(model.spec, request.windows)
    first = request.stills is not None and request.task == "i2v" and request.stills[0].frame == 0
    return windows.lay_out(request.windows, request.shape[0], count, size=size, overlap=overlap, first=first)


def fitting(model: Model, request: Request) -> Model:
    """The model, its VAE in as many strips as are needed: out of memory after the last step would waste all of them."""
    if request.tiling or model.memory.tiling:
        return model
    return check_decode(model, request.batch_shape, request.padding, request.strips)


def _request(model: Model, prompt: str | list[str] | Request, options: dict[str, Any], progress: bool) -> Request:
    if isinstance(prompt, Request):
        if options:
            raise TypeError(f"a request has its options already; got {', '.join(sorted(options))}, too")
        return prompt
    request = check_request(model.spec, prompt, Options.from_keywords(**options))
    if progress and options.get("seed") == RANDOM:
        print(f"seed {request.seed}")
    for note in (lossy_note(request), few_steps_note(request, model.spec)):
        if progress and note is not None:
            print(note)
    return request


def encode_texts(model: Model, request: Request) -> TextStates:
    """States of the prompts, and of what to steer away from; None without guidance. Raises: NotFiniteError."""
    if not request.guided:
        return encode_prompts(model, request.prompts), None
    if request.negative is None:
        text = encode_prompts(model, request.prompts)
        return text, jnp.zeros_like(text)
    both = encode_prompts(model, [*request.negative, *request.prompts])
    negative, text = jnp.split(both, 2)
    return text, negative


def sampler_of(model: Model, request: Request) -> samplers.Sampler:
    """The steps that are taken."""
    make = samplers.SAMPLERS[request.sampler]
    return make(model.spec.schedule, request.steps, start=request.steps - kept_steps(request, request.strength))
