"""What a caller asks for, completed with the model's own defaults, its inputs read, and checked before any work."""

import dataclasses
import fractions
import hashlib
from typing import Any, Literal

import numpy as np

from cogvx_jax.configs import Distilled, ModelSpec
from cogvx_jax.data.rates import frame_rate
from cogvx_jax.data.video import read_image, read_video
from cogvx_jax.diffusion import samplers
from cogvx_jax.diffusion.guidance_ways import Way
from cogvx_jax.diffusion.guiders import Guider
from cogvx_jax.diffusion.reuse import Reuse
from cogvx_jax.pipelines.noise import random_seed
from cogvx_jax.pipelines.options import RANDOM, Options, Sampling

Task = Literal["t2v", "i2v", "v2v"]
# Far beyond what attention over all tokens allows: refused before anything grows with them.
MAX_SIZE = 2**14  # pixels
MAX_FRAMES = 2**14
LATER = ("reuse", "way", "calibration", "guider", "enhance")  # fields that older digests do not know


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Checked `Sampling`: everything is set. Sizes are pixels, `frames` is pixel frames."""

    task: Task
    height: int
    width: int
    frames: int
    steps: int
    guidance: float
    sampler: str
    shape: tuple[int, int, int, int]  # of a video's latents (T, h, w, C), with the padding of patches of two frames
    padding: int  # latent frames at the front that are dropped after sampling
    reuse: Reuse | None = None  # of sampling steps
    way: Way | None = None  # of guidance, where not all steps are guided in full
    calibration: Any = None  # a path; None: that of the model's folder
    guider: Guider | None = None  # None: guidance as usual
    enhance: float | None = None  # weight of Enhance-A-Video

    @property
    def guided(self) -> bool:
        return self.guidance > 1


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Request(Settings):
    """Checked `Options` of B videos: everything is set, and what was to be read is held."""

    model: str  # the name of the spec that it was checked for
    prompts: tuple[str, ...]  # B of them
    negative: tuple[str, ...] | None  # None: zeros in place of the empty prompt's states
    dynamic: bool
    strength: float
    seed: int
    strips: int | None  # None: as many as the memory makes necessary
    tiling: bool
    fps: fractions.Fraction
    images: tuple[np.ndarray, ...] | None = None  # (H, W, 3) uint8 each; one, or B of them
    video: np.ndarray | None = None  # (F, H, W, 3) uint8, the frames that are used
    image_scale: float | None = None
    latents: np.ndarray | None = None  # (B, T, h, w, C) float32

    @property
    def batch_shape(self) -> tuple[int, int, int, int, int]:
        """Of the latents of all videos, (B, T, h, w, C)."""
        return (len(self.prompts), *self.shape)

    def check_model(self, spec: ModelSpec) -> None:
        """Raises: ValueError where a model's videos differ from those of the one that this was checked for."""
        asked = Sampling(
            size=(self.height, self.width),
            frames=self.frames,
            steps=self.steps,
            guidance_scale=self.guidance,
            sampler=self.sampler,
            reuse=self.reuse,
            guidance=self.way,
            calibration=self.calibration,
            guider=self.guider,
            enhance=self.enhance,
        )
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(Settings)}
        if (self.task == "i2v") != (spec.kind == "i2v") or vars(check_sampling(spec, asked, self.task)) != own:
            raise ValueError(
                f"the request was checked for {self.model}, whose videos are not like those of {spec.name}"
            )

    def digest(self, *, seed: bool = True) -> str:
        """A hash of all that is asked for, pixels included; equal requests have equal ones. `seed` counts it in."""
        found = hashlib.sha256()
        for field in dataclasses.fields(self):
            value = getattr(self, field.name) if seed or field.name != "seed" else None
            if value is None and field.name in LATER:
                continue
            for part in value if field.name == "images" and value is not None else [value]:
                if isinstance(part, np.ndarray):
                    found.update(repr((field.name, part.shape)).encode())
                    found.update(np.ascontiguousarray(part).data)
                else:
                    found.update(repr((field.name, part)).encode())
        return found.hexdigest()


def check_request(spec: ModelSpec, prompt: str | list[str], options: Options | None = None) -> Request:
    """Completes and checks what is asked of a model, and reads its image or video, once.

    Of several processes, all must call it together where the seed is to be drawn.

    Raises: ValueError, one sentence: what is wrong and what would be right; OSError for an input that is not there.
    """
    asked = Options() if options is None else options
    prompts = tuple(prompt) if isinstance(prompt, list | tuple) else (prompt,)
    if not prompts or not all(isinstance(p, str) for p in prompts):
        raise ValueError("prompt must be a string or a list of at least one string")
    task = _task(spec, asked)
    negative = _negatives(asked.negative_prompt, len(prompts))
    settings = check_sampling(spec, asked, task)
    video, fps = None, None
    if asked.video is not None:
        video, fps = read_video(asked.video, settings.frames)
        settings = check_sampling(spec, asked, task, len(video))
        video = video[: settings.frames]
    if task == "v2v" and int(settings.steps * asked.strength) < 1:
        raise ValueError(f"strength {asked.strength} of {settings.steps} steps leaves none to take; raise either")
    _check_shortcuts(settings, evaluations(spec, settings, asked.strength))
    request = Request(
        **vars(settings),
        model=spec.name,
        prompts=prompts,
        negative=negative,
        dynamic=asked.use_dynamic_cfg,
        strength=asked.strength,
        seed=random_seed() if asked.seed == RANDOM else int(asked.seed),
        strips=asked.strips,
        tiling=asked.tiling,
        fps=frame_rate(asked.fps or fps or spec.defaults.fps),
        images=None if task != "i2v" else _read_images(asked.image, len(prompts)),
        video=video,
        image_scale=asked.image_scale,
        latents=asked.latents,
    )
    if request.latents is not None and request.latents.shape != request.batch_shape:
        raise ValueError(f"latents must be (B, T, h, w, C) = {request.batch_shape}, got {request.latents.shape}")
    return request


def check_sampling(
    spec: ModelSpec, asked: Sampling, task: Task | None = None, available: int | None = None
) -> Settings:
    """Completes and checks what programs depend on.

    Args:
      task: None is the model's own, which for text-to-video models is not from a video.
      available: frames of the input video; of one that has more than are wanted, as many as are.
    Raises: ValueError, one sentence.
    """
    check_kind(spec)
    own = spec.defaults
    task = task or _own_task(spec)
    height, width = asked.size
    frames = own.num_frames if asked.frames is None else asked.frames
    if available is not None:
        frames = _video_frames(spec, available, asked.frames)
    height, width = own.height if height is None else height, own.width if width is None else width
    _check_size(spec, height, width)
    _check_frames(spec, frames, task)
    steps = own.num_inference_steps if asked.steps is None else asked.steps
    if not 1 <= steps <= spec.schedule.steps:
        raise ValueError(f"the number of steps must be 1 to {spec.schedule.steps}, got {steps}")
    sampler = own.sampler if asked.sampler is None else asked.sampler
    if sampler not in samplers.SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}; the known ones are {', '.join(samplers.SAMPLERS)}")
    scale, latent = spec.vae.spatial_compression, padded_latent_frames(spec, frames)
    settings = Settings(
        task=task,
        height=height,
        width=width,
        frames=frames,
        steps=steps,
        guidance=own.guidance_scale if asked.guidance_scale is None else asked.guidance_scale,
        sampler=sampler,
        shape=(latent, height // scale, width // scale, spec.transformer.out_channels),
        padding=latent - latent_frames(spec, frames),
        reuse=asked.reuse,
        way=asked.guidance,
        calibration=asked.calibration,
        guider=asked.guider,
        enhance=asked.enhance,
    )
    _check_guider(spec, settings)
    if task != "v2v":  # of which a part of the steps is taken
        _check_shortcuts(settings, evaluations(spec, settings))
    return settings


def few_steps_note(request: Request, spec: ModelSpec) -> str | None:
    """A sentence where a model of few steps is asked for others than it is for; else None."""
    own = spec.defaults
    if not own.distilled:
        return None
    wanted = Distilled(
        method=own.distilled,
        steps=own.num_inference_steps,
        sampler=own.sampler,
        guidance_scale=own.guidance_scale,
    )
    weight = request.guidance if request.guided else wanted.guidance_scale
    asked = dataclasses.replace(wanted, steps=request.steps, sampler=request.sampler, guidance_scale=weight)
    return None if asked == wanted else f"{spec.name} was distilled for {wanted}, not for {asked}: expect worse videos"


def kept_steps(settings: Settings, strength: float) -> int:
    """Steps that are taken: a video keeps the last part of them."""
    return min(int(settings.steps * strength), settings.steps) if settings.task == "v2v" else settings.steps


def evaluations(spec: ModelSpec, settings: Settings, strength: float = 1.0) -> int:
    """Evaluations of the model that the steps which are taken need; both branches of guidance are one."""
    start = settings.steps - kept_steps(settings, strength)
    return samplers.SAMPLERS[settings.sampler].evaluations(spec.schedule, settings.steps, start)


def row_evaluations(spec: ModelSpec, settings: Settings, strength: float = 1.0) -> int:
    """The same counted a branch, with what a guider evaluates beside both."""
    count = evaluations(spec, settings, strength)
    third = 0 if settings.guider is None else int(settings.guider.active(count).sum())
    return count * (1 + settings.guided) + third


def _check_guider(spec: ModelSpec, settings: Settings) -> None:
    """Raises: ValueError for a guider or an enhancement that the model or the other options cannot have."""
    guider, asked = settings.guider, []
    if guider is not None:
        if not settings.guided:
            raise ValueError(f"guider {guider.kind} needs a guidance scale above 1, got {settings.guidance:g}")
        guider.check_layers(spec.transformer.layers)
        asked += [f"guider {guider.kind}"] if guider.third else []
    asked += [] if settings.enhance is None else ["enhance"]
    other = settings.reuse or settings.way
    if asked and other is not None:
        words = "reuse" if settings.reuse else "guidance"
        raise ValueError(
            f"{asked[0]} changes blocks in every evaluation, and {words} {other} leaves some out; give one"
        )


def _check_shortcuts(settings: Settings, count: int) -> None:
    """Raises: ValueError for reuse or a way of guidance that so many evaluations, or no guidance, cannot have."""
    reuse, way = settings.reuse, settings.way
    if reuse is not None and way is not None:
        raise ValueError(f"give either reuse {reuse} or guidance {way}: what one keeps, the other does not compute")
    if way is not None and not settings.guided:
        raise ValueError(f"guidance {way} needs a guidance scale above 1, got {settings.guidance:g}")
    for one in (reuse, way):
        if one is not None:
            one.check_steps(count)


def check_videos(count: int) -> None:
    """Raises: ValueError for a number of videos made at a time that is none."""
    if count < 1:
        raise ValueError(f"videos must be at least 1, got {count}")


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


def shorter_clips(spec: ModelSpec, frames: int) -> list[int]:
    """Frames of about half and a quarter of a clip, that the model can make."""
    unit = frame_unit(spec)
    some = (1 + frames // 2 // unit * unit, 1 + frames // 4 // unit * unit)
    return [n for n in dict.fromkeys(some) if 1 < n < frames]


UNREAD = {  # kind of a model that loads but does not run -> what is missing
    "control": "a control video, such as its depth or poses",
    "inpaint": "a video or images, and a mask of what to make",
}


def check_kind(spec: ModelSpec) -> None:
    """Raises ValueError for a model whose input cannot be given yet."""
    if spec.kind in UNREAD:
        raise ValueError(
            f"{spec.name} is of the kind {spec.kind}: beside the prompt it needs {UNREAD[spec.kind]}, which cannot be "
            "given yet; use a text-to-video or an I2V model"
        )


def _own_task(spec: ModelSpec) -> Task:
    return "i2v" if spec.kind == "i2v" else "t2v"


def _task(spec: ModelSpec, asked: Options) -> Task:
    check_kind(spec)
    if asked.image is not None and asked.video is not None:
        raise ValueError("give an image or a video, not both")
    if spec.kind == "i2v":
        if asked.video is not None:
            raise ValueError(f"{spec.name} makes videos from an image, not from a video; use a text-to-video model")
        if asked.image is None:
            raise ValueError(f"{spec.name} makes videos from an image; give image=..., or use a text-to-video model")
        return "i2v"
    if asked.image is not None:
        raise ValueError(f"{spec.name} is text-to-video and takes no image; use one of the I2V models")
    return "t2v" if asked.video is None else "v2v"


def _negatives(negative: str | tuple[str, ...] | None, count: int) -> tuple[str, ...] | None:
    if negative is None:
        return None
    negatives = (negative,) * count if isinstance(negative, str) else negative
    if len(negatives) != count:
        raise ValueError(f"{len(negatives)} negative prompts for {count} prompts; give one, or one each")
    return negatives


def _read_images(image: Any, count: int) -> tuple[np.ndarray, ...]:
    """One image for all prompts, or one each."""
    several = image if isinstance(image, list | tuple) else [image]
    if len(several) not in (1, count):
        raise ValueError(f"{len(several)} images for {count} prompts; give one, or one each")
    return tuple(read_image(one) for one in several)


def _check_size(spec: ModelSpec, height: int, width: int) -> None:
    cell = spec.vae.spatial_compression * spec.transformer.patch
    for name, value in (("height", height), ("width", width)):
        if value < cell or value % cell:
            near = sorted({max(value // cell, 1) * cell, -(-max(value, 1) // cell) * cell})
            raise ValueError(f"{name} must be a positive multiple of {cell}, got {value}; nearest: {_words(near)}")
        if value > MAX_SIZE:
            raise ValueError(f"{name} must be at most {MAX_SIZE}, got {value}")
    native = spec.defaults.height, spec.defaults.width
    if spec.transformer.position == "rope+learned" and (height, width) != native:
        raise ValueError(f"{spec.name} has learned positions for {native[0]}x{native[1]} only, got {height}x{width}")


def _check_frames(spec: ModelSpec, frames: int, task: Task) -> None:
    unit = frame_unit(spec)
    # The reference takes videos only where no padding is needed; we take those, too.
    patch = spec.transformer.patch_t or 1
    whole = task == "v2v" and patch > 1 and latent_frames(spec, frames) % patch == 0
    if frames < 1 or (frames % unit != 1 and not whole):
        lower = max((frames - 1) // unit, 0) * unit + 1
        raise ValueError(
            f"the number of frames must be {unit}N+1 for {spec.name}, got {frames}; "
            f"nearest: {_words([lower, lower + unit])}"
        )
    if frames > MAX_FRAMES:
        raise ValueError(f"the number of frames must be at most {MAX_FRAMES}, got {frames}")
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
