"""How a video is to be finished once it is made: `Finish` and `Delivery` in one value, of text or of a mapping.

It is an option of a generation, so nothing here needs jax or the pipelines.
"""

import dataclasses
import difflib
import os
import types
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args, get_type_hints

from cogvx_jax.finishing.options import Delivery, Finish, Geometry
from cogvx_jax.finishing.packaged import INTERPOLATORS, UPSCALERS, find_weights
from cogvx_jax.finishing.rates import frame_count, levels

# Fields of `Delivery`: frames that are made have no sound to keep; records have a flag. Who makes sound is no option of
# a video: lines of a prompts file and records may be a stranger's, and none of them runs a function or asks an address.
NOT_HERE = ("keep_sound", "record", "sound_from", "sound_prompt", "sound_seed", "sound_timeout")
EXAMPLE = "scale=2,fps=32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finishing:
    """What `cogvx finish` would be told of a video, before that is made."""

    pictures: Finish = Finish()  # noqa: RUF009
    file: Delivery = Delivery()  # noqa: RUF009

    @property
    def as_json(self) -> dict[str, Any]:
        """What is not as it is by default; `parse_finishing` reads it back."""
        file = {field.name: getattr(self.file, field.name) for field in dataclasses.fields(Delivery)}
        own = {name: value for name, value in file.items() if value != getattr(Delivery, name)}
        return self.pictures.as_json | {
            name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in own.items()
        }

    def __str__(self) -> str:
        return ",".join(f"{name}={_words(value)}" for name, value in self.as_json.items())

    def check(self, height: int, width: int, fps: Fraction) -> None:
        """Checks that a video of this size and rate can be finished here.

        Raises: ValueError for sizes and rates that cannot be; FileNotFoundError for weights or sound that are not here.
        """
        self.geometry(height, width)
        self.weights(fps)
        if self.file.audio is not None and not os.path.isfile(self.file.audio):
            raise FileNotFoundError(f"there is no file {self.file.audio}, which finish names as audio")

    def heard(self, maker: str, prompt: str, seed: int) -> "Finishing":
        """The same with sound that is made. Raises: ValueError where a file's is asked for, or for no such maker."""
        if self.file.audio is not None:
            raise ValueError(f"finish names {self.file.audio} as audio, and sound_from makes another; give one of them")
        made: dict[str, Any] = {"sound_from": maker, "sound_prompt": prompt, "sound_seed": seed}
        return dataclasses.replace(self, file=dataclasses.replace(self.file, **made))

    def geometry(self, height: int, width: int, *, even: bool = True) -> Geometry:
        """Sizes on the way of a video of this size. Raises: ValueError."""
        return Geometry.of(self.pictures, height, width, even)

    def rate(self, fps: Fraction) -> Fraction:
        """Frames a second of what comes out."""
        return self.pictures.rate or fps

    def count(self, frames: int, fps: Fraction) -> int:
        """Frames of what comes out."""
        return frame_count(frames, fps, self.rate(fps), self.pictures.hold)

    def weights(self, fps: Fraction) -> dict[str, Path]:
        """The files of the networks that a video of this rate needs. Raises: ValueError; FileNotFoundError."""
        found = {}
        if self.pictures.scale > 1:
            found["upscaler"] = find_weights(self.pictures.upscaler, UPSCALERS)
        if levels(fps, self.rate(fps)):
            found["interpolator"] = find_weights(self.pictures.interpolator, INTERPOLATORS)
        return found

    def with_paths(self, change: Callable[[Any], Any]) -> "Finishing":
        """The same with each file that it names changed."""
        own = {
            name: change(value)
            for name, known in (("upscaler", UPSCALERS), ("interpolator", INTERPOLATORS))
            if (value := getattr(self.pictures, name)) not in known
        }
        audio = self.file.audio
        file = self.file if audio is None else dataclasses.replace(self.file, audio=change(audio))
        return Finishing(pictures=dataclasses.replace(self.pictures, **own), file=file)


def parse_finishing(asked: str | Mapping[str, Any]) -> Finishing:
    """Of "scale=2,fps=32,codec=hevc", or of the same as a mapping, whose paths may hold commas.

    Raises: ValueError, one sentence.
    """
    values = _of_text(asked) if isinstance(asked, str) else dict(asked)
    kinds = {name: kind for name, (_, kind) in KINDS.items()}
    if unknown := [str(name) for name in values if name not in kinds]:
        near = difflib.get_close_matches(unknown[0][:60], kinds, 1)
        said = f" (meant is perhaps {near[0]})" if near else ""
        raise ValueError(f"finish knows no {unknown[0][:60]!r}{said}; it takes {', '.join(kinds)}")
    if not values:
        raise ValueError(f"finish is empty; say what is to be done, such as {EXAMPLE}")
    found: dict[type, dict[str, Any]] = {Finish: {}, Delivery: {}}
    for name, value in values.items():
        of, kind = KINDS[name]
        found[of][name] = _read(name, value, kind) if isinstance(asked, str) else _checked(name, value, kind)
    return Finishing(pictures=Finish(**found[Finish]), file=Delivery(**found[Delivery]))


def _kinds() -> dict[str, tuple[type, tuple[type, ...]]]:
    """Of each key the class that has it, and the kinds of its values."""
    found: dict[str, tuple[type, tuple[type, ...]]] = {}
    for of in (Finish, Delivery):
        for name, hint in get_type_hints(of).items():
            several = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
            kinds = tuple(one if isinstance(one, type) else str for one in several)  # a literal is text
            if name not in NOT_HERE:
                found[name] = of, tuple(one for one in kinds if one is not type(None))
    return found


KINDS = _kinds()


def _of_text(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, equals, value = (one.strip() for one in part.partition("="))
        if name in found:
            raise ValueError(f"finish says {name[:60]} twice; say it once")
        found[name] = value if equals else "true"
    return found


def _read(name: str, text: str, kinds: tuple[type, ...]) -> Any:
    """The value of a text. Raises: ValueError."""
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if str in kinds and text:
        return text
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                continue
    raise ValueError(_wrong(name, text, kinds))


def _checked(name: str, value: Any, kinds: tuple[type, ...]) -> Any:
    """The value, where it is of the kind. Raises: ValueError."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, Fraction) and float in kinds:
        return str(value) if str in kinds else float(value)
    fits = value is None or type(value) in kinds or (type(value) is int and float in kinds)
    if not fits:
        raise ValueError(_wrong(name, value, kinds))
    return value


def _wrong(name: str, value: Any, kinds: tuple[type, ...]) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return f"{name} of finish must be {words[kinds[0]]}, got {repr(value)[:60]}"


def _words(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
