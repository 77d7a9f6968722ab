"""Text, image and video to video."""

import dataclasses
import inspect
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cogvx_jax.data.video import Video
from cogvx_jax.diffusion import guidance, guiders, samplers, travel, windows
from cogvx_jax.diffusion.inversion import inversion
from cogvx_jax.models.kept import Kept
from cogvx_jax.pipelines.conditions import SamplingInputs
from cogvx_jax.pipelines.continuation import extended
from cogvx_jax.pipelines.denoise import denoise, denoise_in_one
from cogvx_jax.pipelines.diffusers_callback import as_on_step
from cogvx_jax.pipelines.duration import warn_of_hours
from cogvx_jax.pipelines.exact import check_exact
from cogvx_jax.pipelines.inversion import invert
from cogvx_jax.pipelines.latents import decode_frames
from cogvx_jax.pipelines.memory import check_decode
from cogvx_jax.pipelines.model import Model, check_model
from cogvx_jax.pipelines.noise import NoiseSource, SeededNoise
from cogvx_jax.pipelines.on_step import OnStep, told
from cogvx_jax.pipelines.options import RANDOM, Options
from cogvx_jax.pipelines.provenance import record_texts
from cogvx_jax.pipelines.request import Request, check_request, few_steps_note, kept_steps, laid_windows
from cogvx_jax.pipelines.saved_steps import SavedSteps, read_steps, run_facts
from cogvx_jax.pipelines.short_schedule import check_short, every_step, lossy_note, short_schedule
from cogvx_jax.pipelines.tasks import sampling_inputs
from cogvx_jax.pipelines.text import encode_prompts
from cogvx_jax.sharding import replicate


class TextStates(NamedTuple):
    """Of a request's texts, (B, L, text_dim); of K that follow (B, K, L, text_dim), of regions (B, K L, text_dim)."""

    prompts: Any
    negative: Any = None  # what to steer away from; None without guidance
    empty: Any = None  # of an edit, the empty prompt by which its clip is inverted


def generate(
    model: Model,
    prompt: str | list[str] | Request,
    *,
    output: Literal["video", "latents"] = "video",
    progress: bool = True,
    noise: NoiseSource | None = None,
    one_program: bool = False,
    exact: bool = False,
    on_step: OnStep | None = None,
    resume: str | os.PathLike | None = None,
    callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
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
    if callback_on_step_end is not None:
        if on_step is not None:
            raise ValueError("give either on_step or callback_on_step_end")
        on_step = as_on_step(callback_on_step_end, callback_on_step_end_tensor_inputs)
    check_steps_seen(on_step, resume, one_program)
    saved = None if resume is None else read_steps(resume)
    request = request_of(model, prompt, options, progress)
    if request.finish is not None:
        raise ValueError("frames are finished by `cogvx_jax.generate`; here, leave out finish")
    if request.extend is not None and output == "latents":
        raise ValueError("a video that is extended comes as frames; its segments have latents of their own")
    if saved is not None:
        check_resumed(model, request, saved)
    warn_of_hours(model.spec, [request], model.mesh)
    records: tuple[str | None, ...] = ()
    if output == "video":
        records = record_texts(model, request, one_program=one_program, own_noise=noise is not None)
    model = fitting(model, request)
    how: dict[str, Any] = dict(noise=noise, progress=progress, one_program=one_program, on_step=on_step)
    if request.extend is not None:
        frames = extended_frames(model, request, **how)
        return Video(frames=np.concatenate(list(frames))[None], fps=request.fps, records=records)
    x = sample(model, request, resume=saved, **how)
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
    on_step: OnStep | None = None,
    resume: SavedSteps | None = None,
) -> jax.Array:
    """Sampled latents of a request, (B, T, h, w, 16) float32, padding included; arguments as for `generate`.

    Args:
      model: that `fitting` gave, where they are to be decoded.
      text: of `encode_texts`, for the same request; None encodes them here.
      watch: called after each step with what it kept, or without reuse what its blocks added; not with `one_program`.
      resume: steps that were taken of this request, see `check_resumed`.
    Raises: ValueError for a request that was checked for other models, before anything is computed; NotFiniteError;
      whatever `on_step` raises.
    """
    request.check_model(model.spec)
    check_short(model, request)
    check_steps_seen(on_step, resume, one_program)
    if watch is not None and (request.controls or request.task == "edit"):
        raise ValueError("what blocks add cannot be watched beside a ControlNet or a video to edit; leave it out")
    model = positioned(model, request)
    noise = SeededNoise(request.seed) if noise is None else noise
    texts = encode_texts(model, request) if text is None else TextStates(*text)
    if text is not None:
        texts = jax.tree.map(lambda x: replicate(x, model.mesh), texts)
    plan = sampler_of(model, request)
    inputs = sampling_inputs(model, request, noise, plan)
    numbers, given = loop_arguments(model, request, plan)
    given["noise"] = noise
    if given["short"] is None and watch is not None:
        given["short"] = every_step(len(plan.timesteps))
    if inputs.inverted is not None:
        inputs = _with_reference(model, request, inputs, texts, plan, noise=noise, progress=progress)
    if one_program:
        return denoise_in_one(model, inputs, texts.prompts, texts.negative, plan, numbers, **given)
    on_step = None if on_step is None else told(on_step, padding=request.padding)
    given |= dict(progress=progress, watch=watch, on_step=on_step, resume=resume, asked=request_facts(request))
    return denoise(model, inputs, texts.prompts, texts.negative, plan, numbers, **given)


def loop_arguments(model: Model, request: Request, plan: samplers.Sampler) -> tuple[Any, dict[str, Any]]:
    """What of a request goes into each step: numbers of guidance, and arguments of `denoise` by name."""
    weights = guidance.weights(request.guidance, plan.timesteps, kept_steps(request, request.strength), request.dynamic)
    layers, branches = model.spec.transformer.layers, 1 + request.guided
    numbers = guiders.lay_out(request.guider, weights, layers=layers, enhance=request.enhance, branches=branches)
    short, laid = short_schedule(model, request, plan), windows_of(model, request, len(plan.timesteps))
    return numbers, {"guider": request.guider, "short": short, "windows": laid}


def _with_reference(
    model: Model, request: Request, inputs: SamplingInputs, texts: TextStates, plan: samplers.Sampler, **how: Any
) -> SamplingInputs:
    """The inputs with the clip at each level of noise of the plan. Raises: NotFiniteError."""
    assert inputs.inverted is not None
    steps = inversion(model.spec.schedule, plan.timesteps)
    how["windows"] = windows_of(model, request, len(steps.timesteps))
    reference = invert(model, inputs.inverted, texts.empty, steps, plan.timesteps, **how)
    return inputs._replace(reference=reference, inverted=None)


def extended_frames(
    model: Model, request: Request, *, text: TextStates | None = None, **how: Any
) -> Iterator[np.ndarray]:
    """The frames of a video that goes on with another, (F', H, W, 3) uint8 at a time; arguments as for `sample`."""
    text, numbers, on_step = text or encode_texts(model, request), itertools.count(1), how.pop("on_step", None)

    def make(one: Request) -> jax.Array:
        number = next(numbers)
        seen = None if on_step is None else told(on_step, segment=number, segments=request.segments)
        return sample(model, one, text=text, on_step=seen, **how)

    return extended(model, request, make)


def check_steps_seen(on_step: OnStep | None, resume: Any, one_program: bool) -> None:
    """Raises ValueError for an `on_step` that is no function, or beside which a program of all steps is asked for."""
    if on_step is not None and not callable(on_step):
        raise ValueError(f"on_step must be a function of a cx.Step, got {type(on_step).__name__}")
    if one_program and (on_step is not None or resume is not None):
        asked = "on_step" if on_step is not None else "resume"
        raise ValueError(f"a program of all steps has nothing between them; leave out one_program, or {asked}")


def check_resumed(model: Model, request: Request, saved: SavedSteps) -> None:
    """Raises ValueError where saved steps are of another request, or computed otherwise; `denoise` asks for weights."""
    if request.extend is not None:
        raise ValueError("a video that is extended is not gone on with in the middle; leave out resume")
    model = positioned(model, request)
    facts = run_facts(model.spec, model.compute, model.mesh, exact=model.exact)
    saved.check(request_facts(request) | facts)


def request_facts(request: Request) -> dict[str, str]:
    """What saved steps say of the request that they are of."""
    size = f"{request.height}x{request.width}x{request.frames}"
    told = {"seed": str(request.seed), "steps": str(request.steps), "sampler": request.sampler, "size": size}
    sampled = dataclasses.replace(request, finish=None)  # which comes after the steps
    return {"request": sampled.digest(), "prompt": request.prompts[0][:200]} | told


def positioned(model: Model, request: Request) -> Model:
    """The model with the positions that are asked for."""
    if request.positions is None:
        return model
    cfg = dataclasses.replace(model.spec.transformer, riflex=True)
    return dataclasses.replace(model, spec=dataclasses.replace(model.spec, transformer=cfg))


def windows_of(model: Model, request: Request, count: int) -> windows.Laid | None:
    """The windows of `count` evaluations; None where the model sees the whole clip at once, and one prompt."""
    first = request.stills is not None and request.task == "i2v" and request.stills[0].frame == 0
    latents = request.shape[0]
    laid = laid_windows(model.spec, request.windows, latents, count, first=first)
    if request.travel is None:
        return laid
    if laid is None:
        laid = windows.lay_out(windows.Windows(1, overlap=0), latents, count, size=latents, overlap=0, first=first)
    geometry = dict(per_latent=model.spec.vae.temporal_compression, padding=request.padding)
    return laid._replace(prompts=travel.lay_out(request.travel, laid, **geometry))


def fitting(model: Model, request: Request) -> Model:
    """The model, its VAE in as many strips as are needed: out of memory after the last step would waste all of them."""
    return check_decode(model, request.batch_shape, request.padding, request.strips, tiling=request.tiling)


def request_of(model: Model, prompt: str | list[str] | Request, options: dict[str, Any], progress: bool) -> Request:
    """The checked request of arguments of `generate`; with `progress`, its notes are printed."""
    if isinstance(prompt, Request):
        if options:
            raise TypeError(f"a request has its options already; got {', '.join(sorted(options))}, too")
        return prompt
    request = check_request(model.spec, prompt, Options.from_keywords(**options))
    if progress and options.get("seed") == RANDOM:
        print(f"seed {request.seed}")
    for note in (lossy_note(request, model.spec), few_steps_note(request, model.spec)):
        if progress and note is not None:
            print(note)
    return request


def encode_texts(model: Model, request: Request) -> TextStates:
    """States of all texts that a request needs. Raises: NotFiniteError."""
    others = next((one.prompts for one in (request.travel, request.regions) if one is not None), ())
    count = len(request.prompts)
    negatives = request.negative if request.guided and request.negative is not None else ()
    states = encode_prompts(model, [*negatives, *request.prompts, *others])
    negative, text, more = jnp.split(states, [len(negatives), len(negatives) + count])
    if others:  # of all prompts that a video has, (B, K, L, text_dim)
        text = jnp.concatenate([text[:, None], jnp.broadcast_to(more[None], (count, *more.shape))], axis=1)
        negative = jnp.broadcast_to(negative[:, None], (len(negative), *text.shape[1:]))
    if request.regions is not None:  # side by side
        text, negative = (x.reshape(len(x), text.shape[1] * text.shape[2], text.shape[3]) for x in (text, negative))
    if request.negative is None:
        negative = jnp.zeros_like(text)
    empty = None
    if request.task == "edit":
        nothing = ("",) * count
        empty = negative if negatives == nothing else encode_prompts(model, nothing)
    return TextStates(text, negative if request.guided else None, empty)


def sampler_of(model: Model, request: Request) -> samplers.Sampler:
    """The steps that are taken."""
    make = samplers.SAMPLERS[request.sampler]
    return make(model.spec.schedule, request.steps, start=request.steps - kept_steps(request, request.strength))
