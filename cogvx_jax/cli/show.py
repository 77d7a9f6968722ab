"""The verb `cogvx show`."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from cogvx_jax.cli.options import print_facts
from cogvx_jax.convert.commands import command, path_word
from cogvx_jax.json_files import printable
from cogvx_jax.pipelines.option_json import as_json
from cogvx_jax.pipelines.options import Options

if TYPE_CHECKING:
    from cogvx_jax.pipelines.record import Record

# Imports that take tenths of a second, of av and pillow, come inside: `cogvx --help` needs none of them.

ALWAYS = ("size", "frames", "steps", "guidance_scale", "sampler", "seed", "fps")  # options that are shown always
DEFAULTS = as_json(Options())


def show(
    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="VIDEO")],
    /,
    *,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Tells how a video was made: prompt, settings, hashes, versions, and what it was made of.

    Args:
      file: a video of `cogvx generate` or of Python, or a folder of PNGs.
      as_json: print the whole record as JSON.
    """
    from cogvx_jax.pipelines.record import read_record

    record = read_record(file)
    if as_json:
        print(json.dumps(json.loads(record.text), indent=2, ensure_ascii=False))
        return
    print_facts({name: value for name, value in _facts(file, record) if value}, as_json=False)


def _facts(file: Path, record: "Record") -> Iterator[tuple[str, str | list[str]]]:
    from cogvx_jax.data.comments import others_of, read_tags
    from cogvx_jax.data.signing import read_signature

    model, others = record.model, len(record.prompts) - 1
    yield "prompt", printable(record.prompt)
    yield "enhanced", [f"{key} {_text(value)}" for key, value in record.enhanced.items()]
    yield "made with", f"{others} others, as video {record.index} of them" if others else ""
    yield "options", [f"{name} {_text(value)}" for name, value in record.options.items() if _counts(name, value)]
    how = ("dtype", "quantize", "memory", "mesh", "exact", "one_program")
    name = _text(model["name"])
    yield "model", name if model["source"] == model["name"] else f"{name}, from {_text(model['source'])}"
    yield "computed", [f"{key} {_text(model[key])}" for key in how if model[key]]
    yield "given", [f"{key} {_text(value)}" for key, value in model["given"].items()]
    yield "LoRAs", [f"{_text(one['source'])}:{one['weight']:g}, {_text(one['digest'])}" for one in model["loras"]]
    yield "files", [f"{key} {_text(value)}" for key, value in record.files.items()]
    yield "made of", [_input(one) for one in record.inputs]
    yield "decoded by", [f"{key} {_text(value)}" for key, value in record.decoded.items()]
    yield "finished", [f"{key} {_text(value)}" for step in record.finished for key, value in step.items()]
    yield "versions", [f"{key} {_text(value)}" for key, value in record.versions.items()]
    yield "device", [f"{key} {_text(value)}" for key, value in record.device.items()]
    yield "record", record.id
    yield "signature", read_signature(file) or ""
    beside = others_of(read_tags(file))
    yield "other texts", [f"ComfyUI's {name}, {len(text):,} characters" for name, text in beside.items()]
    yield "use", command("replay", path_word(file))


def _counts(name: str, value: Any) -> bool:
    return (name in ALWAYS and value is not None) or value != DEFAULTS.get(name)


def _input(one: Mapping[str, Any]) -> str:
    parent = f", made by record {_text(one['record'])}" if one["record"] else ""
    return f"{_text(one['option'])} {_text(one['path'])}, sha256 {_text(one['sha256'][:16])}{parent}"


def _text(value: Any) -> str:
    if value is None:
        return "in memory"
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
