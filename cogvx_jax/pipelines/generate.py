"""Text, image and video to video."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from cogvx_jax.data.video import Video, read_image, read_video, to_model_pixels
from cogvx_jax.diffusion import guidance, objective, samplers, schedule
from cogvx_jax.pipelines.denoise import denoise, denoise_in_one
from cogvx_jax.pipelines.exact import check_exact
from cogvx_jax.pipelines.latents import decode_frames, image_condition, video_latents
from cogvx_jax.pipelines.memory import check_decode
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.noise import NoiseSource, SeededNoise
from cogvx_jax.pipelines.request import Request, check_request, latent_frames
from cogvx_jax.pipelines.text import encode_prompts
from cogvx_jax.sharding import replicate


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
    sampler: str | None = None,
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
        clip = to_model_pixels(frames[: request.frames], request.height, request.width)
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
        fps=round(fps) if fps else model.spec.defaults.fps,
    )


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
    pixels = np.stack([to_model_pixels(read_image(i), request.height, request.width) for i in several])
    return np.broadcast_to(pixels, (len(request.prompts), *pixels.shape[1:]))
