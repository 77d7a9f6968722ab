"""Published weights to parameter trees. Every tensor is checked by the headers before any is read."""

import collections
import functools
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from flax import traverse_util

from cogvx_jax.configs import ModelSpec
from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.convert.orbax import OrbaxArrays, is_orbax
from cogvx_jax.convert.quantized_layout import check_types, quantized_rows, read_quantization, wrong_types
from cogvx_jax.convert.safetensors import MAX_HEADER, MAX_NAME, Stored, read_header
from cogvx_jax.convert.tables import ALIASES, Parameter, check_component, resolve, table
from cogvx_jax.json_files import parse_json, quoted
from cogvx_jax.models.abstract import Abstract, abstract_params, quantized
from cogvx_jax.quantization import Quantization
from cogvx_jax.storage import below, open_files

STEMS = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
MAX_FILES = 1000  # of a component; the largest published one has three


class Part(Protocol):
    """Reads a block of a parameter, and of its file no more than that block; see `load_params`."""

    def __call__(self, index: tuple[slice, ...]) -> np.ndarray: ...


# (path, shape, dtype, part) -> the array to keep
Put = Callable[[str, tuple[int, ...], np.dtype, Part], Any]


def load_params(
    folder: str | Path,
    spec: ModelSpec,
    component: str,
    dtype: str | np.dtype | None = "float32",
    *,
    put: Put | None = None,
    own: Container[str] = (),
) -> dict[str, Any]:
    """Reads a component's parameters from a folder of the published layout, or one of `write_orbax`.

    One parameter is read at a time; what was read of the files is let go after it.

    Args:
      folder: of the model, or the URL that it lies below; the weights are in `folder/component`.
      component: "transformer", "vae" or "text_encoder".
      dtype: of the result: "float32", "bfloat16", "float16"; None is each parameter's own. Integers of a model that is
        quantised, and their scales, remain.
      put: makes the array to keep of what its last argument reads: `put(path, shape, dtype, part)`
        calls `part(index)` for the blocks it needs. None keeps numpy arrays.
      own: paths of which the file's own type is kept, whatever `dtype`.
    Returns: nested dict of arrays, what the module's `apply` takes as "params".
    Raises: ConversionError listing every missing or damaged file, else every missing, spare or
      misshapen tensor.
    """
    how = read_quantization(folder)
    parameters = abstract(spec, component, how)
    source: ParameterSource = (
        OrbaxArrays(folder, component, {path: parameter.shape for path, parameter in parameters.items()})
        if is_orbax(folder)
        else Published(folder, spec, component, how)
    )
    if isinstance(source, OrbaxArrays):
        check_types(parameters, {path: source.dtype(path) for path in source}, folder)
    flat = {}
    for path in source:
        kept = dtype is None or path in own
        kind = np.dtype(parameters[path].dtype or (source.dtype(path) if kept else dtype))
        shape, part = source.shape(path), functools.partial(source.read, path, kind)
        flat[path] = part(tuple(slice(n) for n in shape)) if put is None else put(path, shape, kind, part)
        source.release()
    return traverse_util.unflatten_dict(flat, sep="/")


class ParameterSource(Protocol):
    """A component's parameters by path, wherever they are stored."""

    def __iter__(self) -> Iterator[str]: ...

    def shape(self, path: str) -> tuple[int, ...]: ...

    def dtype(self, path: str) -> np.dtype: ...

    def read(self, path: str, dtype: np.dtype, index: tuple[slice, ...]) -> np.ndarray:
        """A copy of a block."""

    def release(self) -> None:
        """Gives back the memory of what was read so far."""


class Published:
    """`ParameterSource` of the published layout.

    Raises: ConversionError listing every missing or damaged file, else every missing, spare or
      misshapen tensor.
    """

    def __init__(self, folder: str | Path, spec: ModelSpec, component: str, how: Quantization | None = None):
        self._parameters = {p.path: p for p in component_parameters(spec, component, how)}
        self._tensors = Checkpoint(below(folder, component), integers=how is not None)
        aliases = ALIASES.get(component, {})
        known = [key for parameter in self._parameters.values() for key in parameter.keys]
        self._tensors.drop_prefix(_common_prefix(self._tensors, [*known, *aliases]))
        problems = compare([*self._parameters.values()], self._tensors, aliases)
        if how is not None:
            problems += wrong_types([*self._parameters.values()], abstract(spec, component, how), self._tensors)
        if problems:
            raise ConversionError(f"{self._tensors.files.where} does not hold the {component} of {spec.name}", problems)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def shape(self, path: str) -> tuple[int, ...]:
        return self._parameters[path].shape

    def dtype(self, path: str) -> np.dtype:
        """The widest of the tensors that a parameter is made of."""
        return np.result_type(*(self._tensors[key].dtype for key in self._parameters[path].keys))

    def read(self, path: str, dtype: np.dtype, index: tuple[slice, ...]) -> np.ndarray:
        parameter = self._parameters[path]
        if not parameter.stacked:
            return np.array(parameter.change.read(self._tensors.read(parameter.keys[0]))[index], dtype)
        keys, inner = parameter.keys[index[0]], index[1:]
        shape = [len(range(n)[s]) for n, s in zip(parameter.shape[1:], inner, strict=True)]
        out = np.empty((len(keys), *shape), dtype)
        self._tensors.prefetch(keys)
        for slot, key in zip(out, keys, strict=True):
            slot[...] = parameter.change.read(self._tensors.read(key))[inner]
        return out

    def release(self) -> None:
        self._tensors.release()


def component_parameters(spec: ModelSpec, component: str, how: Quantization | None = None) -> list[Parameter]:
    """Every parameter of a component, that may be quantised, with the tensors it is made of."""
    return resolve(quantized_rows(table(spec, component), how), expected_shapes(spec, component, how))


def expected_shapes(spec: ModelSpec, component: str, how: Quantization | None = None) -> dict[str, tuple[int, ...]]:
    """Shapes of a component's parameters by path, "blocks/mlp/up/kernel"; nothing is computed.

    Raises: ValueError for an unknown component.
    """
    return {path: parameter.shape for path, parameter in abstract(spec, component, how).items()}


def abstract(spec: ModelSpec, component: str, how: Quantization | None = None) -> dict[str, Abstract]:
    """A component's parameters by path but for their numbers, those of a model that may be quantised.

    Raises: ValueError for an unknown component.
    """
    check_component(component)
    return quantized(abstract_params(getattr(spec, component)), how)


def compare(parameters: list[Parameter], found: Mapping[str, Stored], aliases: Mapping[str, str]) -> list[str]:
    """A line for each tensor that is missing, spare or misshapen."""
    problems, known = [], set()
    wanted = {key: parameter for parameter in parameters for key in parameter.keys}
    for key, parameter in wanted.items():
        known.add(key)
        if key not in found:
            problems.append(f"missing: {key} {parameter.their_shape}")
    for key, stored in found.items():
        match = wanted.get(aliases.get(key, key))
        if match is None:
            problems.append(f"spare: {key} {stored.shape}")
        elif stored.shape != match.their_shape:
            problems.append(f"misshapen: {key} is {stored.shape}, not {match.their_shape}")
    return problems


class Checkpoint(collections.abc.Mapping):
    """The tensors in a component's folder, by key; only `read` touches their numbers.

    Raises: ConversionError listing every missing, truncated or corrupt file.
    """

    def __init__(self, folder: str | Path, *, integers: bool = False):
        self.files = open_files(folder)
        self._tensors: dict[str, Stored] = {}
        problems: list[str] = []
        index = self._find_index(problems)
        headers: dict[str, dict[str, Stored]] = {}
        for name in dict.fromkeys(index.values()):
            try:
                headers[name] = read_header(self.files, name, integers=integers)
            except ValueError as error:
                problems.append(f"{name}: {error}")
        for name, header in headers.items():
            self._tensors |= {key: header[key] for key in header if index.get(key, name) == name}
            if "" in index:
                continue  # a single file needs no index
            indexed = {key for key in index if index[key] == name}
            problems += [
                f"{name}: lacks {key}, which the index says it holds" for key in sorted(indexed - header.keys())
            ]
            problems += [f"{name}: holds {key}, which the index lacks" for key in sorted(header.keys() - indexed)]
        if problems:
            raise ConversionError(f"cannot read the weights in {self.files.where}", problems)

    def _find_index(self, problems: list[str]) -> dict[str, str]:
        """Key -> file name; one file without an index stands under ""."""
        if not self.files.is_folder():
            problems.append("no such folder")
            return {}
        for stem in dict.fromkeys(STEMS.values()):
            path = f"{stem}.safetensors.index.json"
            if self.files.exists(path):
                try:
                    return _weight_map(parse_json(self.files.bytes(path, MAX_HEADER)))
                except ValueError as error:
                    problems.append(f"{path}: {error}")
                    return {}
            path = f"{stem}.safetensors"
            if self.files.exists(path):
                return {"": path}
        names = self.files.names()
        for name in (f"{stem}.safetensors{end}" for stem in STEMS.values() for end in (".index.json", "")):
            if name in names:
                problems.append(f"{name}: not a file")
                return {}
        looked = " and no ".join(f"{stem}.safetensors[.index.json]" for stem in dict.fromkeys(STEMS.values()))
        problems.append(f"no {looked}; there is {', '.join(names) or 'nothing'}")
        return {}

    def __getitem__(self, key: str) -> Stored:
        return self._tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def drop_prefix(self, prefix: str) -> None:
        """Takes the tensors' names without the text that all of them begin with, such as "module."."""
        self._tensors = {key.removeprefix(prefix): stored for key, stored in self._tensors.items()}

    def prefetch(self, keys: Sequence[str]) -> None:
        """Says which tensors will be read next."""
        self.files.prefetch([self._tensors[key].span for key in keys])

    def read(self, key: str) -> np.ndarray:
        """The tensor as it is in the file: read-only; of a local file it is mapped, not copied."""
        stored = self._tensors[key]
        return self.files.read(stored.span).view(stored.dtype).reshape(stored.shape)

    def release(self) -> None:
        """Gives back the memory of what was read so far; tensors read remain valid."""
        self.files.release()


def _weight_map(index: Mapping[str, Any]) -> dict[str, str]:
    """Key -> name of the file beside the index. Raises: ValueError, also for a file elsewhere."""
    found = index.get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ValueError("not a JSON object with a weight_map")
    for key, name in found.items():
        if not key or len(key) > MAX_NAME:
            raise ValueError(f"{quoted(key)} in it is no name of a tensor")
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name, re.ASCII):
            raise ValueError(f"it has {quoted(key)} in {quoted(name)}, which is no safetensors file beside it")
    if (count := len(set(found.values()))) > MAX_FILES:
        raise ValueError(f"it names {count} files, where at most {MAX_FILES} are read")
    return found


def _common_prefix(found: Iterable[str], wanted: Iterable[str]) -> str:
    """The text before the known names, such as "module.", where all that was found begins with it; else ""."""
    keys, names = list(found), set(wanted)
    if not keys or names & set(keys):
        return ""
    ends = (keys[0][dot + 1 :] for dot in range(len(keys[0])) if keys[0][dot] == ".")
    known = next((end for end in ends if end in names), None)
    prefix = keys[0].removesuffix(known) if known else ""
    return prefix if all(key.startswith(prefix) for key in keys) else ""
