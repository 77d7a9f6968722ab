"""What may be asked of finishing, checked before any work; listed once: keywords, flags and the record follow."""

import dataclasses
import math
import os
from fractions import Fraction
from typing import Annotated, Any, Literal, get_args

import tyro

from cogvx_jax.data.rates import frame_rate
from cogvx_jax.data.sizes import parse_size
from cogvx_jax.finishing.maker_names import maker_name

Fit = Literal["auto", "keep", "crop"]
SCALES = (1, 2, 3, 4)
MAX_SIDE = 16384  # pixels
CROPPED = 0.02  # of a picture's height or width, that "auto" cuts off to fill a size
TILES = (32, 4096)
MAX_TIMEOUT = 24 * 3600.0  # seconds
MAKER = "URL|MODULE:FUNCTION|tones"  # of sound


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finish:
    """How a video is finished.

    Args:
      scale: how many times larger a network makes each side, 1 to 4; 1 uses none.
      size: two sides such as 2160x3840, in either order: the longer one goes along the video's longer side. Pictures
        are resized to it after `scale`. None is what `scale` gives.
      fit: "keep" stays inside of `size` in the video's shape, "crop" fills it and cuts the rest off, "auto" crops where
        no more than 2 % are lost.
      fps: frames a second, at least the video's own, such as 60 or 60000/1001; None is that. Between frames, others are
        interpolated.
      hold: repeat the last frame until the video is as long as before; else it comes once.
      upscaler: animevideov3, x4plus, x4plus-anime, or a file of such weights.
      interpolator: rife, or a file of such weights.
      interpolate_first: interpolate at the old size, then enlarge all frames. Slower, and steadier in time.
      cuts: repeat a frame where the video cuts to another shot; else the shots are blended.
      tile: side of the tiles in which frames are enlarged, pixels before that; None is what suits the network.
      mesh: devices that compute a tile each at a time, such as data=4. They interpolate as many pairs of frames, and
        those of other axes share a pair where it is large enough. None is one device.
    Raises: ValueError, one sentence, for what cannot be.
    """

    scale: int = 1
    size: Annotated[str | None, tyro.conf.arg(metavar="HxW")] = None
    fit: Fit = "auto"
    fps: Annotated[str | float | None, tyro.conf.arg(metavar="RATE")] = None
    hold: bool = False
    upscaler: Annotated[str, tyro.conf.arg(metavar="NAME|PATH")] = "animevideov3"
    interpolator: Annotated[str, tyro.conf.arg(metavar="NAME|PATH")] = "rife"
    interpolate_first: bool = False
    cuts: bool = True
    tile: int | None = None
    mesh: Annotated[str | None, tyro.conf.arg(metavar="AXIS=N,...")] = None

    def __post_init__(self):
        if type(self.scale) is not int or self.scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(map(str, SCALES))}, got {self.scale!r}")
        if self.fit not in get_args(Fit):
            raise ValueError(f"fit must be one of {', '.join(get_args(Fit))}, got {self.fit!r}")
        if self.tile is not None and (type(self.tile) is not int or not TILES[0] <= self.tile <= TILES[1]):
            raise ValueError(f"tile must be from {TILES[0]} to {TILES[1]} pixels, got {self.tile!r}")
        _ = self.rate
        if self.size is not None:
            height, width = parse_size(self.size)
            assert height is not None and width is not None
            _check_side(max(height, width), min(height, width))

    @property
    def rate(self) -> Fraction | None:
        """`fps` as a fraction. Raises: ValueError for what is no rate."""
        fps: Any = self.fps
        if isinstance(fps, str):
            try:
                fps = Fraction(fps[:40])
            except (ValueError, ZeroDivisionError):
                raise ValueError(f"fps must be a number such as 60 or 60000/1001, got {fps[:40]!r}") from None
        return None if fps is None else frame_rate(fps)

    @property
    def as_json(self) -> dict[str, Any]:
        """What is not as it is by default, as JSON has it."""
        found = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                found[field.name] = str(value) if isinstance(value, Fraction | os.PathLike) else value
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delivery:
    """The file that a finished video becomes.

    Args:
      codec: h264, hevc, av1, prores or ffv1; None is what the file's suffix usually has. Other suffixes, and none for
        a folder of PNGs, are written as by `Video.save`.
      crf: how coarse it is; more is smaller. None is nearly without loss.
      audio: a file whose sound is added: cut where it is longer, silent after its end where it is shorter.
      loop: begin the sound again in place of silence.
      fade: seconds in which the sound begins and ends.
      loudness: LUFS of the sound, such as -14; None leaves it.
      keep_sound: take the sound of the video itself.
      sound_from: who makes sound for the video: an address of HTTP, "module:function" of Python, or "tones", a tone by
        brightness and motion that is built in.
      sound_prompt: what is to be heard; None is the prompt of the video's record.
      sound_seed: other numbers give other sound, where the maker draws any.
      sound_timeout: seconds that the maker has.
      record: keep the record of how the video was made, and add how it was finished.
    Raises: ValueError, one sentence, for what does not go together.
    """

    codec: str | None = None
    crf: int | None = None
    audio: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    loop: bool = False
    fade: float = 0.0
    loudness: float | None = None
    keep_sound: bool = False
    sound_from: Annotated[str | None, tyro.conf.arg(metavar=MAKER)] = None
    sound_prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    sound_seed: int = 0
    sound_timeout: float = 600.0
    record: bool = True

    def __post_init__(self):
        sounds = [self.audio is not None, self.keep_sound, self.sound_from is not None]
        if sum(sounds) > 1:
            raise ValueError(
                "audio is a file's sound, keep_sound the video's own and sound_from is made; give one of them"
            )
        if not any(sounds) and (self.loop or self.fade or self.loudness is not None):
            raise ValueError("loop, fade and loudness are about sound; give audio, keep_sound or sound_from")
        made = {name: getattr(self, name) for name in ("sound_prompt", "sound_seed", "sound_timeout")}
        if self.sound_from is None and (lost := [name for name in made if made[name] != getattr(Delivery, name)]):
            raise ValueError(f"{lost[0]} is about sound that is made; give sound_from")
        if not (math.isfinite(self.sound_timeout) and 0 < self.sound_timeout <= MAX_TIMEOUT):
            raise ValueError(f"sound_timeout must be up to {MAX_TIMEOUT:g} seconds, got {self.sound_timeout}")
        if self.sound_from is not None:
            maker_name(self.sound_from)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """Sizes on the way: of the video, after the network, after resizing, after cropping; (height, width) each."""

    source: tuple[int, int]
    enlarged: tuple[int, int]
    resized: tuple[int, int]
    final: tuple[int, int]

    @classmethod
    def of(cls, options: Finish, height: int, width: int, even: bool = True) -> "Geometry":
        """Of a video of this size.

        Args:
          even: sides of the result are even, as most encoders need.
        Raises: ValueError for sizes beyond bounds.
        """
        scaled = options.scale * height, options.scale * width
        step = 2 if even else 1
        if options.size is None:
            final = tuple(max(side // step * step, 1) for side in scaled)
            resized = scaled
        else:
            resized, final = _fitted(options, scaled, step)
        _check_side(max(final), min(final))
        _check_side(max(scaled), min(scaled))
        return cls(source=(height, width), enlarged=scaled, resized=resized, final=(final[0], final[1]))

    @property
    def crop(self) -> tuple[int, int]:
        """Rows and columns that are cut off before what is kept."""
        return (self.resized[0] - self.final[0]) // 2, (self.resized[1] - self.final[1]) // 2


def _fitted(options: Finish, scaled: tuple[int, int], step: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Sizes after resizing and after cropping."""
    assert options.size is not None
    sides: Any = sorted(parse_size(options.size))
    box = (sides[0], sides[1]) if scaled[0] <= scaled[1] else (sides[1], sides[0])
    ratios = [Fraction(side, own) for side, own in zip(box, scaled, strict=True)]
    lost = 1 - min(ratios) / max(ratios)
    if options.fit == "crop" or (options.fit == "auto" and lost <= CROPPED):
        factor = max(ratios)
        resized = tuple(max(math.ceil(own * factor), side) for own, side in zip(scaled, box, strict=True))
        return (resized[0], resized[1]), box
    factor = min(ratios)
    kept = [max(round(own * factor / step) * step, step) for own in scaled]
    return (kept[0], kept[1]), (kept[0], kept[1])


def _check_side(longest: int, shortest: int) -> None:
    if not 1 <= shortest <= longest <= MAX_SIDE:
        raise ValueError(f"a finished video has sides of 1 to {MAX_SIDE} pixels, this would have {shortest}x{longest}")
