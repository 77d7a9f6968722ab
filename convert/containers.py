"""Readers, one for each kind of file that weights come in: `open_tensors` gives a file's tensors, or a folder's.

What the tensors are called is no matter of theirs: `convert.dialects` turns names into the published ones.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cogvx_jax import git_lfs
from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.convert.gguf_files import MAGIC, read_gguf
from cogvx_jax.convert.ncnn import MAGIC as NCNN
from cogvx_jax.convert.ncnn import SUFFIX, read_ncnn
from cogvx_jax.convert.safetensors import MAX_HEADER, MAX_NAME, read_safetensors
from cogvx_jax.convert.tensors import Entry, Tensors
from cogvx_jax.convert.torch_files import PICKLE, ZIP, read_torch
from cogvx_jax.json_files import POINTER, parse_json, quoted
from cogvx_jax.storage import Files, LocalFiles, check_place, kind_of, open_files, parent_and_name

STEMS = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
# What a component's folder may hold, or the same with ".index.json" after it; the first that is there is read.
NAMES = (
    *(f"{stem}.safetensors" for stem in dict.fromkeys(STEMS.values())),
    *("diffusion_pytorch_model.bin", "pytorch_model.bin"),
)
MAX_FILES = 1000  # of a component; the largest published one has three


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """A kind of file.

    name: for messages.
    suffixes: by which it is known where its beginning does not tell.
    begins: whether these first bytes of a file are of this kind.
    read: the tensors of a file. Raises ValueError, which does not name the file, for one that is damaged.
    """

    name: str
    suffixes: tuple[str, ...]
    begins: Callable[[bytes], bool]
    read: Callable[[Files, str], Tensors]


READERS = (  # the first whose beginning a file has counts
    Reader(
        name="GGUF",
        suffixes=(".gguf",),
        begins=lambda start: start.startswith(MAGIC),
        read=read_gguf,
    ),
    Reader(
        name="safetensors",
        suffixes=(".safetensors",),
        begins=lambda start: start[8:9] == b"{",
        read=read_safetensors,
    ),
    Reader(
        name="torch",
        suffixes=(".pt", ".pth", ".bin", ".ckpt"),
        begins=lambda start: start.startswith((ZIP, PICKLE)),
        read=read_torch,
    ),
    Reader(
        name="ncnn",
        suffixes=(SUFFIX,),
        begins=lambda start: start.startswith(NCNN),
        read=read_ncnn,
    ),
)
SUFFIXES = tuple(suffix for reader in READERS for suffix in reader.suffixes)
START = 64  # bytes by which a kind is known


def open_tensors(place: str | Path) -> Tensors:
    """The tensors of a file, or of a folder of one component; no numbers are read.

    Args:
      place: a path, or a URL; a folder's files have the published names.
    Raises: FileNotFoundError; ValueError, one sentence with the file's name, for one that is damaged or of no known
      kind; ConversionError listing every missing, truncated or corrupt file of a folder.
    """
    check_place(place)
    if open_files(place).is_folder():
        return Checkpoint(place)
    parent, name = parent_and_name(place)
    files = open_files(parent)
    try:
        found = read_file(files, name)
    except ValueError as error:
        raise ValueError(f"{place} cannot be read: {error}") from None
    return Tensors(files, found, str(place), found.metadata)


def has_weights(folder: str | Path) -> bool:
    """Whether a folder holds a component's weights under a published name."""
    files = open_files(folder)
    return any(files.exists(f"{name}{end}") for name in NAMES for end in ("", ".index.json"))


def names_weights(folder: str | Path) -> bool:
    """Whether something in a folder has a published name of weights, be it a file or a link to nothing."""
    files = open_files(folder)
    return files.is_folder() and any(name.removesuffix(".index.json") in NAMES for name in files.names())


def read_file(files: Files, name: str) -> Tensors:
    """The tensors of one file. Raises: FileNotFoundError; ValueError, which does not name the file."""
    return find_reader(files, name).read(files, name)


def find_reader(files: Files, name: str) -> Reader:
    """The row of `READERS` for a file. Raises: as `read_file`, but for damage."""
    size = files.size(name)
    start = files.read((name, 0, min(size, START))).tobytes() if size else b""
    if start.startswith(git_lfs.START):
        raise ValueError(POINTER)
    for reader in READERS:
        if reader.begins(start):
            return reader
    for reader in READERS:
        if name.endswith(reader.suffixes):
            return reader
    known = ", ".join(f"{reader.name} ({', '.join(reader.suffixes)})" for reader in READERS)
    raise ValueError(f"it is no file of weights of a known kind, which are {known}")


class Checkpoint(Tensors):
    """The tensors in a component's folder of the published layout.

    Raises: ConversionError listing every missing, truncated or corrupt file.
    """

    def __init__(self, folder: str | Path):
        files, problems, found = open_files(folder), list[str](), dict[str, Entry]()
        index = _find_index(files, problems)
        headers: dict[str, Tensors] = {}
        for name in dict.fromkeys(index.values()):
            try:
                headers[name] = read_file(files, name)
            except FileNotFoundError:
                problems.append(f"{name}: missing")
            except ValueError as error:
                problems.append(f"{name}: {error}")
        for name, header in headers.items():
            found |= {key: header[key] for key in header if index.get(key, name) == name}
            if "" in index:
                continue  # a single file needs no index
            indexed = {key for key in index if index[key] == name}
            problems += [
                f"{name}: lacks {key}, which the index says it holds" for key in sorted(indexed - header.keys())
            ]
            problems += [f"{name}: holds {key}, which the index lacks" for key in sorted(header.keys() - indexed)]
        if problems:
            raise ConversionError(f"cannot read the weights in {files.where}", problems)
        metadata = headers[index[""]].metadata if "" in index else None
        super().__init__(files, found, metadata=metadata)


def _find_index(files: Files, problems: list[str]) -> dict[str, str]:
    """Key -> file name; one file without an index stands under ""."""
    if not files.is_folder():
        problems.append("no such folder")
        return {}
    for name in NAMES:
        path = f"{name}.index.json"
        if files.exists(path):
            try:
                return _weight_map(parse_json(files.bytes(path, MAX_HEADER)))
            except ValueError as error:
                problems.append(f"{path}: {error}")
                return {}
        if files.exists(name):
            return {"": name}
    names = files.names()
    for name in (f"{name}{end}" for name in NAMES for end in (".index.json", "")):
        if name in names:
            kind = kind_of(files.folder / name) if isinstance(files, LocalFiles) else "a folder"
            problems.append(f"{name}: {kind}, not a file")
            return {}
    looked = " and no ".join(f"{stem}.safetensors[.index.json]" for stem in dict.fromkeys(STEMS.values()))
    problems.append(f"no {looked}; there is {', '.join(names) or 'nothing'}")
    return {}


def _weight_map(index: Mapping[str, Any]) -> dict[str, str]:
    """Key -> name of the file beside the index. Raises: ValueError, also for a file elsewhere."""
    found = index.get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ValueError("not a JSON object with a weight_map")
    for key, name in found.items():
        if not key or len(key) > MAX_NAME:
            raise ValueError(f"{quoted(key)} in it is no name of a tensor")
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*\.(safetensors|bin)", name, re.ASCII):
            raise ValueError(f"it has {quoted(key)} in {quoted(name)}, which is no safetensors file beside it")
    if (count := len(set(found.values()))) > MAX_FILES:
        raise ValueError(f"it names {count} files, where at most {MAX_FILES} are read")
    return found
