"""How a video was made, as one JSON text that travels with it: written, read from strangers, compared.

`pipelines.provenance` makes the record of a video. Nothing here needs jax.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from typing import Any

from cogvx_jax.data.comments import MAX_BYTES, read_tags
from cogvx_jax.json_files import Json, parse_json, quoted
from cogvx_jax.pipelines.option_files import with_paths
from cogvx_jax.pipelines.option_json import as_json
from cogvx_jax.pipelines.options import Options

FORMAT = "cogvx record 1"  # changes when an older program could not read it
FINISHED = "cogvx record 2"  # of a video that was finished, which version 1 had no place for
FAMILY = "cogvx record "
MAX_ENTRIES = 10_000  # of a list or a section


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """How a video was made. Its fields are the keys of the JSON text, in their order.

    Args:
      prompts: of all videos that were made together.
      index: of this one among them.
      options: all of them, completed, by the keys of a prompts file; see `pipelines.option_json`.
      model: where it was loaded from and how it computes: source, name, given, dtype, quantize, memory, mesh, exact,
        one_program, programs, and its LoRAs with source, weight and digest.
      files: fingerprint of each part of the model; see `convert.fingerprints`.
      inputs: what was read: option, path, sha256, and of a video that has a record the id of that. Of a ControlNet and
        of Tora it is the fingerprint.
      versions: of the packages that decide about numbers and bytes.
      device: on which it was computed.
      enhanced: what the prompt was made of by a language model, `wish`, and the name of that, `llm`.
      decoded: flags of `cogvx decode`, where that decoded it in another way.
      finished: what `finishing` did with it afterwards, a step after the other: options, weights, versions.
    Raises: ValueError, one sentence, for fields of another kind.
    """

    prompts: tuple[str, ...]
    index: int = 0
    options: Mapping[str, Any]
    model: Mapping[str, Any]
    files: Mapping[str, str]
    inputs: tuple[Mapping[str, Any], ...] = ()
    versions: Mapping[str, str]
    device: Mapping[str, Any]
    enhanced: Mapping[str, str] = dataclasses.field(default_factory=dict)
    decoded: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    finished: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self):
        _check(self)

    @property
    def prompt(self) -> str:
        return self.prompts[self.index]

    @property
    def text(self) -> str:
        """The JSON text, the same for equal records."""
        fields = {"format": FINISHED if self.finished else FORMAT, **vars(self)}
        if not self.finished:
            del fields["finished"]
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))

    @property
    def id(self) -> str:
        """A short name of it."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def parse_record(text: str) -> Record:
    """The record that a text is. Raises: ValueError, one sentence that does not name the file."""
    if len(text) > MAX_BYTES:
        raise ValueError(f"it has {len(text):,} characters, and a record at most {MAX_BYTES:,}")
    found = parse_json(text)
    kind = found.pop("format", None)
    if kind not in (FORMAT, FINISHED):
        later = isinstance(kind, str) and kind.startswith(FAMILY)
        raise ValueError(f"it is {'of a version that is not known here' if later else 'no record of cogvx_jax'}")
    names = {field.name for field in dataclasses.fields(Record)} - ({"finished"} if kind == FORMAT else set())
    if found.keys() != names:
        raise ValueError(f"a record has {', '.join(sorted(names))}, and this one {quoted(sorted(found))}")
    for name in ("prompts", "inputs", "finished"):
        if isinstance(found.get(name), list):
            found[name] = tuple(found[name])
    return Record(**found)


def read_record(path: str | os.PathLike) -> Record:
    """The record that a video carries, of a file or a folder of PNGs.

    Raises: FileNotFoundError; ValueError, one sentence with the file's name, where there is none or it is damaged.
    """
    tags = read_tags(path)
    if tags.comment is None:
        raise ValueError(f"{str(path)!r} carries no record; it was made elsewhere, by --no-record, or changed since")
    try:
        return parse_record(tags.comment)
    except ValueError as error:
        raise ValueError(f"{str(path)!r} carries no record that can be read: {error}") from None


def differences(old: Record, new: Record) -> list[str]:
    """What decides about the bytes of a video and differs, a line each; where files lie does not count.

    Raises: ValueError for options of another kind, as `Options`.
    """
    lines = []
    for name in ("prompts", "index", "options", "model", "files", "versions", "device"):
        theirs, ours = (_decides(name, getattr(record, name)) for record in (old, new))
        if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
            lines += compared(name, theirs, ours)
        elif theirs != ours:
            lines.append(f"{name}: {quoted(theirs)} then, {quoted(ours)} now")
    if old.options.get("reuse") and old.model["name"] != new.model["name"]:  # there are numbers by a model's name
        lines += compared("model", {"name": old.model["name"]}, {"name": new.model["name"]})
    pairs = [[(one.get("option"), one.get("sha256")) for one in record.inputs] for record in (old, new)]
    return lines if pairs[0] == pairs[1] else [*lines, "inputs: other bytes now"]


def compared(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A line for each key of a section whose value differs."""
    keys = dict.fromkeys([*old, *new])
    return [
        f"{name} {key}: {_shown(old.get(key))} then, {_shown(new.get(key))} now"
        for key in keys
        if old.get(key) != new.get(key)
    ]


PLACE = "somewhere"  # in place of a path


def _decides(name: str, value: Any) -> Any:
    """A section without what only says where something lies, which hashes say better."""
    if name == "options":
        return as_json(with_paths(Options(**value), lambda path: PLACE))
    if name == "model":
        rest = {key: one for key, one in value.items() if key not in ("source", "name", "given")}
        rest["given"] = {key: one for key, one in value["given"].items() if not isinstance(one, str)}
        rest["loras"] = [{key: one for key, one in lora.items() if key != "source"} for lora in value["loras"]]
        return rest
    return value


def _shown(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) and value.isprintable() else quoted(value)


# What the values of each section may be.
_PLAIN = (str, int, float, bool, type(None))
MODEL = {  # key -> kinds of its value
    "source": (str, type(None)),
    "name": (str,),
    "given": (dict,),
    "dtype": (str,),
    "quantize": (str, type(None)),
    "memory": (str,),
    "mesh": (str,),
    "exact": (bool,),
    "one_program": (bool,),
    "programs": (bool,),
    "loras": (list,),
}
LORA = {"source": (str, type(None)), "weight": (float, int), "digest": (str,)}
INPUT = {"option": (str,), "path": (str, type(None)), "sha256": (str,), "record": (str, type(None))}


def _check(record: Record) -> None:
    prompts = record.prompts
    if not isinstance(prompts, tuple) or not prompts or not all(isinstance(one, str) for one in prompts):
        raise ValueError(f"prompts must be texts, got {quoted(prompts)}")
    if type(record.index) is not int or not 0 <= record.index < len(prompts):
        raise ValueError(f"index must be from 0 to {len(prompts) - 1}, got {quoted(record.index)}")
    for name in ("options", "files", "versions", "device", "enhanced", "decoded"):
        _check_section(name, getattr(record, name), (str,) if name in ("files", "versions", "enhanced") else None)
    _check_keys("model", record.model, MODEL)
    _check_section("given", record.model["given"], _PLAIN)
    for lora in record.model["loras"]:
        _check_keys("a LoRA", lora, LORA)
        if not math.isfinite(lora["weight"]):
            raise ValueError("the weight of a LoRA is not finite")
    if not isinstance(record.inputs, tuple) or len(record.inputs) > MAX_ENTRIES:
        raise ValueError(f"inputs must be a list, got {quoted(record.inputs)}")
    for one in record.inputs:
        _check_keys("an input", one, INPUT)
    if not isinstance(record.finished, tuple) or len(record.finished) > MAX_ENTRIES:
        raise ValueError(f"finished must be a list, got {quoted(record.finished)}")
    for step in record.finished:
        _check_section("a step of finished", step, None)


def _check_section(name: str, value: Any, kinds: tuple[type, ...] | None) -> None:
    if not isinstance(value, dict) or len(value) > MAX_ENTRIES:
        raise ValueError(f"{name} must be an object, got {quoted(value)}")
    wrong = [key for key, one in value.items() if kinds is not None and type(one) not in kinds]
    if wrong:
        raise ValueError(f"{name} has {quoted(wrong[0])} of another kind: {quoted(value[wrong[0]])}")


def _check_keys(name: str, value: Any, kinds: Json) -> None:
    if not isinstance(value, dict) or value.keys() != kinds.keys():
        raise ValueError(f"{name} must have {', '.join(kinds)}, got {quoted(value)}")
    for key, allowed in kinds.items():
        if type(value[key]) not in allowed:
            raise ValueError(f"{key} of {name} is of another kind: {quoted(value[key])}")
