"""Adapters of our transformer out of LoRA files; `convert.lora_file` reads those, `convert.lora_write` writes them."""

import collections
import warnings
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from cogvx_jax.configs import ModelSpec
from cogvx_jax.convert.lora_file import LoRAFile, Module, open_lora
from cogvx_jax.convert.lora_models import doubts, kernels, looks_made_for, misfit, parameters
from cogvx_jax.convert.tables import Parameter
from cogvx_jax.convert.tensors import unwarned
from cogvx_jax.models.lora import Adapters, Difference, LoRA


def read_lora(source: str | Path, spec: ModelSpec, alpha: float | None = None) -> LoRA:
    """Reads a LoRA for the transformer of `spec`.

    Modules of several ranks or alphas become adapters of the highest rank; layers without an adapter
    get zeros. Warns of what may not be as meant: a text encoder's tensors, which are left out, an alpha
    that nothing tells, a model of CogVideoX-Fun.

    Args:
      source: a file of any dialect of `lora_formats.FORMATS`, or a folder that holds one under the name diffusers or
        PEFT gives it; or its URL.
      alpha: of all modules, in place of what the file says.
    Raises: FileNotFoundError; ValueError, one sentence, for a file that is damaged, holds no LoRA, or
      one that cannot be this model's, which names the model it looks made for.
    """
    file = open_lora(source, alpha)
    try:
        check_fits(file, spec)
        lora = _lora(file, spec)
    except ValueError as error:
        raise ValueError(f"{file.path} cannot be read as a LoRA: {error}") from None
    for doubt in doubts(file, spec):
        warnings.warn(f"{file.path}: {doubt}", stacklevel=2)
    return lora


def check_fits(file: LoRAFile, spec: ModelSpec) -> None:
    """Raises ValueError where a file cannot be of this model."""
    if problem := misfit(file, spec):
        raise ValueError(f"{problem}; it looks made for {looks_made_for(file)}")
    own = kernels(spec)
    for name, module in sorted(file.modules.items()):
        parameter = own[name][0]
        # Blocks are held as one array. Outside of them a trainer's rank may exceed the few channels of a patch.
        most = min(parameter.shape[-2:])
        most = most if parameter.stacked else max(most, spec.transformer.width)
        if module.rank > most:
            raise ValueError(f"the rank {module.rank} of {name} is above its smaller side, and above {most}")


@unwarned()  # `pipelines.lora` names the adapter that has numbers beyond float32
def _lora(file: LoRAFile, spec: ModelSpec) -> LoRA:
    own = kernels(spec)
    scales = {name: module.alpha.scale for name, module in file.modules.items()}
    first = scales[min(scales)] if scales else 1.0
    grouped: dict[str, list[Module]] = collections.defaultdict(list)
    for name, module in file.modules.items():
        grouped[own[name][0].path].append(module)
    adapters: Adapters = {}
    for path, modules in grouped.items():
        parameter, rank = own[modules[0].name][0], max(module.rank for module in modules)
        a = np.zeros((*parameter.shape[:-1], rank), np.float32)
        b = np.zeros((*parameter.shape[:-2], rank, parameter.shape[-1]), np.float32)
        for module in modules:
            place = own[module.name][1] if parameter.stacked else ...
            a[place][..., : module.rank], theirs = file.read(module.name)
            # Modules may differ in their scale; ours has one, so what differs goes into b.
            b[place][..., : module.rank, :] = theirs * np.float32(scales[module.name] / first)
        adapters[path] = {"a": jax.device_put(a), "b": jax.device_put(b)}
    rank = max(1, file.rank)
    return LoRA(
        adapters=adapters,
        rank=rank,
        alpha=first * rank,
        differences=_differences(file, parameters(spec)),
        told=file.told(),
        distilled=file.distilled,
    )


def _differences(file: LoRAFile, own: Mapping[str, tuple[Parameter, int]]) -> tuple[Difference, ...]:
    grouped: dict[str, list[tuple[int, np.ndarray]]] = collections.defaultdict(list)
    for name, difference in file.differences.items():
        parameter, block = own[name]
        values = parameter.change.read(file.numbers(difference.key)) * np.float32(difference.factor)
        grouped[parameter.path].append((block, values))
    stacked = {parameter.path: parameter.stacked for parameter, _ in own.values()}
    found = []
    for path, parts in grouped.items():
        blocks, values = zip(*sorted(parts, key=lambda part: part[0]), strict=True)
        array = jax.device_put(np.array(values if stacked[path] else values[0]))
        found.append(Difference(path=path, values=array, blocks=blocks if stacked[path] else None))
    return tuple(found)
