"""What is asked of CogVideo (2022): options of `pipelines.options` that mean something here, completed and checked.

All of it is known from the headers of a model's files, so it is checked before weights are read.
"""

import dataclasses
import fractions
import hashlib
import math
from collections.abc import Mapping

import numpy as np

from cogvx_jax.convert.cogvideo2022_folder import SIZES, Parts
from cogvx_jax.data.pictures import read_image
from cogvx_jax.data.rates import frame_rate
from cogvx_jax.json_files import quoted
from cogvx_jax.models.cogvideo2022.configs import CogVideo2022Config
from cogvx_jax.pipelines.cogvideo2022.generate import MAX_DEPTH, Settings
from cogvx_jax.pipelines.cogvideo2022.load import settings_of
from cogvx_jax.pipelines.cogvideo2022.system import INTERPOLATION, SEQUENTIAL, SUPER_RESOLUTION
from cogvx_jax.pipelines.cogvideo2022.text import TextTokenizer, check_prompts
from cogvx_jax.pipelines.input_sources import InputSource, input_sources
from cogvx_jax.pipelines.noise import random_seed
from cogvx_jax.pipelines.options import RANDOM, Options
from cogvx_jax.storage import below

NAME = "CogVideo (2022)"
TAKES = ("size", "frames", "depth", "guidance_scale", "image", "seed", "fps")  # of `Options`


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """Videos to make, with everything set.

    Attributes:
      large: frames go through super-resolution.
      first: pixels (H, W, 3) uint8 of the first frame; None: it is made.
      asked: the options that this is of, completed.
    """

    prompts: tuple[str, ...]
    settings: Settings
    seed: int
    large: bool
    first: np.ndarray | None
    fps: fractions.Fraction
    asked: Options
    sources: tuple[InputSource, ...]

    def digest(self, *, seed: bool = True) -> str:
        """A hash of all that is asked for, pixels included; equal requests have equal ones. `seed` counts it in."""
        asked = (self.prompts, self.settings, self.seed if seed else None, self.large, self.fps)
        found = hashlib.sha256(repr(asked).encode())
        if self.first is not None:
            found.update(repr(self.first.shape).encode())
            found.update(np.ascontiguousarray(self.first).data)
        return found.hexdigest()


def check_video(parts: Parts, tokenizer: TextTokenizer, prompts: tuple[str, ...], options: Options) -> VideoRequest:
    """Completes and checks what is asked of a model, and reads its picture.

    Raises: ValueError, one sentence, for options that mean nothing here or are out of range, and for prompts that the
      model cannot read; OSError for a picture that is not there.
    """
    check_takes(options)
    check_prompts(tokenizer, prompts)
    own = settings_of(parts.beside.settings, str(below(parts.place, SIZES)))
    guidance = (own.guidance or 1.0) if options.guidance_scale is None else options.guidance_scale
    depth = _depth(parts.stages, options, own.depth)
    settings = dataclasses.replace(own, depth=depth, guidance=guidance if guidance > 1 else None)
    large = _large(parts, options)
    seed = random_seed() if options.seed == RANDOM else int(options.seed)
    fps = frame_rate(options.fps or 2**depth)
    side = _side(parts, large)
    asked = dataclasses.replace(
        options,
        size=(side, side),
        frames=_frames(parts.stages[SEQUENTIAL], depth),
        depth=depth,
        guidance_scale=guidance,
        seed=seed,
        fps=fps,
    )
    return VideoRequest(
        prompts=prompts,
        settings=settings,
        seed=seed,
        large=large,
        first=None if options.image is None else read_image(options.image),
        fps=fps,
        asked=asked,
        sources=input_sources(asked),
    )


def check_takes(options: Options) -> None:
    """Raises ValueError for an option that means nothing for these models."""
    for field in dataclasses.fields(options):
        if field.name not in TAKES and getattr(options, field.name) != CHECKED[field.name]:
            takes = ", ".join(TAKES)
            raise ValueError(f"{field.name} means nothing for {NAME}, which takes {takes}; leave it out")


CHECKED: Mapping[str, object] = vars(Options())  # what each option is where it is not given


def _depth(stages: Mapping[str, CogVideo2022Config], options: Options, own: int) -> int:
    """How often frames are put between those that are there, by `depth` or `frames`; the model's `own` if neither."""
    most, key = own if INTERPOLATION in stages else 0, stages[SEQUENTIAL].frames
    depth = options.depth
    if options.frames is not None:
        known = {_frames(stages[SEQUENTIAL], n): n for n in range(MAX_DEPTH + 1)}
        if options.frames not in known:
            raise ValueError(f"{NAME} makes {', '.join(map(str, known))} frames, not {options.frames}")
        if depth not in (None, known[options.frames]):
            raise ValueError(f"depth {depth} is not of {options.frames} frames; give one of both")
        depth = known[options.frames]
    if depth is None:
        return most
    if depth > 0 and INTERPOLATION not in stages:
        raise ValueError(f"this model has no stage that makes frames in between; give depth 0, for {key} frames")
    return int(depth)


def _frames(cfg: CogVideo2022Config, depth: int) -> int:
    return (cfg.frames - 1) * 2**depth + 1


def _side(parts: Parts, large: bool) -> int:
    """Height and width of a frame in pixels."""
    scale = getattr(parts.stages[SUPER_RESOLUTION], "scale", 1) if large else 1
    return math.prod((parts.stages[SEQUENTIAL].grid, parts.image_sizes.rate, scale))


def _large(parts: Parts, options: Options) -> bool:
    """Whether frames go through super-resolution, by `size`; where there is one, if that is not given."""
    kinds = (False, *([True] if SUPER_RESOLUTION in parts.stages else []))
    sides = {_side(parts, large): large for large in kinds}
    height, width = options.size
    if height is None and width is None:
        return SUPER_RESOLUTION in parts.stages
    height, width = height or width, width or height
    if height != width or height not in sides:
        makes = " and ".join(f"{side}x{side}" for side in sides)
        raise ValueError(f"this model makes frames of {makes}, not of {quoted(height)}x{quoted(width)}")
    return sides[height]
