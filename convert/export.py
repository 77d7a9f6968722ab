"""Parameter trees to a folder of the published layout, which diffusers and transformers open."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn
from flax import traverse_util

from cogvx_jax.configs import ModelSpec
from cogvx_jax.convert.checkpoint import component_parameters
from cogvx_jax.convert.config import write_configs
from cogvx_jax.convert.containers import STEMS
from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.convert.safetensors import DTYPES, TYPES, Tensor, write_file
from cogvx_jax.convert.tables import COMPONENTS, Parameter
from cogvx_jax.storage import check_new, new_folder

METADATA = {"format": "pt"}  # which transformers asks for
SHARD_BYTES = 5 * 10**9


def export(
    folder: str | Path,
    spec: ModelSpec,
    params: Mapping[str, Any],
    tokenizer: Any = None,
    dtype: str | np.dtype | None = None,
    max_shard_bytes: int = SHARD_BYTES,
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
            write_weights(partial / component, STEMS[component], tensors[component], max_shard_bytes)
        if tokenizer is not None:
            tokenizer.save_pretrained(str(partial / "tokenizer"))


def _tensors(spec: ModelSpec, params: Mapping[str, Any], dtype) -> dict[str, list[Tensor]]:
    tensors: dict[str, list[Tensor]] = {}
    problems: list[str] = []
    problems += [f"missing: {c}" for c in COMPONENTS if c not in params]
    problems += [f"spare: {c}" for c in params if c not in COMPONENTS]
    for component in [c for c in COMPONENTS if c in params]:
        leaves = traverse_util.flatten_dict(nn.unbox(params[component]), sep="/")
        tensors[component] = tensors_of(component_parameters(spec, component), leaves, component, dtype, problems)
    if problems:
        raise ConversionError(f"these are not the parameters of {spec.name}", problems)
    return tensors


def tensors_of(
    parameters: Sequence[Parameter], leaves: Mapping[str, Any], where: str, dtype: Any, problems: list[str]
) -> list[Tensor]:
    """The published tensors of arrays by path; what is wrong with them is added to `problems`.

    Args:
      where: what the paths in messages begin with.
      dtype: of all of them; None is each array's own.
    """
    tensors, known = [], {p.path for p in parameters}
    problems += [f"spare: {where}/{path} {np.shape(leaf)}" for path, leaf in leaves.items() if path not in known]
    for p in parameters:
        if p.path not in leaves:
            problems.append(f"missing: {where}/{p.path} {p.shape}")
        elif (found := leaves[p.path]).shape != p.shape:
            problems.append(f"misshapen: {where}/{p.path} is {found.shape}, not {p.shape}")
        elif np.dtype(dtype or found.dtype) not in TYPES:
            problems.append(f"{where}/{p.path}: type {dtype or found.dtype}, not one of {', '.join(DTYPES)}")
        else:
            tensors += _split(p, found, np.dtype(dtype or found.dtype))
    return tensors


def _split(parameter: Parameter, leaf: Any, dtype: np.dtype) -> list[Tensor]:
    def make(i):
        part = np.asarray(leaf[i] if parameter.stacked else leaf)
        return np.ascontiguousarray(parameter.change.write(part).astype(dtype))

    shape = parameter.their_shape
    return [Tensor(key, shape, dtype, functools.partial(make, i)) for i, key in enumerate(parameter.keys)]


def write_weights(folder: Path, stem: str, tensors: list[Tensor], max_shard_bytes: int = SHARD_BYTES) -> None:
    """Writes a component's tensors as published: one file, or several with an index."""
    shards: list[list[Tensor]] = []
    room = 0
    for tensor in sorted(tensors, key=lambda t: t.key):
        if not shards or tensor.bytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(tensor)
        room -= tensor.bytes
    if len(shards) == 1:
        return write_file(folder / f"{stem}.safetensors", shards[0], METADATA)
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        name = f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / name, shard, METADATA)
        weight_map |= {tensor.key: name for tensor in shard}
    index = {"metadata": {"total_size": sum(t.bytes for t in tensors)}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
