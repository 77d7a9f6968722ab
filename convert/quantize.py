"""A model to a folder or bucket of the same model with kernels of integers; see `convert.quantized_layout`."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import traverse_util

from cogvx_jax.configs import ModelSpec
from cogvx_jax.convert.checkpoint import component_parameters, load_params
from cogvx_jax.convert.containers import STEMS
from cogvx_jax.convert.export import write_weights
from cogvx_jax.convert.finite import is_finite, not_finite
from cogvx_jax.convert.orbax import DIGESTS, check_target
from cogvx_jax.convert.orbax_export import model_to_write, write_arrays
from cogvx_jax.convert.quantized_layout import MARK, STORED, file_digest, quantization_mark, read_quantization
from cogvx_jax.convert.safetensors import Tensor
from cogvx_jax.convert.sources import Place, Source, open_source
from cogvx_jax.convert.tables import COMPONENTS, Parameter
from cogvx_jax.models.abstract import check_groups
from cogvx_jax.models.lora import LoRA
from cogvx_jax.models.lora_blocks import Added, add_to_block
from cogvx_jax.nn.quantized import quantize_kernel
from cogvx_jax.quantization import COLUMNS, SCALE, Quantization, Storage
from cogvx_jax.storage import open_files

Layout = Literal["safetensors", "orbax"]


def write_quantized(
    source: Place | Source,
    target: str | Path,
    how: Quantization,
    *,
    layout: Layout = "safetensors",
    lora: LoRA | None = None,
) -> None:
    """Writes a model, quantised; the folder appears under its name only when whole.

    The host holds a component of integers, and of the source a layer, at a time. What is not quantised keeps its type.

    Args:
      source: a folder of a model, or its URL; or any `Source`.
      target: a folder that does not exist, or is empty, or the URL of one; as for `write_orbax`.
      lora: to add to the transformer's kernels first.
    Raises: FileExistsError if `target` holds something; ConversionError if `source` is not a whole model; ValueError if
      it is quantised already, groups do not divide its kernels, or these hold numbers that are not finite.
    """
    if layout == "orbax":
        check_target(target)
    if (stored := read_quantization(source)) is not None:
        raise ValueError(f"{open_source(source).place} is quantised already, to {stored.name}; give the original")
    last, distilled = DIGESTS if layout == "orbax" else MARK, None if lora is None else lora.distilled
    with model_to_write(source, target, last=last, distilled=distilled) as (spec, partial):
        check_groups(spec, how)

        def read(component: str) -> dict[str, Any]:
            return quantized_params(source, spec, component, how, lora if component == "transformer" else None)

        digests = {}
        if layout == "orbax":
            write_arrays(partial, read, target)
        else:
            _write_files(partial, spec, how, read)
            files = open_files(partial)
            names = sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*.safetensors"))
            digests = {name: file_digest(files, name) for name in names}
        (partial / MARK).write_text(quantization_mark(how, digests))


def quantized_params(
    source: Place | Source, spec: ModelSpec, component: str, how: Quantization, lora: LoRA | None = None
) -> dict[str, Any]:
    """A component's parameters in this host's memory, read and quantised layer by layer.

    Raises: ValueError where a kernel holds numbers that are not finite.
    """
    scales: dict[str, np.ndarray] = {}

    added: Added = () if lora is None else ((lora, 1.0),)
    place = open_source(source).place

    def put(path: str, shape: tuple[int, ...], dtype: np.dtype, part: Callable[..., np.ndarray]) -> np.ndarray:
        storage, whole = how.storage(path), tuple(slice(n) for n in shape)
        if storage is None:
            found = add_to_block(added, path, whole, part(whole))
            if added and not is_finite(found) and is_finite(part(whole)):
                raise not_finite(place, f"{component}/{path}", with_loras=True)
            return found

        def read(index: tuple[slice, ...]) -> np.ndarray:
            return add_to_block(added, path, index, part(index).astype(np.float32))

        def base(block: int) -> np.ndarray:
            return part((slice(block, block + 1), *whole[1:]))

        values, scales[path + SCALE] = quantize_on_host(read, shape, storage)
        check_scales(place, f"{component}/{path}", scales[path + SCALE], base if added else None)
        return values

    flat = traverse_util.flatten_dict(load_params(source, spec, component, None, put=put), sep="/")
    return traverse_util.unflatten_dict(flat | scales, sep="/")


def quantize_on_host(
    read: Callable[..., np.ndarray], shape: tuple[int, ...], storage: Storage
) -> tuple[np.ndarray, np.ndarray]:
    """A stacked kernel (layers, in, out) as integers with their scales, in this host's memory, read layer by layer.

    It is computed by the host, so that a model becomes the same bytes on every machine.
    """
    layers, features, out = shape
    values = np.empty(shape, storage.dtype)
    scale = np.empty((layers, storage.groups(features), out), np.float32)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        for i in range(layers):
            kernel = read((slice(i, i + 1), slice(features), slice(out)))[0]
            values[i], scale[i] = map(np.asarray, _quantized(kernel, storage))
    return values, scale


def check_scales(place: Place, path: str, scales: np.ndarray, base: Callable[[int], np.ndarray] | None = None) -> None:
    """Raises ValueError where a kernel held a number that is not finite: so is then one of its `scales`.

    Args:
      base: a block of the kernel before LoRAs were added; None where none were.
    """
    for i, scale in enumerate(scales):
        if not np.isfinite(scale).all():
            raise not_finite(place, f"{path} of block {i}", with_loras=base is not None and is_finite(base(i)))


_quantized = jax.jit(quantize_kernel, static_argnums=1)


def _write_files(partial: Path, spec: ModelSpec, how: Quantization, read: Callable[[str], Mapping[str, Any]]) -> None:
    for component in COMPONENTS:
        leaves = traverse_util.flatten_dict(read(component), sep="/")
        tensors = [
            tensor
            for parameter in component_parameters(spec, component, how)
            for tensor in leaf_tensors(parameter, leaves[parameter.path])
        ]
        write_weights(partial / component, STEMS[component], tensors)


def leaf_tensors(parameter: Parameter, leaf: np.ndarray) -> list[Tensor]:
    """The tensors that a parameter of a quantised model is stored as."""

    def make(i: int) -> np.ndarray:
        return np.ascontiguousarray(parameter.change.write(leaf[i] if parameter.stacked else leaf))

    dtype = np.dtype(STORED[str(leaf.dtype)][0]) if parameter.path in COLUMNS else leaf.dtype
    shape = parameter.their_shape
    return [Tensor(key, shape, dtype, functools.partial(make, i)) for i, key in enumerate(parameter.keys)]
