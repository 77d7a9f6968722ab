"""How a quantised model is stored: the published layout with integers for kernels, their scales beside them.

`quantization.json` in the model's folder says how it is quantised. In safetensors files the tensor of a kernel is I8,
or U8 with two int4 in each byte, the first in its lower half, and KEY + "_scale" is F32 (out, groups). In Orbax the
arrays are those of our parameters.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.convert.sources import Place, Source
from cogvx_jax.convert.tables import TRANSPOSE, Change, Parameter, Row
from cogvx_jax.convert.tensors import Entry, Unreadable, is_floating
from cogvx_jax.json_files import parse_json, quoted
from cogvx_jax.models.abstract import Abstract
from cogvx_jax.quantization import SCALE, Quantization, find_quantization
from cogvx_jax.storage import Files, below, open_files

MARK = "quantization.json"
NAME = r"(transformer|text_encoder|vae)/\w[\w.-]*\.safetensors"  # of files in it
CHUNK = 64 * 2**20  # bytes of a file at a time
FORMAT = "cogvx quantized 1"  # changes when an older program could not read the folder


def _unpack(x: np.ndarray) -> np.ndarray:
    """uint8 (out, in / 2) to int4 (in, out)."""
    low, high = (x << 4).view(np.int8) >> 4, x.view(np.int8) >> 4
    return np.stack([low, high], axis=-1).reshape(len(x), -1).T.astype(ml_dtypes.int4)


def _pack(x: np.ndarray) -> np.ndarray:
    """int4 (in, out) to uint8 (out, in / 2)."""
    pairs = x.T.astype(np.int8).view(np.uint8).reshape(x.shape[1], -1, 2) & 15
    return pairs[..., 0] | pairs[..., 1] << 4


PACKED = Change("packed", _unpack, _pack)
# dtype of a parameter -> how its tensors are stored, and the change. None: any floating-point type.
STORED: Mapping[str, tuple[str, Change]] = {"int8": ("int8", TRANSPOSE), "int4": ("uint8", PACKED)}


def read_quantization(model: Place | Source) -> Quantization | None:
    """How a model's folder is quantised; None where it is not.

    Raises: ConversionError if the file that says so is none of ours.
    """
    folder = model if isinstance(model, str | Path) else model.place
    files = open_files(folder)
    if not files.exists(MARK):
        return None
    try:
        found = parse_json(files.bytes(MARK))
        if found.get("format") != FORMAT:
            raise ValueError(f"its format is {quoted(found.get('format'))}, not {FORMAT!r}")
        return find_quantization(found.get("quantization"))
    except ValueError as error:
        raise ConversionError(f"cannot read {below(folder, MARK)}", [str(error)]) from None


def file_digest(files: Files, name: str) -> str:
    """The sha256 of a file's bytes."""
    found, size = hashlib.sha256(), files.size(name)
    for start in range(0, size, CHUNK):
        found.update(files.read((name, start, min(CHUNK, size - start))).data)
        files.release()
    return found.hexdigest()


def verify_files(folder: str | Path, components: tuple[str, ...] | None = None) -> None:
    """Reads every file that `quantization.json` has a digest of; None is all components.

    Raises: ConversionError naming every file that is missing or not what was written.
    """
    files, problems = open_files(folder), []
    digests = parse_json(files.bytes(MARK)).get("sha256")
    if not isinstance(digests, dict) or not all(re.fullmatch(NAME, name, re.ASCII) for name in digests):
        raise ConversionError(f"cannot read {below(folder, MARK)}", [f"its digests are {quoted(digests)}"])
    for name, digest in digests.items():
        if components is not None and name.partition("/")[0] not in components:
            continue
        if not files.exists(name):
            problems.append(f"missing: {name}")
        elif file_digest(files, name) != digest:
            problems.append(f"changed: {name} is not what its digest says")
    if problems:
        raise ConversionError(f"{folder} is damaged", problems)


def quantization_mark(how: Quantization, digests: Mapping[str, str]) -> str:
    """What `quantization.json` holds; `digests` are the sha256 of files, by name."""
    found = {"format": FORMAT, "quantization": how.name, "sha256": dict(digests)}
    return json.dumps(found, indent=1, sort_keys=True) + "\n"


def quantized_rows(rows: tuple[Row, ...], how: Quantization | None) -> tuple[Row, ...]:
    """The rows of a component's table where kernels are integers, and those of their scales."""
    found = []
    for row in rows:
        storage = None if how is None else how.storage(row.ours)
        if storage is None:
            found.append(row)
            continue
        found.append(Row(row.theirs, row.ours, STORED[storage.dtype][1]))
        found.append(Row(row.theirs + SCALE, row.ours + SCALE, TRANSPOSE))
    return tuple(found)


def wrong_types(parameters: list[Parameter], abstract: Mapping[str, Abstract], found: Mapping[str, Entry]) -> list[str]:
    """A line for each tensor whose type is not that of its parameter."""
    problems = []
    for parameter in parameters:
        own = abstract[parameter.path].dtype
        wanted = STORED[own][0] if own is not None and own in STORED else None
        for key in parameter.keys:
            kind = None if key not in found else found[key].dtype
            if (
                kind is None
                or isinstance(found[key], Unreadable)
                or (str(kind) == wanted if wanted else is_floating(kind))
            ):
                continue
            problems.append(f"of another type: {key} is {kind}, not {wanted or 'floating-point'}")
    return problems


def check_types(abstract: Mapping[str, Abstract], found: Mapping[str, np.dtype], place: str | Path) -> None:
    """Raises ConversionError where an array is not of its parameter's integers, or not floating-point as that is."""
    problems = []
    for path, parameter in abstract.items():
        if str(found[path]) != parameter.dtype if parameter.dtype in STORED else not is_floating(found[path]):
            problems.append(f"of another type: {path} is {found[path]}, not {parameter.dtype or 'floating-point'}")
    if problems:
        raise ConversionError(f"{place} does not hold the arrays it should", problems)
