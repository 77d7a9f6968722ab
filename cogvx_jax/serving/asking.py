"""From the fields of a request, in the words of several vendors, to options of a generation.

Vendors' sizes and durations become ones that the model makes. What a field would have to do and cannot is refused: no
field is passed over.
"""

import dataclasses
import json
import math
import re
import secrets
from collections.abc import Mapping
from typing import Any

from cogvx_jax.configs import ModelSpec
from cogvx_jax.data.comments import MAX_BYTES
from cogvx_jax.json_files import quoted
from cogvx_jax.pipelines.options import CHECKS, DIFFUSERS_NAMES, Sampling, perhaps
from cogvx_jax.pipelines.request import MAX_FRAMES, check_sampling, frame_unit
from cogvx_jax.serving.bodies import UPLOADS, Fields, Upload
from cogvx_jax.serving.composed import COMPOSED, MAX_PROMPT, Files, check_text, read_composed
from cogvx_jax.serving.files import TAKES
from cogvx_jax.serving.finishing import FIELDS as FINISH_FIELDS
from cogvx_jax.serving.finishing import FINISH, INSTALL, enlarges, read_finish, to_size
from cogvx_jax.serving.refusals import Refused
from cogvx_jax.serving.weighted import read_loras

# Of the vendors' forms, width first. Asked for one of these, a user means a shape, not the model's own pixels.
SIZES = (
    *("720x1280", "1280x720", "1024x1792", "1792x1024"),  # OpenAI
    *("1024x1024", "1920x1080", "1080x1920", "2048x1080", "3840x2160", "720x480", "1280x960", "960x1280"),  # Zhipu
)
RATIOS = {"16:9": "1280x720", "9:16": "720x1280", "1:1": "1024x1024"}
MAX_ENHANCED = 4_000  # of a prompt that a language model is to rewrite, as in `prompting.enhance`
MAX_SECONDS = 3600.0
TEXT, WHOLE, NUMBER, YES = "string", "integer", "number", "boolean"  # of JSON schemas
NUMBERS = "numbers"  # one, or a list of them
OPTIONS = {  # field, which is an option of `pipelines.options` or diffusers' name of one -> its kind
    "num_frames": WHOLE,
    "num_inference_steps": WHOLE,
    "frames": WHOLE,
    "steps": WHOLE,
    "guidance_scale": NUMBER,
    "negative_prompt": TEXT,
    "seed": WHOLE,
    "fps": NUMBER,
    "sampler": TEXT,
    "reuse": TEXT,
    "guidance": TEXT,
    "guider": TEXT,
    "enhance": NUMBER,
    "windows": TEXT,
    "positions": TEXT,
    "image_noise": NUMBER,
    "mask_dilation": WHOLE,
    "strength": NUMBER,
    "control_strength": NUMBERS,
    "control_start": NUMBER,
    "control_end": NUMBER,
    "use_dynamic_cfg": YES,
    "tiling": YES,
    "strips": WHOLE,
}
FILES: dict[str, tuple[str, ...]] = {  # field -> options that its file may become
    "input_reference": ("image", "video"),
    "image_reference": ("image",),
    "video_reference": ("video",),
    "reference_url": ("image", "video"),
    **{option: (option,) for option in TAKES if option not in COMPOSED},
}
# Fields of other servers -> the value with which they ask for nothing, and why another is refused.
NOTHING: dict[str, tuple[Any, str]] = {
    "n": (1, "one video is made for a request"),
    "sound_duration": (None, "sound is as long as the video"),
    "watermark_enabled": (False, "videos get no watermark here"),
    "enable_teacache": (False, "say it as reuse, such as teacache:0.2; it is lossy"),
    "guidance_scale_2": (None, "these models have one transformer"),
    "true_cfg_scale": (None, "say it as guidance_scale"),
    "boundary_ratio": (None, "these models have one transformer"),
    "flow_shift": (None, "these models are no flow models"),
    "output_quality": (None, "videos are written in one quality"),
    "output_compression": (None, "videos are written in one quality"),
    "output_path": (None, "files of the server are not written by name"),
    "generator_device": (None, "noise does not depend on the device here"),
    "control_reference": (None, "say it as control"),
    "control_type": (None, "say it as control, a video of what is to be followed"),
    "response_format": (None, "the answer is JSON, and the video is an mp4"),
}
SHAPES = ("size", "width", "aspect_ratio")  # fields that say it
SOUND = ("with_audio", "generate_sound")  # fields that ask for it
OTHERS = (
    *("model", "prompt", "seconds", "size", "width", "height", "aspect_ratio", "lora", "loras", "user", "workflow"),
    *(UPLOADS, FINISH, *FINISH_FIELDS, *SOUND),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What a request asks for.

    options: of `pipelines.options`, as JSON.
    files: label -> suffix and bytes. The label is the option that the file is, or a name beside it: label and suffix
      are a file's name in the job's folder, which stands in `options` then.
    loras: names with weights; None: those that are active for all.
    sound: the workers' maker of sound makes some for the video.
    seeded: the seed is the client's, not drawn here.
    notes: where the video will differ from what was asked, sentences.
    fields: option -> the field that asked for it.
    workflow: JSON text of ComfyUI's graph, which the video carries beside its record.
    """

    prompt: str
    options: dict[str, Any]
    files: dict[str, tuple[str, bytes]] = dataclasses.field(default_factory=dict)
    loras: tuple[tuple[str, float], ...] | None = None
    sound: bool = False
    user: str | None = None
    seeded: bool = True
    notes: tuple[str, ...] = ()
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    workflow: str | None = None


def read_asked(
    fields: Fields, spec: ModelSpec, *, strict: bool = False, fetches: bool = False, sounds: bool = False
) -> Asked:
    """What fields ask of a model, each checked by itself.

    Args:
      strict: refuse the vendors' sizes and durations that the model does not make.
      fetches: files may be addresses of the open internet.
      sounds: there is a maker of sound.
    Raises: Refused.
    """
    values = _known(fields)
    prompt = check_prompt(values.get("prompt"))
    given = Files(_uploads(values.get(UPLOADS)), fetches)
    options, notes = _options(fields, values) | read_composed(values, given), list[str]()
    files = _files(values, given) | given.stored
    given.check_used()
    finish = _finish(fields, values, spec, options)
    if (size := _size(fields, values)) is not None:
        larger = None if {"size", "scale"} & finish.keys() else _enlarged(spec, size, notes)
        options["size"] = fit_size(spec, size, strict and larger is None, notes if larger is None else [])
        finish |= larger or {}
    if finish:
        options[FINISH] = finish
    if "seconds" in values:
        seconds = read_seconds(values["seconds"])
        if "frames" in options:
            _check_duration(spec, options, seconds, strict, notes)
        else:
            options |= fit_frames(spec, seconds, options.get("fps"), strict, notes)
    seeded = "seed" in options
    options.setdefault("seed", secrets.randbelow(2**31))  # a job that is begun anew makes the same video
    user = values.get("user")
    if user is not None and not isinstance(user, str):
        raise Refused("invalid_value", f"user must be text, got {quoted(user)}", "user")
    named = {DIFFUSERS_NAMES.get(field, field): field for field in (*OPTIONS, *COMPOSED) if field in values}
    if (of_finish := next((field for field in (FINISH, *FINISH_FIELDS) if field in values), None)) is not None:
        named[FINISH] = of_finish
    if (shape := next((field for field in SHAPES if field in values), None)) is not None:
        named["size"] = shape
    how: dict[str, Any] = dict(user=user, notes=tuple(notes), seeded=seeded, fields=named)
    how["workflow"] = _workflow(values.get("workflow"))
    how["sound"] = _sound(fields, values, sounds)
    return Asked(prompt=prompt, options=options, files=files, loras=read_loras(values), **how)


def check_prompt(prompt: Any, most: int = MAX_PROMPT, code: str = "invalid_value") -> str:
    """Raises: Refused."""
    if prompt is None:
        raise Refused("missing_required_parameter", "prompt is missing: say what the video shows", "prompt")
    if not isinstance(prompt, str):
        raise Refused("invalid_value", f"prompt must be text, got {quoted(prompt)}", "prompt")
    if not prompt.strip():
        raise Refused("invalid_value", "prompt is empty: say what the video shows", "prompt")
    check_text(prompt, "prompt", most, code)
    return prompt


def _sound(fields: Fields, values: Mapping[str, Any], there: bool) -> bool:
    """Whether sound is asked for. Raises: Refused for what is no such answer, and where nobody makes sound."""
    given = {name: _plain(name, values[name], YES, fields.textual) for name in SOUND if name in values}
    for name, value in given.items():
        if not isinstance(value, bool):
            raise Refused("invalid_value", f"{name} must be {_WORDS[YES]}, got {quoted(value)}", name)
        if value and not there:
            raise Refused("invalid_value", f"{name} cannot be had: this server has no maker of sound", name)
    if len(set(given.values())) > 1:
        raise Refused("exclusive_parameters", f"{' and '.join(SOUND)} say the same; give one", SOUND[0])
    return True in given.values()


def _workflow(value: Any) -> str | None:
    """Raises: Refused."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise Refused("invalid_value", f"workflow must be ComfyUI's graph, an object, got {quoted(value)}", "workflow")
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if len(text) > MAX_BYTES or "\\u0000" in text:
        said = f"workflow must have at most {MAX_BYTES:,} characters, none of them NUL, got {len(text):,}"
        raise Refused("invalid_value", said, "workflow")
    return text


def _known(fields: Fields) -> dict[str, Any]:
    """The fields that ask for something. Raises: Refused for one that is not known, or cannot be had."""
    found = {}
    for name, value in fields.values.items():
        if name in NOTHING:
            harmless, why = NOTHING[name]
            given = _plain(name, value, _KIND_OF[type(harmless)], fields.textual)
            if given != harmless or type(given) is not type(harmless):
                raise Refused("invalid_value", f"{name} cannot be had: {why}", name)
        elif name in OPTIONS or name in FILES or name in COMPOSED or name in OTHERS:
            found[name] = value
        else:
            known = (*OTHERS, *OPTIONS, *FILES, *COMPOSED)
            said = f"unknown field {name[:60]!r}{perhaps([name], known)}; the known ones are {', '.join(known)}"
            raise Refused("unknown_parameter", said, name[:60])
    return found


def _options(fields: Fields, values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field, kind in OPTIONS.items():
        if field not in values:
            continue
        option = DIFFUSERS_NAMES.get(field, field)
        if option in found:
            raise Refused("exclusive_parameters", f"{field} says the same as {option}; give one", field)
        value = _plain(field, values[field], kind, fields.textual)
        found[option] = _checked(field, option, value)
    return found


def _finish(fields: Fields, values: Mapping[str, Any], spec: ModelSpec, options: Mapping[str, Any]) -> dict[str, Any]:
    """The option `finish` that fields ask for. Raises: Refused."""
    given = {
        name: _plain(name, values[name], kind, fields.textual) for name, kind in FINISH_FIELDS.items() if name in values
    }
    given |= {FINISH: values[FINISH]} if FINISH in values else {}
    for name, value in given.items():
        right = KINDS_OF.get(FINISH_FIELDS.get(name, ""))
        if right is not None and type(value) not in right:
            said = f"{name} must be {_WORDS.get(FINISH_FIELDS[name], 'text')}, got {quoted(value)}"
            raise Refused("invalid_value", said, name)
    return read_finish(given, options.get("fps") or spec.defaults.fps)


def _enlarged(spec: ModelSpec, text: Any, notes: list[str]) -> dict[str, Any] | None:
    """What makes a vendor's size of the model's own; None where it is no such size, or nothing here enlarges."""
    if text not in SIZES:
        return None
    width, height = map(int, text.split("x"))
    found = to_size(spec, width, height)
    if (
        found is None
        or is_legal_size(spec, height, width)
        and width * height <= spec.defaults.width * spec.defaults.height
    ):
        return None
    if not enlarges():
        notes.append(f"what enlarges videos is not installed on the server: {INSTALL} brings it")
        return None
    return found


def _plain(field: str, text: Any, kind: str, textual: bool) -> Any:
    """A field as a value of its kind, also of a form, where all is text. Raises: Refused."""
    if kind == WHOLE and isinstance(text, float) and text.is_integer():  # JSON has one kind of numbers
        return int(text)
    if kind == NUMBERS and isinstance(text, str | list):
        several = text if isinstance(text, list) else text.split(",")
        found = [_plain(field, one, NUMBER, textual) for one in several]
        return found if isinstance(text, list) or len(found) > 1 else found[0]
    if not textual or not isinstance(text, str) or kind == TEXT:
        return text
    if kind == YES and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind == WHOLE and re.fullmatch(r"[+-]?[0-9]{1,20}", text):
        return int(text)
    if kind == NUMBER and re.fullmatch(r"[+-]?([0-9]{1,20}\.?[0-9]{0,20}|\.[0-9]{1,20})([eE][+-]?[0-9]{1,2})?", text):
        return float(text)
    raise Refused("invalid_value", f"{field} must be {_WORDS[kind]}, got {text[:60]!r}", field)


KINDS_OF: dict[str, tuple[type, ...]] = {YES: (bool,), WHOLE: (int,), NUMBER: (int, float), TEXT: (str,)}
_KIND_OF = {bool: YES, int: WHOLE, type(None): TEXT}
_WORDS = {YES: "true or false", WHOLE: "a whole number", NUMBER: "a number", NUMBERS: "a number or a list of them"}


def _checked(field: str, option: str, value: Any) -> Any:
    """The value, as given, if the option takes it. Raises: Refused."""
    if isinstance(value, dict if OPTIONS[field] == NUMBERS else list | dict) or (
        option == "seed" and isinstance(value, str)
    ):
        raise Refused(
            "invalid_value", f"{field} must be {_WORDS.get(OPTIONS[field], 'text')}, got {quoted(value)}", field
        )
    try:
        CHECKS[option](field, value)
    except (ValueError, OverflowError) as error:
        raise Refused("invalid_value", str(error), field) from None
    return value


def _uploads(given: Any) -> dict[str, bytes]:
    """Files of a form by the names that they were sent with. Raises: Refused."""
    several = given if isinstance(given, list) else [] if given is None else [given]
    found: dict[str, bytes] = {}
    for one in several:
        if not isinstance(one, Upload):
            raise Refused("invalid_value", f"{UPLOADS} are those of a form; in JSON a file is a data URL", UPLOADS)
        if not one.name or one.name in found:
            raise Refused("invalid_value", f"each of {UPLOADS} needs a name of its own, got {one.name[:60]!r}", UPLOADS)
        found[one.name] = one.data
    return found


def _files(values: Mapping[str, Any], given: Files) -> dict[str, tuple[str, bytes]]:
    found: dict[str, tuple[str, bytes]] = {}
    for field, options in FILES.items():
        if field in values:
            option, suffix, data = given.take(values[field], field, options)
            if option in found:
                raise Refused(
                    "exclusive_parameters", f"{field} is a second {option.replace('_', ' ')}; give one", field
                )
            found[option] = suffix, data
    return found


def _size(fields: Fields, values: Mapping[str, Any]) -> str | None:
    """The size that is asked for, "WIDTHxHEIGHT". Raises: Refused."""
    given = [name for name in ("size", "aspect_ratio") if name in values]
    sides = [name for name in ("width", "height") if name in values]
    if len(given) + bool(sides) > 1:
        raise Refused("exclusive_parameters", f"give {given[0]} or {(given + sides)[-1]}, not both", given[0])
    if "size" in given:
        return values["size"]
    if "aspect_ratio" in given:
        if values["aspect_ratio"] not in RATIOS:
            said = f"aspect_ratio must be one of {', '.join(RATIOS)}, got {quoted(values['aspect_ratio'])}"
            raise Refused("invalid_value", said, "aspect_ratio")
        return RATIOS[values["aspect_ratio"]]
    if len(sides) == 1:
        raise Refused("missing_required_parameter", "give width and height, or neither", sides[0])
    if not sides:
        return None
    return f"{_side(fields, values, 'width')}x{_side(fields, values, 'height')}"


def _side(fields: Fields, values: Mapping[str, Any], name: str) -> int:
    value = _plain(name, values[name], WHOLE, fields.textual)
    if type(value) is not int or not 0 < value < 10**5:
        raise Refused("invalid_value", f"{name} must be a whole number of pixels, got {quoted(value)}", name)
    return value


def fit_size(spec: ModelSpec, text: Any, strict: bool, notes: list[str]) -> str:
    """The model's HEIGHTxWIDTH for a form's WIDTHxHEIGHT: of a vendor's size its shape, of others the pixels.

    Raises: Refused for what is no size, and with `strict` for a vendor's that the model does not make.
    """
    parts = re.fullmatch(r"([0-9]{1,5})[xX*]([0-9]{1,5})", text) if isinstance(text, str) else None
    if parts is None:
        raise Refused("invalid_value", f"size must be WIDTHxHEIGHT, such as 720x480, got {quoted(text)}", "size")
    width, height = int(parts[1]), int(parts[2])
    own = spec.defaults
    small = width * height <= own.width * own.height
    if f"{width}x{height}" not in SIZES or (small and is_legal_size(spec, height, width)):
        return f"{height}x{width}"
    if strict:
        said = f"{spec.name} makes videos of {own.width}x{own.height}, not {width}x{height}"
        raise Refused("invalid_value", said, "size")
    sides = sorted((own.height, own.width))
    tall = (sides[1], sides[0]) if height > width else (sides[0], sides[1])
    found = (
        tall if (height > width) != (own.height > own.width) and is_legal_size(spec, *tall) else (own.height, own.width)
    )
    notes.append(f"size {width}x{height} became {found[1]}x{found[0]}, which {spec.name} makes")
    return f"{found[0]}x{found[1]}"


def is_legal_size(spec: ModelSpec, height: int, width: int) -> bool:
    """Whether a model makes videos of so many pixels."""
    try:
        check_sampling(spec, Sampling(size=(height, width)))
    except ValueError:
        return False
    return True


def read_seconds(value: Any) -> float:
    """Raises: Refused."""
    text = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,9})?", text):
        raise Refused("invalid_value", f"seconds must be a number such as 4, got {quoted(value)}", "seconds")
    seconds = float(text)
    if not 0 < seconds <= MAX_SECONDS:
        raise Refused("invalid_value", f"seconds must be above 0 and at most {MAX_SECONDS:g}, got {text}", "seconds")
    return seconds


def fit_frames(spec: ModelSpec, seconds: float, fps: Any, strict: bool, notes: list[str]) -> dict[str, int]:
    """The option `frames` for a duration: the nearest that the model makes, at most as many as it is for.

    Args:
      fps: that was asked for; None is the model's own.
    Raises: Refused, with `strict` for more than the model makes.
    """
    own, unit, rate = spec.defaults.num_frames, frame_unit(spec), float(fps or spec.defaults.fps)
    wanted = max(round((min(seconds * rate, MAX_FRAMES) - 1) / unit), 0) * unit + 1
    frames = own if spec.transformer.position == "rope+learned" else min(max(wanted, min(unit + 1, own)), own)
    if math.isclose(frames / rate, seconds, rel_tol=0.01):
        return {"frames": frames}
    if strict and abs(frames - seconds * rate) > unit:
        said = f"{spec.name} makes videos of {own / rate:g} seconds, not {seconds:g}"
        raise Refused("invalid_value", said, "seconds")
    notes.append(f"{seconds:g} seconds became {frames / rate:g}, {frames} frames, which {spec.name} makes")
    return {"frames": frames}


def _check_duration(
    spec: ModelSpec, options: Mapping[str, Any], seconds: float, strict: bool, notes: list[str]
) -> None:
    """Notes that frames decide where a duration beside them says something else.

    Raises: Refused, with `strict` in place of the note.
    """
    frames, fps = options["frames"], options.get("fps")
    nearest = fit_frames(spec, seconds, fps, False, [])["frames"]
    if frames == nearest or math.isclose(frames / float(fps or spec.defaults.fps), seconds, rel_tol=0.01):
        return
    if strict:
        said = f"{frames} frames are not {seconds:g} seconds; give num_frames or seconds"
        raise Refused("exclusive_parameters", said, "seconds")
    notes.append(frames_decide(frames, seconds))


def frames_decide(frames: int, seconds: float) -> str:
    """The note of a request that asks for both."""
    return f"num_frames and seconds are both given, and num_frames decides: {frames} frames, not {seconds:g} seconds"
