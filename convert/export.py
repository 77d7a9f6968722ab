"""Parameter trees to a folder of the published layout, which diffusers and transformers open."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn
from flax import traverse_util

from cogvx_jax.configs import ModelSpec
from cogvx_jax.convert.checkpoint import STEMS, component_parameters
from cogvx_jax.convert.config import write_configs
from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.convert.safetensors import DTYPES
from cogvx_jax.convert.tables import COMPONENTS, Parameter
from cogvx_jax.storage import check_new, new_folder

NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


def export(
    folder: str | Path,
    spec: ModelSpec,
    params: Mapping[str, Any],
    tokenizer: Any = None,
    dtype: str | np.dtype | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a model; the folder appears under its name only when whole.

    Args:
      folder: must not exist, or be empty.
      params: trees by component: "transformer", "vae", "text_encoder"; on this host or its devices.
      tokenizer: anything with `save_pretrained(folder)`; None leaves it out.
      dtype: of the weights; None keeps each parameter's own.
      max_shard_bytes: a component above this is split, with an index.
    Raises: FileExistsError if the folder holds something; ConversionError if the parameters are not
      this model's or the published files cannot express the spec.
    """
    check_new(folder)
    tensors = _tensors(spec, params, dtype)
    with new_folder(folder) as partial:
        write_configs(spec, partial)
        for component in COMPONENTS:
            _write_weights(partial / component, STEMS[component], tensors[component], max_shard_bytes)
        if tokenizer is not None:
            tokenizer.save_pretrained(str(partial / "tokenizer"))


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor that is still to be made."""

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _tensors(spec: ModelSpec, params: Mapping[str, Any], dtype) -> dict[str, list[_Tensor]]:
    tensors: dict[str, list[_Tensor]] = {}
    problems: list[str] = []
    problems += [f"missing: {c}" for c in COMPONENTS if c not in params]
    problems += [f"spare: {c}" for c in params if c not in COMPONENTS]
    for component in [c for c in COMPONENTS if c in params]:
        leaves = traverse_util.flatten_dict(nn.unbox(params[component]), sep="/")
        parameters = component_parameters(spec, component)
        known = {p.path for p in parameters}
        problems += [
            f"spare: {component}/{path} {np.shape(leaf)}" for path, leaf in leaves.items() if path not in known
        ]
        for p in parameters:
            if p.path not in leaves:
                problems.append(f"missing: {component}/{p.path} {p.shape}")
            elif (found := leaves[p.path]).shape != p.shape:
                problems.append(f"misshapen: {component}/{p.path} is {found.shape}, not {p.shape}")
            elif np.dtype(dtype or found.dtype) not in NAMES:
                problems.append(f"{component}/{p.path}: type {dtype or found.dtype}, not one of {', '.join(DTYPES)}")
            else:
                tensors.setdefault(component, []).extend(_split(p, found, np.dtype(dtype or found.dtype)))
    if problems:
        raise ConversionError(f"these are not the parameters of {spec.name}", problems)
    return tensors


def _split(parameter: Parameter, leaf: Any, dtype: np.dtype) -> list[_Tensor]:
    def make(i):
        part = np.asarray(leaf[i] if parameter.stacked else leaf)
        return np.ascontiguousarray(parameter.change.write(part).astype(dtype))

    shape = parameter.their_shape
    return [_Tensor(key, shape, dtype, functools.partial(make, i)) for i, key in enumerate(parameter.keys)]


def _write_weights(folder: Path, stem: str, tensors: list[_Tensor], max_shard_bytes: int) -> None:
    shards: list[list[_Tensor]] = []
    room = 0
    for tensor in sorted(tensors, key=lambda t: t.key):
        if not shards or tensor.bytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(tensor)
        room -= tensor.bytes
    if len(shards) == 1:
        return _write_file(folder / f"{stem}.safetensors", shards[0])
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        name = f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / name, shard)
        weight_map |= {tensor.key: name for tensor in shard}
    index = {"metadata": {"total_size": sum(t.bytes for t in tensors)}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_file(path: Path, tensors: list[_Tensor]) -> None:
    """Writes a safetensors file tensor by tensor; the library would want all of them at once."""
    tensors = sorted(tensors, key=lambda t: (-t.dtype.itemsize, t.key))  # each is aligned to its type
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for t in tensors:
        offsets = [start, start + t.bytes]
        header[t.key] = {"dtype": NAMES[t.dtype], "shape": t.shape, "data_offsets": offsets}
        start += t.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for t in tensors:
            file.write(t.make().reshape(-1).view(np.uint8).data)
