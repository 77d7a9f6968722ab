"""The fields of the page: those of the API that the served model has a use for, each with its kind, range and words.

They are read off the API's own table, so that an option which the API gets is on the page, too.
"""

import dataclasses
import functools
import inspect
import re
from typing import Any

from cogvx_jax.configs import ModelSpec
from cogvx_jax.finishing.options import SCALES
from cogvx_jax.pipelines.inputs import KINDS as MODEL_KINDS
from cogvx_jax.pipelines.options import DIFFUSERS_NAMES, NEEDS, Options, Sampling
from cogvx_jax.serving import schemas
from cogvx_jax.serving.asking import NUMBER, NUMBERS, OPTIONS, SOUND, TEXT, WHOLE, YES, is_legal_size
from cogvx_jax.serving.composed import COMPOSED, WHOLE_FILES
from cogvx_jax.serving.files import CLIP, TAKES

KINDS = {kind: kind for kind in (TEXT, WHOLE, NUMBER, YES)} | {NUMBERS: NUMBER}  # of the API -> of a field: one number
SIZE, SEED = "size", "seed"
# Where a field stands that is no finer point.
PLACES = {
    "negative_prompt": "prompt",
    SIZE: "video",
    "frames": "video",
    "steps": "video",
    "guidance_scale": "video",
    "sampler": "video",
    "strength": "clip",
    "mask_dilation": "clip",
    "control_strength": "clip",
    "control_start": "clip",
    "control_end": "clip",
}
FINER = "finer"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """One field of the form.

    name: of the option and of the API's field.
    kind: of `KINDS`.
    own: what the model takes where nothing is asked for, as text; "" is nothing.
    help: in English, of the option.
    choices: () is whatever the kind takes.
    free: other values than the choices are taken, too.
    """

    name: str
    kind: str
    place: str
    own: str = ""
    help: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    free: bool = False

    @property
    def is_number(self) -> bool:
        return self.kind in (WHOLE, NUMBER)

    @property
    def is_part(self) -> bool:
        """Whether it is a part of something, from 0 to 1."""
        return self.low == 0 and self.high == 1

    @property
    def shown(self) -> Any:
        """What stands in the form at first."""
        if self.kind == YES:
            return False
        if self.is_number and (self.own or self.is_part):
            return int(self.own) if self.kind == WHOLE else float(self.own or 0)
        return self.own


FINISH = "finish"  # the place of what is done with the video afterwards
WITH_AUDIO = SOUND[0]
FINISHING = (
    Field(name="upscaling_scale", kind=WHOLE, place=FINISH, choices=tuple(str(scale) for scale in SCALES if scale > 1)),
    Field(name="output_fps", kind=NUMBER, place=FINISH),
    Field(name=WITH_AUDIO, kind=YES, place=FINISH),
)
OF_FINISH = {"scale": "upscaling_scale", "fps": "output_fps"}  # keys of the option -> their fields


def fields_of(spec: ModelSpec) -> tuple[Field, ...]:
    """The fields for a model, but for the prompt, the seed, LoRAs and files."""
    names = [name for name in OPTIONS if name not in DIFFUSERS_NAMES and name != SEED]
    known = [name for name in names if OPTIONS[name] in KINDS and _is_of_use(spec, name)]
    return (_size(spec), *(_field(spec, name) for name in known), *FINISHING)


def files_of(spec: ModelSpec) -> dict[str, bool]:
    """Options of a model that are one file, and whether they are clips."""
    single = {*TAKES} - {*COMPOSED} | {*WHOLE_FILES}
    known = [option for option in MODEL_KINDS[spec.kind].inputs if option in single]
    return {option: CLIP in TAKES[option] for option in known}


def _is_of_use(spec: ModelSpec, name: str) -> bool:
    return name not in NEEDS or bool(set(NEEDS[name]) & set(MODEL_KINDS[spec.kind].inputs))


def _size(spec: ModelSpec) -> Field:
    """Width first, as in the API."""
    own = spec.defaults
    sides = dict.fromkeys([(own.height, own.width), (own.width, own.height), (min(own.height, own.width),) * 2])
    choices = tuple(f"{width}x{height}" for height, width in sides if is_legal_size(spec, height, width))
    about: dict[str, Any] = dict(own=f"{own.width}x{own.height}", help=_helps()[SIZE])
    return Field(name=SIZE, kind=TEXT, place=PLACES[SIZE], choices=choices, free=True, **about)


def _field(spec: ModelSpec, name: str) -> Field:
    schema = schemas.field_of(name)
    schema = schema.get("anyOf", [schema])[0]
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    about: dict[str, Any] = dict(low=low, high=high, choices=tuple(schema.get("enum", ())))
    return Field(
        name=name,
        kind=KINDS[OPTIONS[name]],
        place=PLACES.get(name, FINER),
        own=_own(spec, name),
        help=_helps().get(name, ""),
        **about,
    )


def _own(spec: ModelSpec, name: str) -> str:
    """What an empty field means, of options that have a number or a word of their own."""
    own = spec.defaults
    of_model = {
        "frames": own.num_frames,
        "steps": own.num_inference_steps,
        "guidance_scale": own.guidance_scale,
        "sampler": own.sampler,
        "fps": own.fps,
        "strength": 0.8,
    }
    found = of_model.get(name, getattr(Options, name, None))
    return "" if found is None or isinstance(found, bool) else f"{found:g}" if isinstance(found, float) else str(found)


@functools.cache
def _helps() -> dict[str, str]:
    """The help of each option, of the docstrings that the command line shows, too."""
    found: dict[str, str] = {}
    for of in (Sampling, Options):
        args = (inspect.getdoc(of) or "").partition("Args:\n")[2].partition("\nRaises:")[0]
        for name, text in re.findall(r"^ {2}(\w+): (.*(?:\n {4}.*)*)", args, flags=re.M):
            found[name] = " ".join(text.split())
    return found
