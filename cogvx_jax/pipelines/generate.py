"""Text, image and video to video."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm.auto import tqdm

from cogvx_jax.configs import TransformerConfig
from cogvx_jax.data.video import Video, fit, read_image, read_video
from cogvx_jax.diffusion import guidance, objective, samplers, schedule
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.pipelines.exact import check_exact, row_by_row
from cogvx_jax.pipelines.latents import decode_frames, image_condition, video_latents
from cogvx_jax.pipelines.memory import check_decode
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.noise import NoiseSource, SeededNoise
from cogvx_jax.pipelines.request import Request, check_request, latent_frames
from cogvx_jax.pipelines.text import encode_prompts
from cogvx_jax.sharding import activate, everywhere, replicate


def generate(
    model: Model,
    prompt: str | list[str],
    *,
    negative_prompt: str | list[str] | None = "",
    image: Any = None,
    video: Any = None,
    strength: float = 0.8,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    use_dynamic_cfg: bool = False,
    sampler: Literal["ddim", "dpm"] | None = None,
    seed: int = 0,
    latents: Any = None,
    output: Literal["video", "latents"] = "video",
    progress: bool = True,
    image_scale: float | None = None,
    tiling: bool = False,
    noise: NoiseSource | None = None,
    one_program: bool = False,
    exact: bool = False,
) -> Any:
    """Makes one video per prompt. What is omitted is the model's own.

    Args:
      model: of `cogvx_jax.load`.
      negative_prompt: what guidance steers away from; "" is the encoded empty prompt, as in
        diffusers, and None zeros instead of its states, as in the authors' own code.
      image: the first frame, for image-to-video models: a path, PIL image or (H, W, 3) uint8, or a
        list of one per prompt. It is stretched to the video's size.
      video: what to start from, for video-to-video: a path or (F, H, W, 3) uint8.
      strength: how much of `video` is redrawn, above 0 and at most 1.
      height, width: pixels, multiples of 16.
      num_frames: 8N+1, for 1.5 16N+1.
      guidance_scale: weight of the prompt; at most 1 turns guidance off and halves the work.
      use_dynamic_cfg: vary the weight over the steps as the authors' demo does.
      sampler: "ddim", or "dpm" for the stochastic DPM-Solver++ (2M).
      seed: video i of the batch is a function of (seed, i) alone.
      latents: the noise to start from, (B, T, h, w, 16) float32; with `video`, the noise it gets.
      output: "latents" returns the sampled latents, (B, T, h, w, 16) float32, padding included.
      progress: show a bar.
      image_scale: factor of the image's latents; see `latents.image_scale`.
      tiling: run the VAE in tiles where a whole frame does not fit into memory. Lossy: the result
        differs, by design of the reference; see `cogvx_jax.models.tiling`.
      noise: the source of all random numbers, in place of `seed`.
      one_program: run all steps as one compiled program, for hardware that pays for every call, such as
        TPU7x, which tiles the weights anew. There is no bar then, and a run cannot be interrupted between steps.
      exact: the same bits on one device and on every mesh of `data` and `cfg` alone, in any batch: each video and
        each branch of guidance is computed by itself, and every device decodes whole frames. Slower, and every device
        holds all of the text encoder while it runs.
    Returns: `Video`, or the latents as an array.
    Raises: ValueError or OSError for what cannot be done, before any of it is.
    """
    if exact or model.exact:
        check_exact(model.mesh, one_program=one_program)
        model = dataclasses.replace(model, exact=True)
    frames, fps = (None, None) if video is None else read_video(video)
    request = check_request(
        model.spec,
        prompt,
        negative_prompt=negative_prompt,
        image=image,
        video=frames,
        strength=strength,
        height=height,
        width=width,
        num_frames=num_frames,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        use_dynamic_cfg=use_dynamic_cfg,
        sampler=sampler,
        latents=latents,
        output=output,
    )
    images = None if image is None else _images(image, request)
    noise = SeededNoise(seed) if noise is None else noise
    shape = request.latent_shape(model.spec)
    if not tiling:  # out of memory after the last step would waste all of them
        check_decode(model, shape, shape[1] - latent_frames(model.spec, request.frames))
    text, negative = _text(model, request)
    plan = _sampler(model, request)

    condition = start = None
    if images is not None:
        condition = image_condition(model, images, shape, noise, image_scale, tiling=tiling)
    if frames is not None:
        clip = fit(frames[: request.frames], request.height, request.width)
        clips = np.broadcast_to(clip, (shape[0], *clip.shape))
        start = video_latents(model, clips, shape[1], noise, tiling=tiling)
    x = replicate(noise.latents(shape) if latents is None else np.asarray(latents, np.float32), model.mesh)
    if start is not None:
        level = schedule.alphas_bar(model.spec.schedule)[plan.timesteps[0]]
        x = objective.add_noise(start, x, jnp.full((shape[0],), level, jnp.float32))

    weights = guidance.weights(request.guidance, plan.timesteps, _kept(request), request.dynamic)
    loop = denoise_in_one if one_program else functools.partial(denoise, progress=progress)
    x = loop(model, x, text, negative, plan, weights, condition=condition, noise=noise)
    if output == "latents":
        return np.asarray(x)
    padding = shape[1] - latent_frames(model.spec, request.frames)
    streams = [decode_frames(model, x[i : i + 1], padding, tiling=tiling) for i in range(shape[0])]
    return Video(
        frames=np.stack([np.concatenate(list(stream)) for stream in streams]),
        fps=fps or model.spec.defaults.fps,
    )


def denoise(
    model: Model,
    latents: jax.Array,
    text: jax.Array,
    negative: jax.Array | None,
    sampler: samplers.Sampler,
    weights: np.ndarray,
    *,
    condition: jax.Array | None = None,
    noise: NoiseSource,
    progress: bool = True,
) -> jax.Array:
    """The sampling loop: one compiled step, called once per timestep.

    Args:
      latents: (B, T, h, w, 16) float32 to start from.
      text, negative: states (B, L, text_dim); no negative, no guidance.
      weights: (N,) guidance weight of each step.
      condition: (B, T, h, w, 16) image latents, concatenated on the channels.
    Returns: sampled latents, (B, T, h, w, 16) float32.
    """
    step = model.compiled("step", _step(model.spec.transformer, negative is not None, model.mesh, model.exact))
    state, states = _begin(model, latents, text, negative)
    rows, weights = sampler.table.astype(np.float32), weights.astype(np.float32)
    stochastic = bool(np.any(sampler.draws))
    params = model.params["transformer"]
    bar = tqdm(range(len(sampler.timesteps)), disable=not progress, unit="step", desc="sampling")
    for i in bar:
        drawn = replicate(noise.step(i, latents.shape), model.mesh) if stochastic else None
        t = np.int32(sampler.timesteps[i])
        state = step(params, state, states, condition, t, rows[i], weights[i], drawn)
        if progress:
            state.latents.block_until_ready()  # so that the bar tells the truth
    return state.latents


def denoise_in_one(
    model: Model,
    latents: jax.Array,
    text: jax.Array,
    negative: jax.Array | None,
    sampler: samplers.Sampler,
    weights: np.ndarray,
    *,
    condition: jax.Array | None = None,
    noise: NoiseSource,
) -> jax.Array:
    """`denoise` as one program, a `lax.fori_loop` over the steps: the same result, no bar.

    Args:
      noise: a `SeededNoise` draws inside the program; of another source all steps' noise is drawn before it, and
        held on every device.
    """
    loop = model.compiled("loop", _loop(model.spec.transformer, negative is not None, model.mesh))
    state, states = _begin(model, latents, text, negative)
    rows, weights = sampler.table.astype(np.float32), weights.astype(np.float32)
    steps, draw = sampler.timesteps.astype(np.int32), None
    if np.any(sampler.draws):
        several = range(len(steps))
        draw = noise if isinstance(noise, SeededNoise) else RecordedSteps.of(noise, several, latents.shape, model.mesh)
    return loop(model.params["transformer"], state, states, condition, steps, rows, weights, draw).latents


def _begin(model: Model, latents: jax.Array, text: jax.Array, negative: jax.Array | None):
    """What sampling starts from, and the states of all rows: those of the negatives come first."""
    # Its own copy, since the state is donated to the steps.
    state = jax.tree.map(lambda x: replicate(x, model.mesh), samplers.init(jnp.array(latents)))
    return state, text if negative is None else jnp.concatenate([negative, text])


class RecordedSteps(NamedTuple):
    """The noise of every step, (N, B, T, h, w, 16), as a source whose index may be traced."""

    steps: jax.Array

    @classmethod
    def of(cls, noise: NoiseSource, several: range, shape: tuple[int, ...], mesh: Mesh | None) -> "RecordedSteps":
        return cls(replicate(jnp.stack([noise.step(i, shape) for i in several]), mesh))

    def step(self, index: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return self.steps[index]


@functools.lru_cache
def _step(cfg: TransformerConfig, guided: bool, mesh: Mesh | None = None, exact: bool = False):
    one = _update(cfg, guided, mesh, exact)

    def step(params, state, text, condition, t, row, weight, noise):
        return one(params, state, text, condition, t, row, weight, noise)

    return jax.jit(step, donate_argnums=1, out_shardings=everywhere(mesh))


@functools.lru_cache
def _loop(cfg: TransformerConfig, guided: bool, mesh: Mesh | None = None):
    one = _update(cfg, guided, mesh)

    def loop(params, state, text, condition, timesteps, rows, weights, noise):
        def body(i, state):
            drawn = None if noise is None else noise.step(i, state.latents.shape)
            if drawn is not None and mesh is not None:
                drawn = jax.lax.with_sharding_constraint(drawn, everywhere(mesh))
            state = one(params, state, text, condition, timesteps[i], rows[i], weights[i], drawn)
            # Between steps it lies as between the calls of `denoise`.
            return state if mesh is None else jax.lax.with_sharding_constraint(state, everywhere(mesh))

        return jax.lax.fori_loop(0, len(timesteps), body, state)

    return jax.jit(loop, donate_argnums=1, out_shardings=everywhere(mesh))


def _update(cfg: TransformerConfig, guided: bool, mesh: Mesh | None, exact: bool = False):
    """One step of sampling: (params, state, text, condition, t, row, weight, noise) -> state."""

    def predict(params, x, text, t):
        return Transformer(cfg).apply({"params": params}, x, text, t).astype(jnp.float32)

    def predict_on_mesh(params, x, text, t):
        with activate(mesh):
            return predict(params, x, text, t)

    velocity = row_by_row(predict, mesh) if exact else predict_on_mesh

    def one(params, state, text, condition, t, row, weight, noise):
        x = state.latents
        if condition is not None:
            x = jnp.concatenate([x, condition], axis=-1)
        if guided:  # both branches in one batch: [negative, positive]
            x = jnp.concatenate([x, x])
        prediction = velocity(params, x, text, jnp.full((x.shape[0],), t))
        if guided:
            prediction = guidance.guide(*jnp.split(prediction, 2), weight)
        return samplers.update(state, prediction, row, noise)

    return one


def _text(model: Model, request: Request) -> tuple[jax.Array, jax.Array | None]:
    """States of the prompts, and of what to steer away from; None without guidance."""
    if request.guidance <= 1:
        return encode_prompts(model, request.prompts), None
    if request.negative is None:
        text = encode_prompts(model, request.prompts)
        return text, jnp.zeros_like(text)
    both = encode_prompts(model, [*request.negative, *request.prompts])
    negative, text = jnp.split(both, 2)
    return text, negative


def _sampler(model: Model, request: Request) -> samplers.Sampler:
    make = samplers.SAMPLERS[request.sampler]
    return make(model.spec.schedule, request.steps, start=request.steps - _kept(request))


def _kept(request: Request) -> int:
    """Steps that are taken: a video keeps the last part of them."""
    return min(int(request.steps * request.strength), request.steps) if request.task == "v2v" else request.steps


def _images(image: Any, request: Request) -> np.ndarray:
    """(B, H, W, 3) in [-1, 1]: one image for all prompts, or one each."""
    several: Sequence[Any] = image if isinstance(image, (list, tuple)) else [image]
    if len(several) not in (1, len(request.prompts)):
        raise ValueError(f"{len(several)} images for {len(request.prompts)} prompts; give one, or one each")
    pixels = np.stack([fit(read_image(i), request.height, request.width) for i in several])
    return np.broadcast_to(pixels, (len(request.prompts), *pixels.shape[1:]))
