"""Published weights to parameter trees. Every tensor is checked by the headers before any is read."""

import functools
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, Self

import numpy as np
from flax import traverse_util

from cogvx_jax.configs import ModelSpec
from cogvx_jax.convert.dialects import without_prefix
from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.convert.loose import LooseParts
from cogvx_jax.convert.orbax import OrbaxArrays, is_orbax
from cogvx_jax.convert.quantized_layout import check_types, quantized_rows, read_quantization, wrong_types
from cogvx_jax.convert.safetensors import Tensor
from cogvx_jax.convert.sources import Place, Source, open_source
from cogvx_jax.convert.tables import ALIASES, Parameter, check_component, resolve, table
from cogvx_jax.convert.taehv import TABLE as TAEHV
from cogvx_jax.convert.tensors import Entry, Tensors, Unreadable, unwarned
from cogvx_jax.models.abstract import Abstract, abstract_params, quantized
from cogvx_jax.quantization import Quantization


class Part(Protocol):
    """Reads a block of a parameter, and of its file no more than that block; see `load_params`."""

    def __call__(self, index: tuple[slice, ...]) -> np.ndarray: ...


# (path, shape, dtype, part) -> the array to keep
Put = Callable[[str, tuple[int, ...], np.dtype, Part], Any]


def load_params(
    folder: Place | Source,
    spec: ModelSpec,
    component: str,
    dtype: str | np.dtype | None = "float32",
    *,
    put: Put | None = None,
    own: Container[str] = (),
) -> dict[str, Any]:
    """Reads a component's parameters from any `Source`, such as a folder of the published layout or of `write_orbax`.

    One parameter is read at a time; what was read of the files is let go after it.

    Args:
      folder: of the model, or the URL that it lies below; of the published layout, the weights are in
        `folder/component`. Or another `Source`.
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
    opened = open_source(folder)
    parameters = abstract(spec, component, read_quantization(opened))
    source = open_parameters(opened, spec, component)
    flat = {}
    for path in source:
        kept = dtype is None or path in own
        kind = np.dtype(parameters[path].dtype or (source.dtype(path) if kept else dtype))
        shape, part = source.shape(path), functools.partial(source.read, path, kind)
        flat[path] = part(tuple(slice(n) for n in shape)) if put is None else put(path, shape, kind, part)
        source.release()
    return traverse_util.unflatten_dict(flat, sep="/")


def check_parts(source: Source, spec: ModelSpec, components: Sequence[str]) -> None:
    """Raises what reading these components of parts that lie apart would raise, before any number is read."""
    if isinstance(source, LooseParts):
        for component in components:
            Published.of(source.tensors(component), spec, component)


def published_tensors(
    source: Source, spec: ModelSpec, component: str, dtype: str | np.dtype | None = None
) -> list[Tensor]:
    """A component's tensors by their published names, to write; each is read when it is made, and let go after it.

    Args:
      dtype: of all of them; None keeps each tensor's own, to the bit.
    Raises: as `load_params`.
    """
    if (stored := read_quantization(source)) is not None:
        raise ValueError(f"{source.place} is quantised, to {stored.name}, which this layout cannot hold; use orbax")
    arrays = open_parameters(source, spec, component)

    def make(parameter: Parameter, place: int, own: np.dtype) -> np.ndarray:
        if isinstance(arrays, Published):  # as they are: turned twice, they would be the same
            found = np.array(arrays.published(parameter.keys[place]), own, order="C")
        else:
            index = tuple(slice(n) for n in parameter.shape)
            block = (slice(place, place + 1), *index[1:]) if parameter.stacked else index
            own_layout = arrays.read(parameter.path, own, block)
            found = np.ascontiguousarray(parameter.change.write(own_layout[0] if parameter.stacked else own_layout))
        arrays.release()
        return found

    tensors = []
    for parameter in component_parameters(spec, component):
        for place, key in enumerate(parameter.keys):
            own = np.dtype(dtype) if dtype is not None else arrays.dtype_of(parameter.path, place)
            tensors.append(Tensor(key, parameter.their_shape, own, functools.partial(make, parameter, place, own)))
    return tensors


def open_parameters(source: Source, spec: ModelSpec, component: str) -> "ParameterSource":
    """A component's parameters, whatever the source; see `load_params`."""
    how = read_quantization(source)
    if not is_orbax(source.place) or f"given {component}" in source.places():
        return Published.of(source.tensors(component), spec, component, how)
    parameters = abstract(spec, component, how)
    arrays = OrbaxArrays(source.place, component, {path: parameter.shape for path, parameter in parameters.items()})
    check_types(parameters, {path: arrays.dtype(path) for path in arrays}, source.place)
    return arrays


class ParameterSource(Protocol):
    """A component's parameters by path, wherever they are stored."""

    def __iter__(self) -> Iterator[str]: ...

    def shape(self, path: str) -> tuple[int, ...]: ...

    def dtype(self, path: str) -> np.dtype: ...

    def dtype_of(self, path: str, place: int) -> np.dtype:
        """Of one of the tensors that a parameter is made of."""

    def read(self, path: str, dtype: np.dtype, index: tuple[slice, ...]) -> np.ndarray:
        """A copy of a block."""

    def release(self) -> None:
        """Gives back the memory of what was read so far."""


class Published:
    """`ParameterSource` of tensors by their published names, or those names after a common text.

    Args:
      parameters: what is wanted, and `types` its types by path.
      aliases: second names that tensors may have.
      what: the owner of the parameters, for messages.
    Raises: ConversionError listing every missing, spare or misshapen tensor.
    """

    def __init__(
        self,
        tensors: Tensors,
        parameters: list[Parameter],
        types: Mapping[str, Abstract],
        what: str,
        aliases: Mapping[str, str] = MappingProxyType({}),
    ):
        self._parameters = {p.path: p for p in parameters}
        known = [key for parameter in parameters for key in parameter.keys]
        self._tensors = without_prefix(tensors, [*known, *aliases])
        problems = compare(parameters, self._tensors, aliases)
        problems += wrong_types(parameters, types, self._tensors)
        if problems:
            raise ConversionError(f"{tensors.where} does not hold {what}", problems)

    @classmethod
    def of(cls, tensors: Tensors, spec: ModelSpec, component: str, how: Quantization | None = None) -> Self:
        """Those of a component."""
        types, what = abstract(spec, component, how), f"the {component} of {spec.name}"
        return cls(tensors, component_parameters(spec, component, how), types, what, ALIASES.get(component, {}))

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def shape(self, path: str) -> tuple[int, ...]:
        return self._parameters[path].shape

    def dtype(self, path: str) -> np.dtype:
        """The widest of the tensors that a parameter is made of."""
        return np.result_type(*(self._tensors[key].dtype for key in self._parameters[path].keys))

    def published(self, key: str) -> np.ndarray:
        """A tensor as it is in the file."""
        return self._tensors.read(key)

    def dtype_of(self, path: str, place: int) -> np.dtype:
        return self._tensors[self._parameters[path].keys[place]].dtype

    @unwarned()
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
    rows = TAEHV if component == "vae" and spec.vae.taehv else table(spec, component)
    return resolve(quantized_rows(rows, how), expected_shapes(spec, component, how))


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


def compare(parameters: list[Parameter], found: Mapping[str, Entry], aliases: Mapping[str, str]) -> list[str]:
    """A line for each tensor that is missing, unreadable, spare or misshapen."""
    problems, known = [], set()
    wanted = {key: parameter for parameter in parameters for key in parameter.keys}
    for key, parameter in wanted.items():
        known.add(key)
        if key not in found:
            problems.append(f"missing: {key} {parameter.their_shape}")
    for key, stored in found.items():
        match = wanted.get(aliases.get(key, key))
        if isinstance(stored, Unreadable):
            problems.append(f"unreadable: {key}: {stored.problem}")
        elif match is None:
            problems.append(f"spare: {key} {stored.shape}")
        elif stored.shape != match.their_shape:
            problems.append(f"misshapen: {key} is {stored.shape}, not {match.their_shape}")
    return problems
