"""What each task gives to the sampling loop: a function of (model, request, noise, sampler) -> SamplingInputs.

A new task is a function here and a row of TASKS. The loop of `pipelines.denoise` knows none of them.

F pixel frames, T latents, h w their size, E extra channels.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from cogvx_jax.data.video import to_model_pixels
from cogvx_jax.diffusion import objective, samplers, schedule
from cogvx_jax.diffusion.windows import shuffled
from cogvx_jax.nn.resize import Array, resize_linear
from cogvx_jax.pipelines.conditions import Condition, Known, SamplingInputs
from cogvx_jax.pipelines.controlnets import control_inputs
from cogvx_jax.pipelines.inputs import Still, Task
from cogvx_jax.pipelines.latents import clip_modes, image_condition, video_latents
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.noise import NoiseSource
from cogvx_jax.pipelines.request import Request, latent_frames, shown_steps, window_latents
from cogvx_jax.pipelines.tora import motion_inputs
from cogvx_jax.pipelines.warped_noise import warped_latents
from cogvx_jax.sharding import replicate

BLACK = -1.0  # what a model of masks sees where it must make something
MakeInputs = Callable[[Model, Request, NoiseSource, samplers.Sampler], SamplingInputs]


def sampling_inputs(model: Model, request: Request, noise: NoiseSource, sampler: samplers.Sampler) -> SamplingInputs:
    """What a request's task, and what goes beside it, give to the loop. Raises: NotFiniteError."""
    inputs = TASKS[request.task](model, request, noise, sampler)
    if request.regions is not None:
        latents = request.regions.latents
        inputs = inputs._replace(
            regions=replicate(np.broadcast_to(latents, request.batch_shape[:1] + latents.shape), model.mesh)
        )
    if request.picture_windows is not None:
        per_latent, patch = model.spec.vae.spatial_compression, model.spec.transformer.patch
        inputs = inputs._replace(places=request.picture_windows.lay_out(request.shape[1:3], per_latent, patch))
    if request.motion is not None:
        size = request.height, request.width
        motion = motion_inputs(model, request.motion, request.frames, size, noise, tiling=request.tiling)
        inputs = inputs._replace(motion=motion)
    if request.controls is None:
        return inputs
    part, size = request.control_steps, (request.height, request.width)
    shown = None if part is None else shown_steps(part, len(sampler.timesteps))
    branches, given = control_inputs(model, request.controls, len(request.prompts), size, shown)
    return inputs._replace(control=given, branches=branches)


def from_text(model: Model, request: Request, noise: NoiseSource, sampler: samplers.Sampler) -> SamplingInputs:
    """From noise."""
    return SamplingInputs(_noise(model, request, noise))


def from_images(model: Model, request: Request, noise: NoiseSource, sampler: samplers.Sampler) -> SamplingInputs:
    """From noise, beside latents of pictures that were each encoded alone, at their frames; zeros elsewhere.

    Source: diffusers' CogVideoXImageToVideoPipeline; beyond the first picture, 5B-Interpolation's.
    """
    assert request.stills is not None
    stills, per_latent = request.stills, model.spec.vae.temporal_compression
    pictures = [_pictures(still, request) for still in stills]  # the reference draws theirs first
    pixels = _noised(np.stack(pictures, axis=1), request, noise)
    places = [0 if still.frame == 0 else request.padding - (-still.frame // per_latent) for still in stills]
    condition = image_condition(
        model, pixels, request.batch_shape, noise, request.image_scale, places=places, tiling=request.tiling
    )
    return SamplingInputs(_noise(model, request, noise), Condition(condition))


def from_video(model: Model, request: Request, noise: NoiseSource, sampler: samplers.Sampler) -> SamplingInputs:
    """From a clip with noise on it. Source: Meng et al. 2022, arXiv:2108.01073."""
    return SamplingInputs(_redrawn(model, request, noise, sampler)[0])


def from_masked_video(model: Model, request: Request, noise: NoiseSource, sampler: samplers.Sampler) -> SamplingInputs:
    """`from_video`, with what the mask keeps put back after every step: no model need know of masks."""
    latents, clean, drawn = _redrawn(model, request, noise, sampler)
    return SamplingInputs(latents, known=_unmasked(model, request, clean, drawn, sampler))


def edit(model: Model, request: Request, noise: NoiseSource, sampler: samplers.Sampler) -> SamplingInputs:
    """From noise, looking at a clip that is inverted; what a mask keeps is put back as in `from_masked_video`.

    The noise is drawn, not what inversion ends with. Where less than all is redrawn, the clip is under it.

    Source: `inference/ddim_inversion.py` of CogVideo 7a1af71; strength and mask are not in it.
    """
    latents, clean, drawn = _redrawn(model, request, noise, sampler)
    start = latents if request.strength < 1 else drawn
    known = None if request.mask is None else _unmasked(model, request, clean, drawn, sampler)
    return SamplingInputs(start, known=known, inverted=clean)


def _unmasked(model: Model, request: Request, clean: jax.Array, drawn: jax.Array, sampler: samplers.Sampler) -> Known:
    """What a mask keeps of a clip with these latents, and this noise."""
    assert request.mask is not None
    made = latent_mask(_resized_mask(request.mask, request), _latent_shape(model, request))
    kept = np.concatenate([np.repeat(~made[:1], request.padding, axis=0), ~made])[None, ..., None]
    return Known(replicate(kept.astype(np.float32), model.mesh), clean, drawn, _levels(model, sampler))


def from_prefix(model: Model, request: Request, noise: NoiseSource, sampler: samplers.Sampler) -> SamplingInputs:
    """From noise, with first latents that are those of a clip's end: no model need know of continuation.

    They are encoded as a clip of their own, so that the first is one of a single frame, as in training.
    """
    assert request.prefix is not None
    drawn, shape = _noise(model, request, noise), request.batch_shape
    pixels = to_model_pixels(request.prefix, request.height, request.width)[None]
    count = request.padding + latent_frames(model.spec, len(request.prefix))
    clean = clip_modes(model, pixels, count, tiling=request.tiling)
    clean = jnp.pad(clean, [(0, 0), (0, shape[1] - count), (0, 0), (0, 0), (0, 0)])
    kept = np.zeros((1, shape[1], 1, 1, 1), np.float32)
    kept[:, :count] = 1
    kept = np.broadcast_to(kept, (1, *shape[1:4], 1))
    known = Known(replicate(kept, model.mesh), _for_all(clean, shape), drawn, _levels(model, sampler))
    level = schedule.alphas_bar(model.spec.schedule)[sampler.timesteps[0]]
    noised = objective.add_noise(known.clean, drawn, jnp.full((shape[0],), level, jnp.float32))
    return SamplingInputs(jnp.where(known.kept > 0, noised, drawn), known=known)


def inpaint(model: Model, request: Request, noise: NoiseSource, sampler: samplers.Sampler) -> SamplingInputs:
    """Beside the noise a channel of what is known, and the latents of the clip in which the rest is black.

    Where nothing is known both are zeros, not the encoding of black: a video from text, or a clip redrawn as a whole.
    It starts from noise, or from a clip where less than all is redrawn.

    Source: CogVideoX-Fun's inpainting pipeline, VideoX-Fun 804a425.
    """
    redrawn = request.video is not None and request.strength < 1
    start = _redrawn(model, request, noise, sampler)[0] if redrawn else _noise(model, request, noise)
    clip = _known_clip(request, model.spec.vae.temporal_compression)
    shape, extra = request.batch_shape, model.spec.transformer.condition_channels
    if clip is None:
        return SamplingInputs(start, Condition(replicate(np.zeros((*shape[:-1], extra), np.float32), model.mesh)))
    pixels, made = clip
    latents = clip_modes(model, _noised(pixels, request, noise), shape[1], tiling=request.tiling)
    known = resize_known(~made, _latent_shape(model, request))
    known = np.concatenate([np.repeat(known[:1], request.padding, axis=0), known])[None, ..., None]
    # Its scale is that of latents, so it is 0 or 0.7 for 5B, not 1.
    channel = replicate(known * np.float32(model.spec.vae.scaling_factor), model.mesh)
    channel = jnp.broadcast_to(channel, (*latents.shape[:-1], 1))
    return SamplingInputs(start, Condition(_for_all(jnp.concatenate([channel, latents], axis=-1), shape)))


def control(model: Model, request: Request, noise: NoiseSource, sampler: samplers.Sampler) -> SamplingInputs:
    """From noise, beside the latents of a control video.

    Source: diffusers' CogVideoXFunControlPipeline; strength and part of the steps as ComfyUI-CogVideoXWrapper has them.
    """
    assert request.control is not None
    start = _noise(model, request, noise)
    clip = to_model_pixels(request.control, request.height, request.width)[None]
    latents = clip_modes(model, clip, request.shape[0], tiling=request.tiling) * request.control_strength
    shown = None
    if request.control_steps is not None:
        shown = shown_steps(request.control_steps, len(sampler.timesteps)).astype(np.float32)
    return SamplingInputs(start, Condition(_for_all(latents, request.batch_shape), shown))


def latent_mask(made: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Latents (T, h, w) of which any pixel is to be made: (F, H, W) bool -> bool; the first is of one frame."""
    frames, height, width = shape
    space = np.any(made.reshape(len(made), height, -1, width, made.shape[2] // width), axis=(2, 4))
    rest = np.any(space[1:].reshape(frames - 1, (len(made) - 1) // max(frames - 1, 1), height, width), axis=1)
    return np.concatenate([space[:1], rest])


def resize_known(known: Array, shape: tuple[int, int, int]) -> Array:
    """How far latents (T, h, w) are known by pixels (F, H, W) bool: float32, 0 to 1, of the kind of `known`.

    The first frame is the first latent. Of the others two of each four count, in space 2x2 of each 8x8, so that thin
    regions vanish, and so does a last frame alone.

    Source: VideoX-Fun's `resize_mask`.
    """
    space = {1: shape[1], 2: shape[2]}
    first, rest = known[:1].astype(np.float32), known[1:].astype(np.float32)
    parts = [resize_linear(first, space)]
    if shape[0] > 1:
        parts.append(resize_linear(rest, {0: shape[0] - 1} | space))
    return known.__array_namespace__().concatenate(parts)


def _known_clip(request: Request, per_latent: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Pixels (B or 1, F, H, W, 3), black where something is to be made, and where that is, (F, H, W); None: everywhere.

    `per_latent` is how many frames a latent stands for.
    """
    height, width = request.height, request.width
    if request.stills is not None:
        videos = max(len(still.pictures) for still in request.stills)
        pixels = np.full((videos, request.frames, height, width, 3), BLACK, np.float32)
        made = np.ones((request.frames, height, width), bool)
        for still in request.stills:
            first = still.frame + 1 - (per_latent if still.whole and still.frame else 1)
            frames = slice(first, still.frame + 1)
            pixels[:, frames] = _pictures(still, request, videos)[:, None]
            made[frames] = False
        return pixels, made
    if request.video is None or request.mask is None:
        return None
    made = _resized_mask(request.mask, request)
    if made.all():
        return None
    pixels = to_model_pixels(request.video, height, width)
    return np.where(made[..., None], np.float32(BLACK), pixels)[None], made


def _latent_shape(model: Model, request: Request) -> tuple[int, int, int]:
    """T, h, w of a video without the padding of patches."""
    return (latent_frames(model.spec, request.frames), *request.shape[1:3])


def _pictures(still: Still, request: Request, videos: int | None = None) -> np.ndarray:
    """(B, H, W, 3) in [-1, 1]."""
    pixels = np.stack([to_model_pixels(picture, request.height, request.width) for picture in still.pictures])
    return np.broadcast_to(pixels, (videos or len(request.prompts), *pixels.shape[1:]))


def _noised(pixels: np.ndarray, request: Request, noise: NoiseSource) -> np.ndarray:
    """Pixels with the noise that is asked for; black ones, where there may be nothing, are left alone."""
    if request.image_noise is None:
        return pixels
    drawn = np.asarray(noise.pixels(pixels.shape))
    return np.where(pixels == BLACK, pixels, pixels + np.float32(request.image_noise) * drawn)


def _resized_mask(mask: np.ndarray, request: Request) -> np.ndarray:
    """The pixels that are to be made in the video's size, (F, H, W) bool, with the dilation that is asked for."""
    size = request.width, request.height
    frames = []
    for frame in mask:
        picture = PIL.Image.fromarray(np.where(frame, np.uint8(255), np.uint8(0)))
        frames.append(np.asarray(picture.resize(size, PIL.Image.Resampling.BILINEAR)) > 127)
    made = np.stack(frames)
    return made if request.mask_dilation is None else dilate(made, request.mask_dilation)


def dilate(made: np.ndarray, pixels: int) -> np.ndarray:
    """A mask (F, H, W) grown by so many pixels to each side, corners too."""
    for axis in (1, 2):
        count = np.cumsum(np.pad(made, [(1 if a == axis else 0, 0) for a in range(3)]), axis=axis, dtype=np.int32)
        places = np.arange(made.shape[axis])
        first, last = np.maximum(places - pixels, 0), np.minimum(places + pixels + 1, len(places))
        made = count.take(last, axis) > count.take(first, axis)
    return made


def _noise(model: Model, request: Request, noise: NoiseSource) -> jax.Array:
    """The noise that a video starts from, or that is given to its clip, as it is asked for."""
    if request.latents is not None:
        return replicate(request.latents, model.mesh)
    drawn: Any = noise.latents(request.batch_shape)
    windows = request.windows
    if windows is not None and windows.noise == "free":
        keys = np.asarray(noise.order(request.batch_shape[:2]))
        which = shuffled(keys, *window_latents(model.spec, windows))
        drawn = jnp.take_along_axis(drawn, jnp.asarray(which)[..., None, None, None], axis=1)
    if request.warped is not None:
        drawn = warped_latents(request.warped, noise, np.asarray(drawn), request.padding)
    return replicate(drawn, model.mesh)


def _redrawn(
    model: Model, request: Request, noise: NoiseSource, sampler: samplers.Sampler
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A clip's latents with noise for the first step, without, and the noise."""
    assert request.video is not None
    shape = request.batch_shape
    clip = to_model_pixels(request.video, request.height, request.width)
    clips = np.broadcast_to(clip, (shape[0], *clip.shape))
    clean = video_latents(model, clips, shape[1], noise, tiling=request.tiling)  # the reference draws its noise first
    drawn = _noise(model, request, noise)
    level = schedule.alphas_bar(model.spec.schedule)[sampler.timesteps[0]]
    return objective.add_noise(clean, drawn, jnp.full((shape[0],), level, jnp.float32)), clean, drawn


def _levels(model: Model, sampler: samplers.Sampler) -> np.ndarray:
    """Of `Known`."""
    levels = np.append(schedule.alphas_bar(model.spec.schedule)[sampler.timesteps[1:]], 1.0)
    return levels.astype(np.float32)


def _for_all(channels: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Channels of one video or of B, for B videos."""
    return jnp.broadcast_to(channels, (shape[0], *channels.shape[1:]))


TASKS: Mapping[Task, MakeInputs] = {
    "t2v": from_text,
    "i2v": from_images,
    "v2v": from_video,
    "repaint": from_masked_video,
    "edit": edit,
    "extend": from_prefix,
    "inpaint": inpaint,
    "control": control,
}
