"""What a caller asks for, completed with the model's own defaults, its inputs read, and checked before any work."""

import dataclasses
import fractions
import hashlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from cogvx_jax.configs import Distilled, ModelSpec
from cogvx_jax.data.rates import frame_rate
from cogvx_jax.data.video import read_video, resize_frames
from cogvx_jax.diffusion import samplers
from cogvx_jax.diffusion.guidance_ways import Way
from cogvx_jax.diffusion.guiders import Guider
from cogvx_jax.diffusion.places import PictureWindows
from cogvx_jax.diffusion.reuse import Reuse
from cogvx_jax.diffusion.travel import Travel
from cogvx_jax.diffusion.windows import Laid, Windows, lay_out
from cogvx_jax.finishing.asked import Finishing
from cogvx_jax.nn.embeddings import intrinsic_frequency
from cogvx_jax.pipelines.controlnets import ControlUse
from cogvx_jax.pipelines.input_sources import InputSource, input_sources
from cogvx_jax.pipelines.inputs import (
    KINDS,
    NAMES,
    REDRAWS,
    Still,
    Task,
    begins_with,
    carried_frames,
    fill_clip,
    find_strength,
    find_task,
    open_controlnets,
    own_task,
    read_controls,
    read_mask,
    read_stills,
)
from cogvx_jax.pipelines.noise import random_seed
from cogvx_jax.pipelines.options import RANDOM, Options, Sampling, check_text
from cogvx_jax.pipelines.regions import Regions, read_regions
from cogvx_jax.pipelines.tora import MotionUse, read_motion
from cogvx_jax.pipelines.warped_noise import Warped, read_warped

# Far beyond what attention over all tokens allows: refused before anything grows with them.
MAX_SIZE = 2**14  # pixels
MAX_FRAMES = 2**14
GUIDED_ALONE = ("negative_prompt", "use_dynamic_cfg")  # options that do nothing without guidance
# Fields that older digests do not know.
LATER = (
    *("reuse", "way", "calibration", "guider", "enhance", "controls"),
    *("windows", "positions", "prefix", "extend", "carried", "finished"),
    *("warped", "travel", "regions", "motion", "finish", "picture_windows"),
)


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
    windows: Windows | None = None  # that the model sees one after the other; None: the whole clip
    positions: str | None = None  # of `options.POSITIONS`; None: as trained

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
    strength: float  # of the steps, the part that is taken: below 1 only where a video is started from
    seed: int
    strips: int | None  # None: as many as the memory makes necessary
    tiling: bool
    fps: fractions.Fraction
    stills: tuple[Still, ...] | None = None  # pictures at frames, the first one first
    image_noise: float | None = None  # deviation; None: none
    image_scale: float | None = None
    video: np.ndarray | None = None  # (F, H, W, 3) uint8, the frames that are used
    mask: np.ndarray | None = None  # (F, H, W) bool, the pixels of the video that are made; None: all
    mask_dilation: int | None = None  # pixels; None: none
    control: np.ndarray | None = None  # (F, H, W, 3) uint8
    control_strength: float = 1.0
    controls: tuple[ControlUse, ...] | None = None  # of ControlNets; `control` is that of a control model
    control_steps: tuple[float, float] | None = None  # first and last part of the steps that see it; None: all
    prefix: np.ndarray | None = None  # (F, H, W, 3) uint8 in the video's size, frames that it begins with
    extend: np.ndarray | None = None  # the same, a clip that several videos like this one go on with
    carried: int | None = None  # frames of its end that the next one begins with
    finished: int | None = None  # frames that come out together
    latents: np.ndarray | None = None  # (B, T, h, w, C) float32
    warped: Warped | None = None  # noise that moves; None: noise that does not
    travel: Travel | None = None  # prompts that follow `prompts`, the same for all videos
    regions: Regions | None = None  # with prompts of their own, the same for all videos
    motion: MotionUse | None = None  # trajectories that all videos follow
    picture_windows: PictureWindows | None = None  # that the model sees one after the other; None: the whole picture
    finish: Finishing | None = None  # what is done with the frames afterwards
    asked: Options | None = None  # the options that this is of, completed by what is set here
    sources: tuple[InputSource, ...] = ()  # what was read

    @property
    def segments(self) -> int:
        """How many videos are sampled, one after the other."""
        if self.extend is None or self.finished is None or self.carried is None:
            return 1
        return -(-(self.finished - len(self.extend)) // (self.frames - self.carried))

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
            windows=self.windows,
            positions=self.positions,
        )
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(Settings)}
        if self.task not in KINDS[spec.kind].tasks or vars(check_sampling(spec, asked, self.task)) != own:
            raise ValueError(
                f"the request was checked for {self.model}, whose videos are not like those of {spec.name}"
            )

    def with_seed(self, seed: int) -> "Request":
        """The same with another seed."""
        asked = None if self.asked is None else dataclasses.replace(self.asked, seed=seed)
        return dataclasses.replace(self, seed=seed, asked=asked)

    def digest(self, *, seed: bool = True) -> str:
        """A hash of all that is asked for, pixels included; equal requests have equal ones. `seed` counts it in."""
        found = hashlib.sha256()
        for field in dataclasses.fields(self):
            if field.name in ("asked", "sources"):  # which the other fields say
                continue
            value = getattr(self, field.name) if seed or field.name != "seed" else None
            if value is None and field.name in LATER:
                continue
            for part in _parts(value):
                if isinstance(part, np.ndarray):
                    found.update(repr((field.name, part.shape)).encode())
                    found.update(np.ascontiguousarray(part).data)
                else:
                    found.update(repr((field.name, part)).encode())
        return found.hexdigest()


def _parts(value: Any) -> Iterator[Any]:
    """What tuples hold, however deep."""
    if not isinstance(value, tuple):
        yield value
        return
    for one in value:
        yield from _parts(one)


def check_request(spec: ModelSpec, prompt: str | list[str], options: Options | None = None) -> Request:
    """Completes and checks what is asked of a model, and reads its pictures and videos, once.

    Of several processes, all must call it together where the seed is to be drawn.

    Raises: ValueError, one sentence: what is wrong and what would be right; OSError for an input that is not there.
    """
    asked = Options() if options is None else options
    prompts = tuple(prompt) if isinstance(prompt, list | tuple) else (prompt,)
    if not prompts or not all(isinstance(p, str) for p in prompts):
        raise ValueError("prompt must be a string or a list of at least one string")
    for text in prompts:
        check_text("prompt", text)
    if asked.depth is not None:
        raise ValueError(f"depth is of CogVideo (2022); {spec.name} makes as many frames as frames says")
    task = find_task(spec, asked)
    negative = _negatives(asked.negative_prompt, len(prompts))
    read = _read_inputs if asked.extend is None else _going_on
    # Frames that are asked for beside a clip to go on with are those of the whole.
    settings = check_sampling(spec, asked if asked.extend is None else dataclasses.replace(asked, frames=None), task)
    strength = find_strength(task, asked)
    _check_steps(spec, settings, strength, asked)
    settings, inputs, fps = read(spec, asked, settings, len(prompts))
    _warn_of_positions(spec, settings)
    _warn_of_windows(spec, settings)
    _warn_unguided(spec, settings, asked)
    shape = (settings.shape[0] - settings.padding, *settings.shape[1:])
    request = Request(
        **vars(settings),
        model=spec.name,
        prompts=prompts,
        negative=negative,
        dynamic=asked.use_dynamic_cfg,
        strength=strength,
        seed=random_seed() if asked.seed == RANDOM else int(asked.seed),
        strips=asked.strips,
        tiling=asked.tiling,
        fps=frame_rate(asked.fps or fps or spec.defaults.fps),
        image_noise=(spec.defaults.image_noise if asked.image_noise is None else asked.image_noise) or None,
        image_scale=asked.image_scale,
        mask_dilation=asked.mask_dilation or None,
        control_steps=_control_steps(asked),
        latents=asked.latents,
        travel=_find_travel(spec, settings, asked),
        regions=read_regions(spec, asked, settings.frames, settings.shape, settings.padding),
        motion=read_motion(spec, asked, settings.frames),
        warped=read_warped(asked, settings.frames, shape),
        finish=asked.finish,
        **inputs,
    )
    if request.finish is not None:
        request.finish.check(request.height, request.width, request.fps)
    if request.latents is not None and request.latents.shape != request.batch_shape:
        raise ValueError(f"latents must be (B, T, h, w, C) = {request.batch_shape}, got {request.latents.shape}")
    return dataclasses.replace(request, asked=_completed(asked, request), sources=input_sources(asked))


def _completed(asked: Options, request: Request) -> Options:
    """Options that ask for the same whatever the model's own settings are."""
    held: dict[str, Any] = {}
    if asked.video is not None or asked.edit is not None:
        held["strength"] = request.strength
    if request.image_noise is not None and (request.stills is not None or request.mask is not None):
        held["image_noise"] = request.image_noise
    return dataclasses.replace(
        asked,
        size=(request.height, request.width),
        frames=request.frames if request.finished is None else request.finished,
        steps=request.steps,
        guidance_scale=request.guidance,
        sampler=request.sampler,
        seed=request.seed,
        fps=request.fps,
        **held,
    )


Inputs = tuple[Settings, dict[str, Any], fractions.Fraction | None]


def _read_inputs(spec: ModelSpec, asked: Options, settings: Settings, videos: int) -> Inputs:
    """Of pictures and clips: settings of the frames that they have, fields of the request, and the clips' rate.

    Raises: ValueError, one sentence; OSError.
    """
    nets, task, most = open_controlnets(spec, asked), settings.task, settings.frames
    check_controlnets(settings, bool(nets))
    clip, mask, fps, clips = None, None, None, list[np.ndarray]()
    source = asked.edit if task == "edit" else asked.video
    if source is not None:
        masked = asked.mask is not None
        clip, fps = read_video(source, most + masked)  # one more tells whether there are more, as masks may have, too
        settings = check_sampling(spec, asked, task, len(clip))
        mask = read_mask(asked.mask, clip, most)[: settings.frames] if masked else None
        clip = clip[: settings.frames]
    if asked.control is not None:
        clips, rate = read_controls(asked, max(len(nets), 1), most)
        fps = rate if fps is None else fps
        # Those that are short of what is asked for, or of all that a model makes, are filled up.
        if clip is None and asked.frames is None and spec.transformer.position != "rope+learned":
            settings = check_sampling(spec, asked, task, min(map(len, clips)))
        clips = [fill_clip(one, settings.frames) for one in clips]
    controls = tuple(ControlUse(net, weights, one) for (net, weights), one in zip(nets, clips, strict=False))
    fields: dict[str, Any] = {
        "stills": read_stills(asked, videos, settings.frames, spec.vae.temporal_compression) or None,
        "video": clip,
        "mask": mask,
        "control": None if nets or not clips else clips[0],
        "control_strength": 1.0 if nets else asked.control_strength,
        "controls": controls or None,
    }
    return settings, fields, fps


def _going_on(spec: ModelSpec, asked: Options, settings: Settings, videos: int) -> Inputs:
    """Of a clip to go on with: settings of what is sampled at a time, fields of the request, and the clip's rate.

    Without windows as many clips of the model's own length are sampled as are needed, with windows one.

    Raises: ValueError, one sentence; OSError.
    """
    if videos > 1 or asked.latents is not None:
        raise ValueError("a video is extended by one prompt, and from noise of its own; give one prompt and no latents")
    wanted = asked.frames
    most = MAX_FRAMES if wanted is None else min(wanted, MAX_FRAMES)  # of a clip that has more nothing is made
    clip, fps = read_video(asked.extend, most)
    clip = resize_frames(clip, settings.height, settings.width)
    carried = carried_frames(spec, len(clip))
    whole = len(clip) + settings.frames - carried if wanted is None else wanted
    if not len(clip) < whole <= MAX_FRAMES:
        has = f"at least {most}" if len(clip) == most else f"{len(clip)}"
        raise ValueError(
            f"the number of frames counts the whole video: it must be above that of the {NAMES['extend']}, which has "
            f"{has}, and at most {MAX_FRAMES}, got {whole}"
        )
    if settings.windows is not None:
        unit = frame_unit(spec)
        frames = -(-(whole - len(clip) + carried - 1) // unit) * unit + 1
        settings = check_sampling(spec, dataclasses.replace(asked, frames=frames), settings.task)
    if settings.frames <= carried:
        raise ValueError(f"{spec.name} makes {settings.frames} frames, which the {carried} that it goes on with fill")
    first = begins_with(spec.kind, clip[-carried:])
    return settings, first | {"extend": clip, "carried": carried, "finished": whole}, fps


def check_sampling(
    spec: ModelSpec, asked: Sampling, task: Task | None = None, available: int | None = None
) -> Settings:
    """Completes and checks what programs depend on.

    Args:
      task: None is the model's own, which for text-to-video models is not from a video.
      available: frames of the input video; of one that has more than are wanted, as many as are.
    Raises: ValueError, one sentence.
    """
    own, whole = spec.defaults, task not in REDRAWS  # of the others, a part of the steps may be taken
    task = task or own_task(spec)
    _check_positions(spec, asked.positions)
    height, width = asked.size
    frames = own.num_frames if asked.frames is None else asked.frames
    if available is not None:
        frames = _video_frames(spec, available, asked.frames)
    height, width = own.height if height is None else height, own.width if width is None else width
    _check_size(spec, height, width)
    _check_frames(spec, frames, task, asked.windows)
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
        windows=asked.windows,
        positions=asked.positions,
    )
    _check_guider(spec, settings)
    if settings.windows is not None and settings.windows.policy == "looped" and settings.padding:
        raise ValueError(
            f"{spec.name} drops {settings.padding} latent where {frames} frames would close to a ring; use another "
            "policy of windows"
        )
    if whole:
        _check_shortcuts(spec, settings, evaluations(spec, settings))
    return settings


def few_steps_note(request: Request, spec: ModelSpec) -> str | None:
    """A sentence where a model of few steps is asked for others than it is for, or another model for few; else None."""
    own = spec.defaults
    if not own.distilled:
        if not samplers.SAMPLERS[request.sampler].few_steps:
            return None
        return (
            f"sampler {request.sampler} is for models that `cogvx distill` taught it, which {spec.name} is not: expect "
            "worse videos"
        )
    wanted = Distilled(
        method=own.distilled,
        steps=own.num_inference_steps,
        sampler=own.sampler,
        guidance_scale=own.guidance_scale,
    )
    weight = request.guidance if request.guided else wanted.guidance_scale
    asked = dataclasses.replace(wanted, steps=request.steps, sampler=request.sampler, guidance_scale=weight)
    said = f"this is {spec.name} distilled for {wanted}, not for {asked}: expect worse videos"
    return None if asked == wanted else said


def kept_steps(settings: Settings, strength: float) -> int:
    """Steps that are taken: where a video is started from, the last part of them."""
    return min(int(settings.steps * strength), settings.steps)


def _check_steps(spec: ModelSpec, settings: Settings, strength: float, asked: Options) -> None:
    """Raises: ValueError where no step is taken, or none sees a control video."""
    if kept_steps(settings, strength) < 1:
        raise ValueError(f"strength {strength} of {settings.steps} steps leaves none to take; raise either")
    count = evaluations(spec, settings, strength)
    _check_shortcuts(spec, settings, count)
    start, end = asked.control_start, asked.control_end
    if asked.control is not None and not shown_steps((start, end), count).any():
        raise ValueError(
            f"no step sees the control video from {start:g} to {end:g} of {count} evaluations; raise control_end"
        )


def shown_steps(part: tuple[float, float], count: int) -> np.ndarray:
    """Which of `count` evaluations lie in a part of them, its ends included: (N,) bool."""
    places = np.arange(count) / count
    return (part[0] <= places) & (places <= part[1])


def _find_travel(spec: ModelSpec, settings: Settings, asked: Options) -> Travel | None:
    """The prompts that follow. Raises: ValueError where they cannot."""
    travel: Any = asked.travel or None
    if travel is None:
        return None
    other = settings.reuse or settings.way
    if other is not None:
        words = "reuse" if settings.reuse else "guidance"
        raise ValueError(f"travel changes the prompt on the way, and {words} {other} goes on with an old one; give one")
    if asked.edit is not None:
        raise ValueError("an edit's clip is seen by one prompt; give travel or a video to edit, not both")
    if travel.over == "steps":
        return travel
    windows = settings.windows
    if windows is None or window_latents(spec, windows)[0] >= settings.shape[0]:
        raise ValueError(
            f"travel over frames needs windows shorter than the clip of {settings.frames} frames, each of which has a "
            "prompt; give windows=16:8, say, or places in the steps, such as 50%"
        )
    if asked.extend is not None:
        raise ValueError("travel over frames is of one clip; give a video to extend places in the steps, such as 50%")
    if travel.places[-1] >= settings.frames:
        raise ValueError(
            f"frame {travel.places[-1]:g} of travel is outside the clip, whose frames are 0 to {settings.frames - 1}"
        )
    return travel


def _control_steps(asked: Options) -> tuple[float, float] | None:
    part = asked.control_start, asked.control_end
    return None if asked.control is None or part == (0, 1) else part


def evaluations(spec: ModelSpec, settings: Settings, strength: float = 1.0) -> int:
    """Evaluations of the model that the steps which are taken need; both branches of guidance are one."""
    start = settings.steps - kept_steps(settings, strength)
    return samplers.SAMPLERS[settings.sampler].evaluations(spec.schedule, settings.steps, start)


def inversions(settings: Settings, strength: float = 1.0) -> int:
    """Evaluations of one branch that invert the clip of an edit: one for each step that is taken."""
    return kept_steps(settings, strength) if settings.task == "edit" else 0


def row_evaluations(spec: ModelSpec, settings: Settings, strength: float = 1.0) -> int:
    """The same counted a branch, with what a guider evaluates beside both."""
    count = evaluations(spec, settings, strength)
    third = 0 if settings.guider is None else int(settings.guider.active(count).sum())
    return count * (1 + settings.guided) + third


def _check_positions(spec: ModelSpec, positions: str | None) -> None:
    """Raises: ValueError where a model's positions are of its own lengths alone."""
    if positions is not None and not spec.transformer.rotates:
        raise ValueError(
            f"positions {positions} need rotary positions, which {spec.name} has not: its are "
            f"{spec.transformer.position}; use a model such as 5B or 1.5, or leave them out"
        )


def _warn_of_positions(spec: ModelSpec, settings: Settings) -> None:
    """Warns where other positions than those of training change nothing."""
    if settings.positions is None:
        return
    cfg = spec.transformer
    seen, (_, period) = seen_latents(spec, settings) // (cfg.patch_t or 1), intrinsic_frequency(cfg)
    if seen <= period:
        warnings.warn(
            f"positions {settings.positions} change nothing here: they are for more than {period} temporal tokens, and "
            f"the model sees {seen} at a time",
            stacklevel=4,
        )


def _warn_of_windows(spec: ModelSpec, settings: Settings) -> None:
    """Warns where a window holds the whole clip."""
    if settings.windows is None:
        return
    size, _ = window_latents(spec, settings.windows)
    if size >= settings.shape[0]:
        warnings.warn(
            f"windows of {settings.windows.frames} frames change nothing here: one holds the {settings.frames} frames "
            "of the clip; give smaller ones, or more frames",
            stacklevel=4,
        )


def _warn_unguided(spec: ModelSpec, settings: Settings, asked: Options) -> None:
    """Warns of options that have no effect without guidance."""
    idle = [name for name in GUIDED_ALONE if getattr(asked, name) != getattr(Options, name)]
    if settings.guided or not idle:
        return
    by = ", as the LoRA of few steps sets it" if _set_by_lora(spec, settings) else ""
    warnings.warn(
        f"{' and '.join(idle)} {'change' if idle[1:] else 'changes'} nothing here: guidance is off at a guidance scale "
        f"of {settings.guidance:g}{by}; give one above 1",
        stacklevel=4,
    )


def _check_guider(spec: ModelSpec, settings: Settings) -> None:
    """Raises: ValueError for a guider or an enhancement that the model or the other options cannot have."""
    guider, asked = settings.guider, []
    if guider is not None:
        _check_guided(spec, settings, f"guider {guider.name}")
        guider.check_layers(spec.transformer.layers)
        asked += [f"guider {guider.name}"] if guider.third else []
    asked += [] if settings.enhance is None else ["enhance"]
    other = settings.reuse or settings.way
    words = "reuse" if settings.reuse else "guidance"
    if settings.windows is not None and other is not None:
        raise ValueError(f"windows overlap, so one has no use for what another left to {words} {other}; give one")
    if settings.task == "edit" and other is not None:
        raise ValueError(f"an edit looks at its clip in all evaluations, and {words} {other} leaves some out; give one")
    if asked and other is not None:
        raise ValueError(
            f"{asked[0]} changes blocks in every evaluation, and {words} {other} leaves some out; give one"
        )


def check_controlnets(settings: Settings, given: bool) -> None:
    """Raises: ValueError where ControlNets meet steps that leave blocks out."""
    other = settings.reuse or settings.way
    if given and other is not None:
        words = "reuse" if settings.reuse else "guidance"
        raise ValueError(
            f"a ControlNet adds to blocks in every evaluation, and {words} {other} leaves some out; give one"
        )


def _check_guided(spec: ModelSpec, settings: Settings, what: str) -> None:
    """Raises: ValueError, saying who turned guidance off, for what needs it."""
    if settings.guided:
        return
    found = f"got {settings.guidance:g}"
    if _set_by_lora(spec, settings):
        found = f"and the LoRA of few steps sets {settings.guidance:g}"
    raise ValueError(f"{what} needs a guidance scale above 1, {found}; leave it out, or give a guidance scale")


def _set_by_lora(spec: ModelSpec, settings: Settings) -> bool:
    """Whether the guidance scale is that of a LoRA of few steps."""
    return bool(spec.defaults.distilled) and settings.guidance == spec.defaults.guidance_scale


def _check_shortcuts(spec: ModelSpec, settings: Settings, count: int) -> None:
    """Raises: ValueError for reuse or a way of guidance that so many evaluations, or no guidance, cannot have."""
    reuse, way = settings.reuse, settings.way
    if reuse is not None and way is not None:
        raise ValueError(f"give either reuse {reuse} or guidance {way}: what one keeps, the other does not compute")
    if way is not None:
        _check_guided(spec, settings, f"guidance {way}")
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


def window_latents(spec: ModelSpec, windows: Windows) -> tuple[int, int]:
    """Latents of a window and of its overlap. Raises: ValueError for windows that are not of whole tokens."""
    return windows.latents(spec.vae.temporal_compression, spec.transformer.patch_t or 1)


def seen_latents(spec: ModelSpec, settings: Settings) -> int:
    """Latents that the model sees at a time: of the clip, or of a window."""
    own = settings.shape[0]
    return own if settings.windows is None else min(own, window_latents(spec, settings.windows)[0])


def windows_a_step(spec: ModelSpec, settings: Settings) -> float:
    """How many windows an evaluation has, in the mean of all."""
    laid = laid_windows(spec, settings.windows, settings.shape[0], settings.steps)
    return 1.0 if laid is None else float(laid.count.mean())


def laid_windows(
    spec: ModelSpec, windows: Windows | None, latents: int, count: int, *, first: bool = False
) -> Laid | None:
    """The windows of `count` evaluations over so many latents; None where the model sees the whole clip at once."""
    if windows is None:
        return None
    size, overlap = window_latents(spec, windows)
    return lay_out(windows, latents, count, size=size, overlap=overlap, first=first)


def frame_unit(spec: ModelSpec) -> int:
    """Legal frame counts are this times N, plus 1."""
    return 8 * (spec.transformer.patch_t or 1)


def shorter_clips(spec: ModelSpec, frames: int) -> list[int]:
    """Frames of about half and a quarter of a clip, that the model can make."""
    unit = frame_unit(spec)
    some = (1 + frames // 2 // unit * unit, 1 + frames // 4 // unit * unit)
    return [n for n in dict.fromkeys(some) if 1 < n < frames]


def _negatives(negative: str | tuple[str, ...] | None, count: int) -> tuple[str, ...] | None:
    if negative is None:
        return None
    negatives = (negative,) * count if isinstance(negative, str) else negative
    if len(negatives) != count:
        raise ValueError(f"{len(negatives)} negative prompts for {count} prompts; give one, or one each")
    return negatives


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


def _check_frames(spec: ModelSpec, frames: int, task: Task, windows: Windows | None) -> None:
    unit = frame_unit(spec)
    # The reference takes clips only where no padding is needed; we take those, too.
    patch = spec.transformer.patch_t or 1
    whole = task not in ("t2v", "i2v") and patch > 1 and latent_frames(spec, frames) % patch == 0
    if task in ("repaint", "edit", "inpaint"):  # masks have a first frame of its own
        whole = whole and frames % spec.vae.temporal_compression == 1
    if frames < 1 or (frames % unit != 1 and not whole):
        lower = max((frames - 1) // unit, 0) * unit + 1
        raise ValueError(
            f"the number of frames must be {unit}N+1 for {spec.name}, got {frames}; "
            f"nearest: {_words([lower, lower + unit])}"
        )
    if frames > MAX_FRAMES:
        raise ValueError(f"the number of frames must be at most {MAX_FRAMES}, got {frames}")
    seen, native = latent_frames(spec, frames), spec.transformer.sample_frames
    if windows is not None:
        seen = min(seen, window_latents(spec, windows)[0])
    if spec.transformer.position == "rope+learned" and seen != latent_frames(spec, native):
        asked = f"{frames}" if windows is None else f"windows of {windows.frames}"
        raise ValueError(f"{spec.name} has learned positions for {native} frames only, got {asked}")


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
