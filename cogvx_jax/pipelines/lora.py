"""Adapters on a loaded model."""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cogvx_jax.configs import ModelSpec
from cogvx_jax.convert import read_lora
from cogvx_jax.convert.runs import is_run, read_run_lora
from cogvx_jax.models import lora as loras
from cogvx_jax.models.lora import LoRA
from cogvx_jax.pipelines.finite import find_not_finite
from cogvx_jax.pipelines.model import Model
from cogvx_jax.storage import is_bucket, storage_path


def load_lora(model: Model, source: str | os.PathLike | LoRA, weight: float = 1.0) -> Model:
    """A model with a LoRA added to its transformer; the given one stays as it is.

    Adapters add up: load another onto the result. Compiled programs do not depend on them, so going
    from one to the next compiles nothing.

    Args:
      source: a file or folder as diffusers or PEFT writes it, a run folder of `cogvx train`, which may be the URL of
        one in a bucket, or a `LoRA`.
      weight: what to multiply it by; 1 is as it was trained. A file that does not tell its alpha counts as
        alpha = rank, as in diffusers: one of SAT's exporter then needs 1 / rank, one of the authors' diffusers
        trainer (rank 128, alpha 64) 0.5.
    Raises: ValueError for a LoRA that cannot be this model's, naming the model it looks made for;
      FileNotFoundError.
    """
    if model.compute.quantize is not None:
        raise ValueError(
            f"{model.spec.name} is quantised, to {model.compute.quantize}, and takes no LoRA; load it with the LoRA: "
            "`load(source, quantize=..., lora=find_lora(path, spec))`"
        )
    if not math.isfinite(weight):
        raise ValueError(f"the weight of a LoRA must be a finite number, got {weight}")
    lora = source if isinstance(source, LoRA) else find_lora(source, model.spec)
    _check_weight(lora, weight)
    _check_finite(lora, "given")
    transformer = loras.merge(model.params["transformer"], lora.adapters, weight * lora.scale)
    return dataclasses.replace(model, params=model.params | {"transformer": transformer})


def stack_loras(weighted: Sequence[tuple[LoRA, float]]) -> LoRA | None:
    """LoRAs with their weights, as one; None of none. Raises: ValueError for a weight that cannot be."""
    for lora, weight in weighted:
        _check_weight(lora, weight)
    return loras.stack([lora for lora, _ in weighted], [weight for _, weight in weighted]) if weighted else None


def _check_weight(lora: LoRA, weight: float) -> None:
    if not math.isfinite(weight):
        raise ValueError(f"the weight of a LoRA must be a finite number, got {weight}")
    if not abs(weight * lora.scale) <= np.finfo(np.float32).max:
        raise ValueError(f"the weight of a LoRA, {weight:g}, times its scale, {lora.scale:g}, is beyond float32")


def find_lora(source: str | os.PathLike, spec: ModelSpec) -> LoRA:
    """The LoRA that a path stands for, checked against `spec`; see `load_lora`."""
    where = storage_path(source)
    if is_run(where):
        lora = read_run_lora(where, spec)
    elif is_bucket(where):
        raise ValueError(f"{where} holds no run of `cogvx train`; a LoRA in a bucket must be one, copy a file first")
    else:
        lora = read_lora(Path(where), spec)
    _check_finite(lora, repr(str(source)))
    return lora


def _check_finite(lora: LoRA, name: str) -> None:
    if tensor := find_not_finite(lora.adapters):
        raise ValueError(f"the LoRA {name} holds numbers that are not finite, in {tensor}: its training diverged")
