"""The options of a generation: names, defaults, kinds and help, for Python, the command line and prompts files.

A field's name is its flag and its key in a line of a prompts file. `from_keywords` takes the names of Python's
`generate`, which are those of diffusers. Nothing here needs jax, whose import takes seconds.
"""

import dataclasses
import difflib
import fractions
import math
import numbers
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
import tyro

from cogvx_jax.data.rates import frame_rate
from cogvx_jax.data.regions import MAX_REGIONS, Region, parse_region
from cogvx_jax.data.sizes import Size
from cogvx_jax.data.sizes import parse_size as parse_size
from cogvx_jax.diffusion.guidance_ways import Way, parse_guidance
from cogvx_jax.diffusion.guiders import GUIDERS, Guider, parse_guider
from cogvx_jax.diffusion.reuse import Reuse, parse_reuse
from cogvx_jax.diffusion.samplers import SAMPLERS
from cogvx_jax.diffusion.travel import Travel, parse_travel
from cogvx_jax.diffusion.warped import WarpedNoise, parse_warped
from cogvx_jax.diffusion.windows import Windows, parse_windows
from cogvx_jax.finishing.asked import EXAMPLE, Finishing, parse_finishing

MAX_GUIDANCE = 1000.0  # far beyond all use; near the end of float32's range every latent would be infinite
MAX_IMAGE_SCALE = 1000.0
MAX_SEED = 2**63  # of which jax takes the lower 32 bits
MAX_STRIPS = 1024
MAX_IMAGE_NOISE = 2.0  # from black to white
MAX_CONTROL = 100.0
MAX_DILATION = 1024  # pixels
MAX_TRAJECTORIES = 64
RANDOM = "random"
POSITIONS = ("riflex",)  # beside those of training
DIFFUSERS_NAMES = {"num_frames": "frames", "num_inference_steps": "steps"}  # beside height and width, which are `size`


def _word(metavar: str, read: Callable[[str], Any] = str) -> Any:
    """A flag that takes one word of text; `CHECKS` find what is wrong with it, in one sentence."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )


def _read_whole(text: str) -> int | str:
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,100}", text) else text


def _read_numbers(text: str) -> Any:
    """A number, or several of "1,0.5"; what is none stays text."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        return text
    return found if len(found) > 1 else found[0]


def _read_rate(text: str) -> fractions.Fraction | str:
    """Of "8", "12.5" or "30000/1001"."""
    # No exponents: of "1e999999999" a fraction would have a thousand million digits.
    plain = re.fullmatch(r"[+-]?[0-9]{1,9}(\.[0-9]{1,9})?(/[0-9]{1,9})?", text)
    try:
        return fractions.Fraction(text) if plain else text
    except (ValueError, ZeroDivisionError):
        return text


NONE = tyro.conf.arg(help_behavior_hint="(default: none)")
NO_HINT = "(default: none; may be given several times)"
OWN = tyro.conf.arg(help_behavior_hint="(default: the model's own)")


def perhaps(unknown: Sequence[str], known: Iterable[str]) -> str:
    """Words for a message of unknown names: the known one that is most like the first of them, or nothing."""
    near = difflib.get_close_matches(unknown[0][:60], known, 1) if unknown else []
    return f" (meant is perhaps {near[0]})" if near else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """What a video's programs depend on. None is the model's own.

    Args:
      size: height and width in pixels, multiples of 16, such as 480x720.
      frames: how many the video has, 8N+1, for 1.5 models 16N+1.
      steps: sampling steps.
      guidance_scale: weight of the prompt; at most 1 turns guidance off and halves the work.
      sampler: how steps are taken; dpm and euler-ancestral are stochastic, heun evaluates the model twice a step.
      reuse: make some steps of what others computed, which is faster and lossy: every:2, teacache:0.2, magcache:0.06,
        first-block:0.1, pab:2, or steps:x.xx.x. The numbers are a rate, a threshold or a period.
      guidance: compute the branch without the prompt in some steps only, which is lossy: interval:0.2-0.8 in that part
        of the noise levels, or delta:2 in every second step.
      calibration: a file of `cogvx calibrate` for reuse by magcache or teacache; None is the one in the model's folder.
      guider: how the predictions with and without the prompt are combined: cfg:rescale=0.7, zero-star, apg:eta=0.5,
        stg:layers=11, slg or pag; docs/tasks.md says what each takes.
      enhance: weight of Enhance-A-Video, which strengthens what frames take from each other; 1 is a beginning.
      windows: FRAMES[:OVERLAP], for clips longer than trained: each step predicts windows of so many frames by
        themselves, such as 48:8 or 48:8,policy=looped; docs/tasks.md has the policies. Memory is that of a window.
      positions: riflex, for clips longer than trained of models with rotary positions, such as 5B and 1.5; None is as
        trained.
    Raises: ValueError, one sentence, for a value of another kind or out of its range.
    """

    size: Annotated[Any, _word("HxW"), OWN] = None
    frames: Annotated[Any, _word("INT", _read_whole), OWN] = None
    steps: Annotated[Any, _word("INT", _read_whole), OWN] = None
    guidance_scale: float | None = None
    sampler: Annotated[str | None, tyro.conf.arg(metavar="|".join(SAMPLERS))] = None
    reuse: Annotated[Any, _word("METHOD[:NUMBER]"), NONE] = None
    guidance: Annotated[Any, _word("WAY:NUMBER"), NONE] = None
    calibration: Annotated[Any, _word("PATH")] = None
    guider: Annotated[Any, _word(f"{'|'.join(GUIDERS)}[:KEY=NUMBER,...]"), NONE] = None
    enhance: Annotated[float | None, NONE] = None
    windows: Annotated[Any, _word("FRAMES[:OVERLAP,KEY=VALUE,...]"), NONE] = None
    positions: Annotated[str | None, tyro.conf.arg(metavar="|".join(POSITIONS)), NONE] = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = CHECKS[field.name](field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)

    @classmethod
    def of(cls, value: Self | None, keywords: Mapping[str, Any]) -> Self:
        """The value that is given, or the one that keywords make. Raises: TypeError for both, or as `from_keywords`."""
        if value is not None and keywords:
            raise TypeError(f"give either options or {', '.join(sorted(keywords))}")
        return cls.from_keywords(**keywords) if value is None else value

    @classmethod
    def keywords(cls) -> dict[str, Any]:
        """The names that `from_keywords` takes, with their defaults."""
        theirs = {ours: name for name, ours in DIFFUSERS_NAMES.items()}
        found: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            names = ("height", "width") if field.name == "size" else (theirs.get(field.name, field.name),)
            found |= dict.fromkeys(names, field.default)
        return found

    @classmethod
    def from_keywords(cls, **keywords: Any) -> Self:
        """Options by the names of Python's `generate`: `height`, `width`, `num_frames`, `num_inference_steps`.

        Raises: TypeError for an unknown name; ValueError as the class itself.
        """
        if unknown := keywords.keys() - cls.keywords().keys():
            raise TypeError(f"unknown option {min(unknown)!r}; the known ones are {', '.join(cls.keywords())}")
        for theirs, ours in DIFFUSERS_NAMES.items():
            if theirs in keywords:
                keywords[ours] = CHECKS[ours](theirs, keywords.pop(theirs))
        if "height" in keywords or "width" in keywords:
            keywords["size"] = (keywords.pop("height", None), keywords.pop("width", None))
        return cls(**keywords)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Sampling):
    """How a video is to be made, but for its prompt. None is the model's own.

    In Python `image` and `last_image` may also be a PIL image or (H, W, 3) uint8, or a list of one per prompt. `video`,
    `control`, `edit` and `extend` may be (F, H, W, 3) uint8; `mask` may be that, (F, H, W), a picture, or bool.
    `noises` and `flow` may be arrays, or `cx.WarpedNoise`.
    `negative_prompt` may be a list of one per prompt, or None for zeros in place of the encoded prompt, as in the
    authors' own code. `controlnet` may be what `load_controlnet` gives, (source, weight), or a list of these; `control`
    may be a list of a video for each then.

    Args:
      negative_prompt: what to steer away from. "" is the encoded empty prompt, as in diffusers.
      travel: prompts that follow, each with its place: 24=a blue star, at a frame of a clip in windows, or 50%=a blue
        star, at a share of the steps. Between places they are mixed. A mapping in Python and JSON.
      trajectory: points that things move along, on a canvas of 256 x 256, with `tora`: "60,128 200,128", or a file with
        a line for each point; several move side by side. In Python and JSON also pairs, or a list of such lists.
      tora: Tora's two files, EXTRACTOR,FUSER, or their folder, and their weight if not 1, for 5B and 5B-I2V.
      region: prompts of parts of the picture, for models with rotary positions alone, such as 5B and 1.5: a box of
        left, top, right, bottom, 0,0,0.5,1=a blue star, or what is white in a picture or video, left.png=a blue star.
        In Python and JSON a list of pairs.
      image: the first frame, for image-to-video and inpainting models; it is stretched to the video's size.
      last_image: the last frame, for the same models.
      keyframes: pictures at frames of the clip, for the same models: 24=b.png,48=c.png; a mapping in Python and JSON.
      image_noise: deviation of noise on such pictures, in pixels of -1 to 1; more of it makes more motion.
      video: what to start from, for text-to-video and inpainting models.
      mask: a video or picture of the video's size: what is white is made anew, what is black is kept.
      mask_dilation: pixels by which the white of the mask grows first, which hides seams.
      edit: a video to edit by inversion, for text-to-video models: the new one has its layout and motion, and with
        `mask` the parts that are black there.
      extend: a video to go on with, for text-to-video, image-to-video and inpainting models; frames are then those of
        the whole that comes out, any number.
      strength: how much of the video is redrawn, above 0 and at most 1; with an inpainting model's mask, and of a video
        to edit, it is 1 unless given.
      control: a video to follow, such as depth, edges or poses, for control models or with `controlnet`; for several
        ControlNets one for all, or one each, a.mp4,b.mp4.
      controlnet: a ControlNet of TheDenk's, with which text- and image-to-video models follow `control`: a folder, a
        file, a run of `cogvx train --controlnet` or a hub id, and its weight if not 1; several add up.
      control_strength: factor of what a control model sees of it, or a ControlNet adds; of one also a number for each
        of its blocks, such as 1,0.8,0.5.
      control_start: first part of the steps that sees the control video, 0 to 1.
      control_end: last part of the steps that sees it.
      noises: noise to start from that moves, for LoRAs of Go-with-the-Flow: a .npy file of (frames, h, w, channels),
        and how it is used, noises.npy:degradation=0.5,frames=nearest; docs/tasks.md has the keys.
      flow: a .npy file of (frames - 1, height, width, 2) pixels to the right and down, by which such noise is made;
        flow.npy:cell=32 and the same keys.
      use_dynamic_cfg: vary the weight of the prompt over the steps, as the authors' demo does.
      seed: the same seed gives the same video; "random" draws one and prints it.
      strips: of rows that the VAE works large frames through in, to save memory, same result; None: as many as needed.
      tiling: run the VAE in tiles, to save memory; lossy, the result differs.
      fps: frames per second of the file; None is the input video's, or the model's own.
      finish: what `cogvx finish` then does with the video, such as scale=2,fps=32 or size=2160x3840,codec=hevc; a
        mapping in Python and JSON. docs/finishing.md has the keys.
      depth: of CogVideo (2022) alone, how often frames are put between those that are there, 0 to 8: 5, 9, 17, 33
        frames. None is as many as `frames` says.
      image_scale: factor of the image's latents; see `latents.image_scale`.
      latents: the noise to start from, (B, T, h, w, C) float32; with `video`, the noise it gets.
    """

    negative_prompt: Annotated[Any, _word("STR")] = ""
    travel: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PLACE=PROMPT", help_behavior_hint=NO_HINT)
    ] = ()
    trajectory: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(metavar="X,Y X,Y ...|PATH", help_behavior_hint=NO_HINT),
    ] = ()
    tora: Annotated[Any, _word("PATH[:WEIGHT]"), NONE] = None
    region: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(metavar="BOX|PATH=PROMPT", help_behavior_hint=NO_HINT),
    ] = ()
    image: Annotated[Any, _word("PATH")] = None
    last_image: Annotated[Any, _word("PATH")] = None
    keyframes: Annotated[Any, _word("FRAME=PATH,...")] = None
    image_noise: float | None = None
    video: Annotated[Any, _word("PATH")] = None
    mask: Annotated[Any, _word("PATH")] = None
    mask_dilation: Annotated[Any, _word("INT", _read_whole)] = 0
    edit: Annotated[Any, _word("PATH")] = None
    extend: Annotated[Any, _word("PATH")] = None
    strength: Annotated[float | None, tyro.conf.arg(help_behavior_hint="(default: 0.8)")] = None
    control: Annotated[Any, _word("PATH")] = None
    controlnet: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PATH[:WEIGHT]", help_behavior_hint=NO_HINT)
    ] = ()
    control_strength: Annotated[Any, _word("NUMBER[,...]", _read_numbers)] = 1.0
    control_start: float = 0.0
    control_end: float = 1.0
    noises: Annotated[Any, _word("PATH[:KEY=VALUE,...]")] = None
    flow: Annotated[Any, _word("PATH[:KEY=VALUE,...]")] = None
    use_dynamic_cfg: bool = False
    seed: Annotated[int | Literal["random"], _word("INT|random", _read_whole)] = 0
    strips: Annotated[
        Any, _word("INT", _read_whole), tyro.conf.arg(help_behavior_hint="(default: as many as needed)")
    ] = None
    tiling: bool = False
    fps: Annotated[float | fractions.Fraction | None, _word("NUMBER", _read_rate)] = None
    finish: Annotated[Any, _word("KEY=VALUE|PATH,..."), NONE] = None
    depth: Annotated[Any, _word("INT", _read_whole), OWN] = None
    image_scale: Annotated[Any, tyro.conf.SuppressFixed] = None
    latents: Annotated[Any, tyro.conf.SuppressFixed] = None


PICTURES = ("image", "last_image", "keyframes")
INPUTS = (*PICTURES, "video", "mask", "control", "edit", "extend")  # options whose files are read
NEEDS = {  # option -> the inputs that it is for, one of which must be there
    "image_noise": (*PICTURES, "mask"),
    "mask_dilation": ("mask",),
    "strength": ("video", "edit"),
    **dict.fromkeys(("controlnet", "control_strength", "control_start", "control_end"), ("control",)),
}
PYTHON_ONLY = {"image_scale", "latents"}  # no flags, nor keys of a prompts file


def none_beside(name: str) -> tuple[str, ...]:
    """Options that are refused beside an input that must be the only one."""
    others = tuple(one for one in INPUTS if one != name)
    return (*others, *(option for option, inputs in NEEDS.items() if name not in inputs))


def check_alone(what: str, others: Mapping[str, str], asked: Mapping[str, Any]) -> None:
    """Raises: ValueError where something that cannot be beside `what` is asked for.

    Args:
      others: why each of these cannot be, by name.
    """
    for name, why in others.items():
        given = asked.get(name)
        if given is not None and given is not False and not (isinstance(given, Sequence) and not given):
            raise ValueError(f"{why}; give {what} or {name}, not both")


def control_sources(asked: Options) -> list[Any]:
    """The control videos: several only for as many ControlNets, in a list or in text such as "a.mp4,b.mp4"."""
    control, count = asked.control, len(asked.controlnet)
    if isinstance(control, str) and count > 1 and len(parts := control.split(",")) == count:
        return parts
    return list(control) if isinstance(control, list | tuple) and count else [control]


def check_path(name: str, value: Any) -> str | os.PathLike:
    """A path that a file can have. Raises: ValueError."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ValueError(f"{name} must be a path, got {_shown(value)}")
    if "\0" in str(value):
        raise ValueError(f"{name} holds a NUL, which no path can: {_shown(str(value))}")
    return value


def _shown(value: Any) -> str:
    """A value in a message, at most a line of it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _size(name: str, value: Any) -> Size:
    if value is None or isinstance(value, str):
        return parse_size(value)
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"{name} must be HEIGHTxWIDTH in pixels, such as 480x720, got {_shown(value)}")
    return _whole("height", value[0]), _whole("width", value[1])


def _whole(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
        raise ValueError(f"{name} must be a whole number, got {_shown(value)}")
    return operator.index(value)


def _number(low: float, high: float, *, optional: bool = True) -> Callable[[str, Any], float | None]:
    def check(name: str, value: Any) -> float | None:
        if value is None and optional:
            return None
        if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
            raise ValueError(f"{name} must be a number, got {_shown(value)}")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value}")
        number: Any = value
        if not low <= number <= high:
            raise ValueError(f"{name} must be from {low:g} to {high:g}, got {_shown(value)}")
        return number

    return check


def _strength(name: str, value: Any) -> float | None:
    number = _number(-math.inf, math.inf)(name, value)
    if number is None:
        return None
    if not 0 < number <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, got {_shown(value)}")
    return float(number)


def parse_weighted(text: str, what: str) -> tuple[str, float]:
    """Path and weight of "PATH:WEIGHT" or "PATH"; a colon without a number after it belongs to the path.

    Args:
      what: "LoRA", say, for messages.
    Raises: ValueError for a path that is empty, or a weight that is not finite.
    """
    if not text:
        raise ValueError(f"the path of a {what} is empty; give a file or a folder")
    path, _, weight = text.rpartition(":")
    try:
        number = float(weight) if path else 1.0
    except ValueError:
        return text, 1.0
    if not math.isfinite(number):
        raise ValueError(f"the weight of a {what} must be a finite number, got {text!r}")
    return path or text, number


def _controlnets(name: str, value: Any) -> tuple[tuple[Any, float], ...]:
    """Sources with their weights, of one, one with a weight, or several of either."""
    if value is None:
        return ()
    is_pair = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], numbers.Real)
    several = list(value) if isinstance(value, tuple | list) and not is_pair else [value]
    found = []
    for one in several:
        source, weight = one if isinstance(one, tuple) and len(one) == 2 else (one, 1.0)
        if isinstance(one, str):
            source, weight = parse_weighted(one, "ControlNet")
        if isinstance(source, str | os.PathLike):
            check_path(name, source)
        number = _number(-MAX_CONTROL, MAX_CONTROL, optional=False)(f"the weight of a {name}", weight)
        assert number is not None
        found.append((source, float(number)))
    return tuple(found)


def _control_strength(name: str, value: Any) -> float | tuple[float, ...]:
    check = _number(0, MAX_CONTROL, optional=False)
    if not isinstance(value, tuple | list):
        number = check(name, value)
        assert number is not None
        return number
    if not value:
        raise ValueError(f"{name} must be a number, or one for each block of a ControlNet, got {_shown(value)}")
    return tuple(float(check(name, one) or 0) for one in value)


def _parsed(kind: type, parse: Callable[[str], Any], example: str) -> Callable[[str, Any], Any]:
    """A value of text that `parse` reads, or one that was read before."""

    def check(name: str, value: Any) -> Any:
        if value is None or isinstance(value, kind):
            return value
        if not isinstance(value, str):
            raise ValueError(f"{name} must be text such as {example}, got {_shown(value)}")
        return parse(value)

    return check


def _optional_path(name: str, value: Any) -> Any:
    return None if value is None else check_path(name, value)


def _travel(name: str, value: Any) -> Travel | tuple[()]:
    """Of a mapping, of "24=a blue star" or several of it, or what was read before."""
    if value is None or isinstance(value, tuple | list) and not value:
        return ()
    if isinstance(value, Travel):
        return value
    if isinstance(value, Mapping):
        return parse_travel(list(value.items()))
    several = [value] if isinstance(value, str) else value
    if not isinstance(several, tuple | list) or not all(isinstance(one, str) and "=" in one for one in several):
        raise ValueError(f"{name} must be places and their prompts, such as 24=a blue star, got {_shown(value)}")
    return parse_travel([(place, prompt) for place, _, prompt in (one.partition("=") for one in several)])


def _trajectories(name: str, value: Any) -> tuple[Any, ...]:
    """Texts, paths or points of one or several; they are looked at when they are read."""
    if value is None or isinstance(value, tuple | list) and not value:
        return ()
    if isinstance(value, str | os.PathLike) or getattr(value, "ndim", 0) == 2 or _are_points(value):
        return (value,)
    if not isinstance(value, tuple | list) or len(value) > MAX_TRAJECTORIES:
        raise ValueError(f"{name} must be at most {MAX_TRAJECTORIES} lists of points x,y, got {_shown(value)}")
    return tuple(value)


def _are_points(value: Any) -> bool:
    """Whether it is pairs of numbers, of one trajectory."""
    return isinstance(value, tuple | list) and all(
        isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(n, numbers.Real) for n in pair)
        for pair in value
    )


def _tora(name: str, value: Any) -> tuple[str, float] | None:
    """A path with its weight, as text or a pair."""
    if value is None:
        return None
    source, weight = value if isinstance(value, tuple) and len(value) == 2 else (value, 1.0)
    if isinstance(value, str):
        source, weight = parse_weighted(value, "Tora")
    number = _number(-MAX_CONTROL, MAX_CONTROL, optional=False)(f"the weight of {name}", weight)
    assert number is not None
    return str(check_path(name, source)), float(number)


def _regions(name: str, value: Any) -> tuple[Region, ...]:
    """Of text, or several: texts, pairs of a place and a prompt, or what was read before."""
    if value is None:
        return ()
    several = [value] if isinstance(value, str | Region) else value
    if not isinstance(several, tuple | list) or len(several) > MAX_REGIONS:
        raise ValueError(f"{name} must be at most {MAX_REGIONS} places with their prompts, got {_shown(value)}")
    found = []
    for each in several:
        if isinstance(each, str):
            each = parse_region(each)
        elif isinstance(each, tuple | list) and len(each) == 2:
            each = Region(*each)
        if not isinstance(each, Region):
            raise ValueError(f"{name} must be a place and its prompt, such as 0,0,0.5,1=a star, got {_shown(each)}")
        found.append(each)
    return tuple(found)


def _warped(name: str, value: Any) -> WarpedNoise | None:
    """Of a path with its options, an array, or what was read before."""
    if value is None or isinstance(value, WarpedNoise):
        return value
    if isinstance(value, str):
        return parse_warped(value)
    _path_or_pixels(name, value)
    return WarpedNoise(value)


def _noises(name: str, value: Any) -> WarpedNoise | None:
    """The same, of noise that is there already."""
    found = _warped(name, value)
    if found is not None and found.cell != WarpedNoise.cell:
        raise ValueError(f"cell is of the noise that a flow moves, and {name} are there already; leave out cell")
    return found


def _dilation(name: str, value: Any) -> int:
    number = _whole(name, value)
    if number is None or not 0 <= number <= MAX_DILATION:
        raise ValueError(f"{name} must be from 0 to {MAX_DILATION} pixels, got {_shown(number)}")
    return number


def _yes_or_no(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be true or false, got {_shown(value)}")
    return bool(value)


def check_strips(name: str, value: Any) -> int | None:
    """A number of strips; None is as many as are needed. Raises: ValueError."""
    number = _whole(name, value)
    if number is not None and not 1 <= number <= MAX_STRIPS:
        raise ValueError(f"{name} must be from 1, for whole frames, to {MAX_STRIPS}, got {_shown(number)}")
    return number


def _text(name: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {_shown(value)}")
    return value


def _positions(name: str, value: Any) -> str | None:
    if value is not None and value not in POSITIONS:
        raise ValueError(f"unknown {name} {_shown(value)}; the known ones are {', '.join(POSITIONS)}")
    return value


def check_text(name: str, value: str) -> str:
    """Raises: ValueError for what no tokenizer takes, such as an argument that was not in UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} holds bytes that are no UTF-8 text, from character {error.start} on") from None
    return value


def _texts(name: str, value: Any) -> str | tuple[str, ...] | None:
    if value is None or isinstance(value, str):
        return None if value is None else check_text(name, value)
    if not isinstance(value, tuple | list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{name} must be text, got {_shown(value)}")
    return tuple(check_text(name, one) for one in value)


def _source(name: str, value: Any) -> Any:
    """A path, pixels, or a list of them; pixels are looked at when they are read."""
    several = value if isinstance(value, tuple | list) and value else [value]
    for one in several:
        if one is not value or one is not None:
            _path_or_pixels(name, one)
    return value


def _keyframes(name: str, value: Any) -> dict[int, Any] | None:
    """Pictures by frame, of a mapping or of text such as "24=b.png,48=c.png"."""
    if value is None:
        return None
    wrong = ValueError(f"{name} must be frames and their pictures, such as 24=b.png,48=c.png, got {_shown(value)}")
    pairs: list[tuple[Any, Any]] = []
    if isinstance(value, str):
        pairs = [(frame, path) for frame, _, path in (part.partition("=") for part in value.split(","))]
    elif isinstance(value, Mapping):
        pairs = list(value.items())
    if not pairs:
        raise wrong
    found: dict[int, Any] = {}
    for frame, picture in pairs:
        number = _read_whole(frame) if isinstance(frame, str) else frame
        if number is None or isinstance(number, str):
            raise wrong
        whole = _whole(f"a frame of {name}", number)
        assert whole is not None
        _path_or_pixels(f"the picture of keyframe {whole}", picture)
        if whole in found:
            raise ValueError(f"{name} have two pictures for frame {whole}; give one")
        found[whole] = picture
    return found


def _path_or_pixels(name: str, value: Any) -> None:
    if not (hasattr(value, "__array__") or hasattr(value, "__array_interface__")):  # the latter of a PIL image
        check_path(name, value)


def _seed(name: str, value: Any) -> int | str:
    if isinstance(value, str) and value == RANDOM:
        return RANDOM
    number = None if isinstance(value, str) else _whole(name, value)
    if number is None:
        raise ValueError(f"{name} must be a whole number or {RANDOM!r}, got {_shown(value)}")
    if not -MAX_SEED <= number < MAX_SEED:
        raise ValueError(f"{name} must be from -2^63 to 2^63 - 1, got {_shown(number)}")
    return number


def _fps(name: str, value: Any) -> fractions.Fraction | None:
    value = _read_rate(value) if isinstance(value, str) and "/" in value else value  # JSON has no fractions
    number = _number(-math.inf, math.inf)(name, value)
    if number is None:
        return None
    return frame_rate(number if isinstance(number, fractions.Fraction) else float(number))


def _finishing(name: str, value: Any) -> Finishing | None:
    """Of text, a mapping, or what was read before."""
    if value is None or isinstance(value, Finishing):
        return value
    if not isinstance(value, str | Mapping):
        raise ValueError(f"{name} must be text such as {EXAMPLE}, or a mapping, got {_shown(value)}")
    return parse_finishing(value)


def _latents(name: str, value: Any) -> np.ndarray | None:
    if value is None:
        return None
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" and str(array.dtype) != "bfloat16":
        raise ValueError(f"{name} must be float32 numbers, got {array.dtype}")
    array = np.asarray(array, np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} hold numbers that are not finite: {np.sum(~np.isfinite(array))} of {array.size}")
    return array


# Of each field: (name, value) -> the value as it is kept. Raises ValueError.
CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "size": _size,
    "frames": _whole,
    "steps": _whole,
    "guidance_scale": _number(-MAX_GUIDANCE, MAX_GUIDANCE),
    "sampler": _text,
    "reuse": _parsed(Reuse, parse_reuse, "every:2"),
    "guidance": _parsed(Way, parse_guidance, "delta:2"),
    "calibration": _optional_path,
    "guider": _parsed(Guider, parse_guider, "apg:eta=0.5"),
    "enhance": _number(-MAX_GUIDANCE, MAX_GUIDANCE),
    "windows": _parsed(Windows, parse_windows, "48:8"),
    "positions": _positions,
    "negative_prompt": _texts,
    "travel": _travel,
    "trajectory": _trajectories,
    "tora": _tora,
    "region": _regions,
    "image": _source,
    "last_image": _source,
    "keyframes": _keyframes,
    "image_noise": _number(0, MAX_IMAGE_NOISE),
    "video": _source,
    "mask": _source,
    "mask_dilation": _dilation,
    "edit": _source,
    "extend": _source,
    "strength": _strength,
    "control": _source,
    "controlnet": _controlnets,
    "control_strength": _control_strength,
    "control_start": _number(0, 1, optional=False),
    "control_end": _number(0, 1, optional=False),
    "noises": _noises,
    "flow": _warped,
    "use_dynamic_cfg": _yes_or_no,
    "seed": _seed,
    "strips": check_strips,
    "tiling": _yes_or_no,
    "fps": _fps,
    "finish": _finishing,
    "depth": _whole,
    "image_scale": _number(-MAX_IMAGE_SCALE, MAX_IMAGE_SCALE),
    "latents": _latents,
}
