"""Models as Orbax checkpoints: arrays in tensorstore's OCDBT, and beside them a digest of each.

A model's folder has the configurations and the tokenizer of the published layout, for each component
an Orbax checkpoint in `COMPONENT/orbax`, and `digests.json`. Arrays are stored in blocks of at most
`BLOCK_BYTES`, layers apart, so that a device's share is read without the rest.
"""

import concurrent.futures
import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.convert.quantized_layout import read_quantization, verify_files
from cogvx_jax.convert.tensors import MAX_SIZE, unwarned
from cogvx_jax.json_files import parse_json, quoted
from cogvx_jax.storage import BUCKETS, below, kvstore, open_files

DIGESTS = "digests.json"
FORMAT = "cogvx orbax 1"  # changes when an older program could not read the folder
BLOCK_BYTES = 64 * 2**20
WRITTEN = (*BUCKETS, "file")  # kinds of URLs; tensorstore reads others, such as http, and not all that fsspec writes to


def is_orbax(folder: str | Path) -> bool:
    """Whether a model's folder, or the URL it lies below, holds Orbax checkpoints."""
    return open_files(folder).exists(DIGESTS)


def check_target(target: str | Path) -> None:
    """Raises ValueError for a URL from which checkpoints could not be read again, or to which none are written."""
    scheme, is_url, _ = str(target).partition("://")
    if is_url and scheme not in WRITTEN:
        places = ", ".join(f"{scheme}://" for scheme in WRITTEN)
        raise ValueError(f"Orbax checkpoints are written to folders, {places}, not to {target}; nothing was written")


def read_digests(folder: str | Path) -> dict[str, dict[str, Any]]:
    """What a folder says it holds: {"vae/decoder/conv_in/bias": {"shape", "dtype", "sha256"}, ...}.

    Raises: ConversionError if the file is not one of ours.
    """
    try:
        found = parse_json(open_files(folder).bytes(DIGESTS))
        if found.get("format") != FORMAT:
            raise ValueError(f"its format is {quoted(found.get('format'))}, not {FORMAT!r}")
        if not isinstance(found.get("arrays"), dict):
            raise ValueError("it lists no arrays")
        return {path: _described(path, array) for path, array in found["arrays"].items()}
    except ValueError as error:
        raise ConversionError(f"cannot read {below(folder, DIGESTS)}", [str(error)]) from None


def array_digest(blocks: Iterator[np.ndarray]) -> str:
    """The sha256 of an array's bytes, row by row, as they are in memory; given as consecutive blocks of rows."""
    found = hashlib.sha256()
    for block in blocks:
        found.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def verify(folder: str | Path, components: tuple[str, ...] | None = None) -> None:
    """Reads every array and compares it with its digest; None is all components.

    Raises: ConversionError naming every array that is missing, unreadable or not what was written; ValueError
      where the folder has no digests.
    """
    if not is_orbax(folder):
        if read_quantization(folder) is not None:
            return verify_files(folder, components)
        raise ValueError(
            f"{folder} has no {DIGESTS}: only Orbax checkpoints of `cogvx convert` and models of `cogvx quantize` "
            "have one"
        )
    wanted = read_digests(folder)
    chosen = dict.fromkeys(path.split("/")[0] for path in wanted) if components is None else components
    problems: list[str] = []
    for component in chosen:
        arrays = OrbaxArrays(folder, component)

        def check(path: str, arrays=arrays, component=component) -> list[str]:
            try:
                found = array_digest(arrays.rows(path))
            except ConversionError as error:
                return list(error.problems)
            same = found == wanted[f"{component}/{path}"]["sha256"]
            return [] if same else [f"changed: {component}/{path} is not what its digest says"]

        with concurrent.futures.ThreadPoolExecutor(4) as pool:  # hashing leaves the interpreter free
            problems += [problem for found in pool.map(check, arrays) for problem in found]
    if problems:
        raise ConversionError(f"{folder} is damaged", problems)


class OrbaxArrays(Mapping[str, ts.TensorStore]):
    """The arrays of a component by path; opening them reads no numbers.

    Args:
      shapes: what the arrays must be, by path; None is whatever the digests list.
    Raises: ConversionError listing every array that is missing, spare or misshapen; ValueError for a URL that
      tensorstore cannot read.
    """

    def __init__(self, folder: str | Path, component: str, shapes: Mapping[str, tuple[int, ...]] | None = None):
        self.component = component
        prefix = f"{component}/"
        listed = {p.removeprefix(prefix): a for p, a in read_digests(folder).items() if p.startswith(prefix)}
        wanted = {path: array["shape"] for path, array in listed.items()} if shapes is None else shapes
        base = kvstore(below(below(folder, component), "orbax"))
        opening = {path: ts.open(_spec(base, path)) for path in wanted}
        self._arrays: dict[str, ts.TensorStore] = {}
        problems = [f"spare: {path} {listed[path]['shape']}" for path in listed.keys() - wanted.keys()]
        for path, opened in opening.items():
            try:
                self._arrays[path] = opened.result()
            except ValueError as error:
                gone = "NOT_FOUND" in str(error)
                problems.append(f"missing: {path} {wanted[path]}" if gone else f"unreadable: {path}, {_first(error)}")
                continue
            found = self._arrays[path]
            if found.shape != tuple(wanted[path]):
                problems.append(f"misshapen: {path} is {found.shape}, not {tuple(wanted[path])}")
            elif any(block > max(n, 1) for block, n in zip(_block(found), found.shape, strict=True)):
                problems.append(f"unreadable: {path} of {found.shape} is stored in blocks beyond it")  # of any size
        if problems:
            raise ConversionError(f"{folder} does not hold the {component} it should", sorted(problems))

    def __getitem__(self, path: str) -> ts.TensorStore:
        return self._arrays[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def shape(self, path: str) -> tuple[int, ...]:
        return tuple(self._arrays[path].shape)

    def dtype(self, path: str) -> np.dtype:
        return self._arrays[path].dtype.numpy_dtype

    def dtype_of(self, path: str, place: int) -> np.dtype:
        """Of one of the tensors that were stacked: all of them have one type."""
        return self.dtype(path)

    def read(self, path: str, dtype: np.dtype, index: tuple[slice, ...]) -> np.ndarray:
        """A block of an array; of the files, only the blocks that it lies in are read."""
        try:
            with unwarned():
                return np.asarray(self._arrays[path][index].read().result()).astype(dtype, copy=False)
        except ValueError as error:
            problem = f"unreadable: {self.component}/{path}, {_first(error)}"
            raise ConversionError("the checkpoint is damaged", [problem]) from None

    def rows(self, path: str) -> Iterator[np.ndarray]:
        """An array in consecutive blocks along its first axis, none much above `BLOCK_BYTES`."""
        shape, dtype = self.shape(path), self.dtype(path)
        count = max(1, BLOCK_BYTES // max(1, math.prod(shape[1:]) * dtype.itemsize))
        for start in range(0, shape[0], count):
            yield self.read(path, dtype, (slice(start, min(start + count, shape[0])),))

    def release(self) -> None:
        """Nothing is held between reads."""


def _spec(base: Any, path: str) -> dict[str, Any]:
    # Orbax names an array by its keys, joined with dots.
    entries = {"driver": "ocdbt", "base": base, "path": path.replace("/", ".") + "/"}
    return {"driver": "zarr", "kvstore": entries, "open": True}


def _block(array: ts.TensorStore) -> tuple[int, ...]:
    return tuple(n or 1 for n in array.chunk_layout.read_chunk.shape or ())


def _described(path: str, array: Any) -> dict[str, Any]:
    """An entry of the digests, its form checked."""
    said = array if isinstance(array, dict) else {}
    shape = said.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n <= MAX_SIZE for n in shape):
        raise ValueError(f"{quoted(path)} has the shape {quoted(shape)}")
    if not re.fullmatch(r"[\w/]{1,400}", path, re.ASCII):
        raise ValueError(f"{quoted(path)} is no name of an array")
    return {"shape": tuple(shape), "dtype": str(said.get("dtype")), "sha256": str(said.get("sha256"))}


def _first(error: Exception) -> str:
    return str(error).splitlines()[0].partition(" [")[0]
