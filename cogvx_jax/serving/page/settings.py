"""From what is in the form to a request, and back: of a job, or of a video that somebody drops."""

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cogvx_jax.json_files import Json
from cogvx_jax.pipelines.option_json import as_json
from cogvx_jax.pipelines.options import NEEDS, Options
from cogvx_jax.pipelines.record import Record
from cogvx_jax.serving.asking import YES, Asked, read_asked
from cogvx_jax.serving.bodies import Fields, Upload
from cogvx_jax.serving.files import TAKES, most_bytes
from cogvx_jax.serving.jobs import SOUND, Job
from cogvx_jax.serving.page.fields import FINISH, OF_FINISH, SEED, SIZE, WITH_AUDIO, Field
from cogvx_jax.serving.page.prompts import with_movement
from cogvx_jax.serving.page.words import say
from cogvx_jax.serving.refusals import Refused
from cogvx_jax.serving.service import Service

MOST = 4  # videos at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """What stands in the form.

    movement: a key of `prompts.MOVEMENTS`.
    values: field -> value as its widget has it; None and "" are the model's own, and so is what stood there at first.
    files: option -> path of what was uploaded.
    weights: of the LoRAs, text.
    seed: None is a new one.
    """

    prompt: str
    movement: str | None = None
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    files: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    loras: Sequence[str] = ()
    weights: str = ""
    seed: int | None = None
    count: int = 1


def asked_of(form: Form, fields: Sequence[Field], service: Service, language: str) -> Asked:
    """What a form asks for, checked as the API checks its fields. Raises: Refused."""
    prompt = with_movement(form.prompt, form.movement)
    if not prompt.strip():
        raise Refused("missing_required_parameter", say("refused.no prompt", language), "prompt")
    files = {option: _upload(option, path) for option, path in form.files.items() if path}
    given = {field.name: form.values.get(field.name) for field in fields}
    values = {field.name: given[field.name] for field in fields if _is_given(field, given[field.name], files)}
    values |= {"prompt": prompt, **files}
    if form.loras:
        pairs = zip(form.loras, weights_of(form, language), strict=True)
        values["loras"] = [{"name": name, "weight": weight} for name, weight in pairs]
    if form.seed is not None:
        values[SEED] = form.seed
    return read_asked(Fields(values, textual=True), service.spec, **service.rules.of_reading | {"fetches": False})


def _is_given(field: Field, value: Any, files: Mapping[str, Any]) -> bool:
    if value in (None, "") or (field.kind == YES and not value):
        return False
    if field.name in NEEDS and not set(NEEDS[field.name]) & files.keys():  # it does nothing without them
        return False
    return value != field.shown  # the model's own: a LoRA of few steps may say otherwise then


def _upload(option: str, path: str) -> Upload:
    """A file that was uploaded. Raises: Refused for one that is larger than it may be, before it is read."""
    size, most = Path(path).stat().st_size, most_bytes((option,))
    if size > most:
        raise Refused("body_too_large", f"{option} has {size:,} bytes, of which at most {most:,} are taken", option)
    return Upload(Path(path).read_bytes())


def weights_of(form: Form, language: str) -> list[float]:
    """A weight for each LoRA. Raises: Refused."""
    words = [word.strip() for word in form.weights.replace("，", ",").split(",")] if form.weights.strip() else []
    try:
        found = [float(word or 1) for word in words]
    except ValueError:
        found = [math.nan]
    if not all(map(math.isfinite, found)):
        raise Refused("invalid_value", say("refused.weights", language, given=form.weights[:60]), "loras")
    return [*found, *[1.0] * len(form.loras)][: len(form.loras)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filled:
    """What the form becomes.

    values: field -> what its widget shows.
    files: option -> the file that a job was made of.
    notes: what could not be taken, sentences.
    """

    prompt: str
    seed: int
    values: Mapping[str, Any]
    loras: tuple[tuple[str, float], ...] = ()
    files: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def of_job(job: Job, fields: Sequence[Field], service: Service) -> Filled:
    """The settings of a job that was made here, its files too."""
    options, files = dict(job.asked["options"]) | {WITH_AUDIO: SOUND in job.asked}, dict[str, Path]()
    values, _ = _values(options, fields)
    for option, name in job.asked["files"].items():
        with contextlib.suppress(FileNotFoundError):
            files[option] = service.store.fetch(job.id, name)
    loras = tuple((name, float(weight)) for name, weight in job.asked["loras"])
    return Filled(prompt=job.asked["prompt"], seed=options[SEED], values=values, loras=loras, files=files)


def of_record(record: Record, fields: Sequence[Field], service: Service, language: str) -> Filled:
    """The settings that a video tells of. What is not on the page, or not here, is noted.

    Raises: ValueError or TypeError for options that cannot be: anybody may have written the record.
    """
    own, theirs = as_json(Options()), as_json(Options(**record.options))
    options = {name: value for name, value in theirs.items() if value not in (None, own.get(name), [], ())}
    values, left = _values(options, fields)
    loras, unknown = _loras(record, service)
    files = [name for name in left if name in TAKES]
    others = [name for name in left if name not in TAKES and name != SEED]
    notes = [say("loaded", language)]
    if record.model["name"] not in service.names:
        notes.append(say("loaded.model", language, theirs=str(record.model["name"])[:80], ours=service.model))
    if files:
        notes.append(say("loaded.files", language, names=", ".join(files)))
    if others + unknown:
        notes.append(say("loaded.not", language, names=", ".join(others + unknown)))
    seed = theirs[SEED]
    how: dict[str, Any] = dict(values=values, loras=loras, notes=tuple(notes))
    return Filled(prompt=record.prompt, seed=seed if isinstance(seed, int) else 0, **how)


def _values(options: Json, fields: Sequence[Field]) -> tuple[dict[str, Any], list[str]]:
    """What the widgets of options show, and the options that have none."""
    found: dict[str, Any] = {}
    options = _spread(options)
    for field in fields:
        value = options.get(field.name)
        if field.name == SIZE and isinstance(value, str | list | tuple):
            height, width = value.split("x") if isinstance(value, str) else value
            value = f"{width}x{height}"
        found[field.name] = field.shown if value is None else str(value) if _is_text(field) else value
    return found, [name for name in options if name not in found]


def _spread(options: Json) -> Json:
    """Options with those fields in place of `finish` that the page has; what else it says stays there."""
    finish = options.get(FINISH)
    if not isinstance(finish, Mapping):
        return options
    rest = {key: value for key, value in finish.items() if key not in OF_FINISH}
    shown = {OF_FINISH[key]: value for key, value in finish.items() if key in OF_FINISH}
    others = {name: value for name, value in options.items() if name != FINISH}
    return others | shown | ({FINISH: rest} if rest else {})


def _is_text(field: Field) -> bool:
    """Whether the form shows a number as text: one that may be left empty."""
    return field.is_number and not field.own and not field.is_part


def _loras(record: Record, service: Service) -> tuple[tuple[tuple[str, float], ...], list[str]]:
    """Those of a record's LoRAs that are here by name, and the others' names."""
    here, found, unknown = service.adapters.names(), [], []
    for one in record.model["loras"]:
        name = Path(str(one["source"])).name.removesuffix(".safetensors")
        if name in here:
            found.append((name, float(one["weight"])))
        else:
            unknown.append(f"LoRA {name[:60]}")
    return tuple(found), unknown
