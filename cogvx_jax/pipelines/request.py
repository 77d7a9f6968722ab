"""What a caller asks for, completed with the model's own defaults and checked before any work."""

import dataclasses
from typing import Any, Literal

import numpy as np

from cogvx_jax.configs import ModelSpec
from cogvx_jax.diffusion import samplers

Task = Literal["t2v", "i2v", "v2v"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One checked generation: everything is set. Sizes are pixels, `frames` is pixel frames."""

    task: Task
    prompts: tuple[str, ...]
    negative: tuple[str, ...] | None  # None: zeros in place of the empty prompt's states
    height: int
    width: int
    frames: int
    steps: int
    guidance: float
    dynamic: bool
    sampler: str
    strength: float

    def latent_shape(self, spec: ModelSpec) -> tuple[int, int, int, int, int]:
        """(B, T, h, w, C), with the padding that patches of two frames need."""
        scale = spec.vae.spatial_compression
        return (
            len(self.prompts),
            padded_latent_frames(spec, self.frames),
            self.height // scale,
            self.width // scale,
            spec.transformer.out_channels,
        )


def check_request(
    spec: ModelSpec,
    prompt: str | list[str],
    *,
    negative_prompt: str | list[str] | None = "",
    image: Any = None,
    video: np.ndarray | None = None,
    strength: float = 0.8,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    use_dynamic_cfg: bool = False,
    sampler: str | None = None,
    latents: Any = None,
    output: str = "video",
) -> Request:
    """Completes and checks the arguments of `generate`, which documents them.

    Raises: ValueError, one sentence: what is wrong and what would be right.
    """
    own = spec.defaults
    prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
    if not prompts or not all(isinstance(p, str) for p in prompts):
        raise ValueError("prompt must be a string or a list of at least one string")
    if output not in ("video", "latents"):
        raise ValueError(f"output must be 'video' or 'latents', got {output!r}")
    task = _task(spec, image, video)
    frames = own.num_frames if num_frames is None else num_frames
    if video is not None:
        frames = _video_frames(spec, len(video), num_frames)
    sampler = own.sampler if sampler is None else sampler
    if sampler not in samplers.SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}; the known ones are {', '.join(samplers.SAMPLERS)}")
    request = Request(
        task=task,
        prompts=prompts,
        negative=_negatives(negative_prompt, len(prompts)),
        height=own.height if height is None else height,
        width=own.width if width is None else width,
        frames=frames,
        steps=own.num_inference_steps if num_inference_steps is None else num_inference_steps,
        guidance=own.guidance_scale if guidance_scale is None else guidance_scale,
        dynamic=use_dynamic_cfg,
        sampler=sampler,
        strength=strength,
    )
    _check_size(spec, request)
    _check_frames(spec, request)
    if not 1 <= request.steps <= spec.schedule.steps:
        raise ValueError(f"num_inference_steps must be 1 to {spec.schedule.steps}, got {request.steps}")
    if not np.isfinite(request.guidance):
        raise ValueError(f"guidance_scale must be a finite number, got {request.guidance}")
    if task == "v2v" and not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength}")
    if task == "v2v" and int(request.steps * strength) < 1:
        raise ValueError(f"strength {strength} of {request.steps} steps leaves none to take; raise either")
    if latents is not None and tuple(np.shape(latents)) != request.latent_shape(spec):
        raise ValueError(f"latents must be (B, T, h, w, C) = {request.latent_shape(spec)}, got {np.shape(latents)}")
    return request


def latent_frames(spec: ModelSpec, frames: int) -> int:
    """Latent frames that `frames` pixel frames make, before any padding."""
    return (frames - 1) // spec.vae.temporal_compression + 1


def padded_latent_frames(spec: ModelSpec, frames: int) -> int:
    """The same rounded up to whole patches; the padding goes to the front and is dropped after sampling."""
    patch = spec.transformer.patch_t or 1
    return -(-latent_frames(spec, frames) // patch) * patch


def frame_unit(spec: ModelSpec) -> int:
    """Legal frame counts are this times N, plus 1."""
    return 8 * (spec.transformer.patch_t or 1)


def _task(spec: ModelSpec, image: Any, video: Any) -> Task:
    if image is not None and video is not None:
        raise ValueError("give an image or a video, not both")
    if spec.kind == "i2v":
        if image is None:
            raise ValueError(f"{spec.name} makes videos from an image; give image=..., or use a text-to-video model")
        return "i2v"
    if image is not None:
        raise ValueError(f"{spec.name} is text-to-video and takes no image; use one of the I2V models")
    return "t2v" if video is None else "v2v"


def _negatives(negative: str | list[str] | None, count: int) -> tuple[str, ...] | None:
    if negative is None:
        return None
    negatives = (negative,) * count if isinstance(negative, str) else tuple(negative)
    if len(negatives) != count:
        raise ValueError(f"{len(negatives)} negative prompts for {count} prompts; give one, or one each")
    return negatives


def _check_size(spec: ModelSpec, request: Request) -> None:
    cell = spec.vae.spatial_compression * spec.transformer.patch
    for name, value in (("height", request.height), ("width", request.width)):
        if value < cell or value % cell:
            near = sorted({max(value // cell, 1) * cell, -(-max(value, 1) // cell) * cell})
            raise ValueError(f"{name} must be a positive multiple of {cell}, got {value}; nearest: {_words(near)}")
    if spec.transformer.position == "rope+learned":
        native = spec.defaults
        if (request.height, request.width) != (native.height, native.width):
            raise ValueError(
                f"{spec.name} has learned positions for {native.height}x{native.width} only, "
                f"got {request.height}x{request.width}"
            )


def _check_frames(spec: ModelSpec, request: Request) -> None:
    unit, frames = frame_unit(spec), request.frames
    # The reference takes videos only where no padding is needed; we take those, too.
    patch = spec.transformer.patch_t or 1
    whole = request.task == "v2v" and patch > 1 and latent_frames(spec, frames) % patch == 0
    if frames < 1 or (frames % unit != 1 and not whole):
        lower = max((frames - 1) // unit, 0) * unit + 1
        raise ValueError(
            f"num_frames must be {unit}N+1 for {spec.name}, got {frames}; nearest: {_words([lower, lower + unit])}"
        )
    if spec.transformer.position == "rope+learned" and frames != spec.transformer.sample_frames:
        raise ValueError(
            f"{spec.name} has learned positions for {spec.transformer.sample_frames} frames only, got {frames}"
        )


def _video_frames(spec: ModelSpec, count: int, wanted: int | None) -> int:
    """How many frames of an input video are used: those asked for, or as many as are legal."""
    if wanted is None:
        unit = frame_unit(spec)
        return min((count - 1) // unit * unit + 1, spec.defaults.num_frames)
    if wanted > count:
        raise ValueError(f"num_frames is {wanted} but the video has only {count} frames")
    return wanted


def _words(values: list[int]) -> str:
    return " or ".join(str(v) for v in values)
