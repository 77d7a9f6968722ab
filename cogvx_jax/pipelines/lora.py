"""Adapters on a loaded model."""

import dataclasses
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cogvx_jax.configs import ModelSpec
from cogvx_jax.convert import load_params, read_lora
from cogvx_jax.convert.finite import not_finite
from cogvx_jax.convert.lora_file import shipped
from cogvx_jax.convert.quantized_layout import read_quantization
from cogvx_jax.convert.runs import find_run, read_run_lora
from cogvx_jax.convert.sources import open_source
from cogvx_jax.given import NOTHING, Given
from cogvx_jax.json_files import quoted
from cogvx_jax.models import lora as loras
from cogvx_jax.models.lora import LoRA, first_distilled
from cogvx_jax.pipelines.finite import find_not_finite
from cogvx_jax.pipelines.model import (
    NORMS,
    Model,
    bounded,
    check_model,
    check_parts,
    check_spec,
    check_takes_lora,
    report_inferred,
    resolve,
    with_logit_bound,
)
from cogvx_jax.pipelines.origin import used_loras
from cogvx_jax.pipelines.tokenizer import read_tokenizer
from cogvx_jax.pipelines.turns import Turns
from cogvx_jax.pipelines.weights import COMPONENTS


def load_lora(
    model: Model, source: str | os.PathLike | LoRA, weight: float = 1.0, *, alpha: float | None = None
) -> Model:
    """A model with a LoRA added to its transformer; the given one stays as it is.

    Adapters add up: load another onto the result. Compiled programs do not depend on them, so going
    from one to the next compiles nothing. With one of `cogvx distill`, the model's own steps, sampler and guidance
    scale become those that it is for.

    Args:
      source: a file of PEFT, kohya, VideoX-Fun, ComfyUI, diffusers, DiffSynth or SAT, a folder as diffusers or PEFT
        writes it, a run folder of `cogvx train` or `distill`, the URL of any of them, "tiny-fast", which ships with the
        package, or a `LoRA`.
      weight: what to multiply it by; 1 is as it was trained.
      alpha: of a file, in place of what it says. A file that does not tell its alpha counts as alpha = rank, as in
        diffusers: one of SAT's exporter then needs 1, one of the authors' diffusers trainer (rank 128) 64. Where it
        may be so, that is warned of.
    A line on stderr tells a file's dialect, modules, rank, alpha and where it stands, and scale; or what a run has.
    Raises: ValueError for a LoRA that cannot be this model's, naming the model it looks made for;
      FileNotFoundError.
    """
    check_model(model)
    if model.compute.quantize is not None:
        raise ValueError(
            f"{model.spec.name} is quantised, to {model.compute.quantize}, and takes no LoRA; load it with the LoRA: "
            "`load(source, quantize=..., lora=find_lora(path, spec))`"
        )
    if isinstance(source, LoRA) and alpha is not None:
        raise ValueError("alpha is for a file; a LoRA in memory has its own")
    weight = _check_number(weight)
    lora = source if isinstance(source, LoRA) else find_lora(source, model.spec, alpha)
    if lora.told and lora is not source:
        print(f"cogvx: {source}: {lora.told}, weight {weight:g}", file=sys.stderr)
    _check_weight(lora, weight)
    _check_finite(lora, "given")
    turns = model.params.adapted("transformer", lora, weight) if isinstance(model.params, Turns) else None
    params = turns or model.params | {"transformer": loras.apply(model.params["transformer"], lora, weight)}
    compute = model.compute
    if any(one.path.startswith(NORMS) for one in lora.differences):
        if turns is None:
            compute = with_logit_bound(compute, model.spec, params["transformer"])
        else:
            component = turns.component("transformer")
            compute = bounded(component.files, model.spec, compute, component.added)
    few = None if model.spec.defaults.distilled else first_distilled([(lora.distilled, weight)])  # the first decides
    spec = model.spec.distilled(few)
    known = model.known_origin
    origin = None if known is None else known.of(params, *used_loras([(lora, weight)]))
    return dataclasses.replace(model, spec=spec, params=params, compute=compute, origin=origin)


def load_merged(
    source: str | os.PathLike,
    weighted: Sequence[tuple[LoRA, float]],
    dtype: str | None = None,
    given: Given = NOTHING,
) -> Model:
    """A model with LoRAs in its transformer, to be written: every array is of the type it is stored in.

    Args:
      source: as for `load`.
      weighted: LoRAs of it with their weights.
      dtype: of the transformer; None is its own.
      given: as the keywords of `load`.
    """
    files = open_source(resolve(source), given)
    if (stored := read_quantization(files)) is not None:
        check_takes_lora(source, stored.name)
    spec = files.spec()
    report_inferred(files)
    check_parts(files, spec, COMPONENTS)
    tokenizer = read_tokenizer(files.tokenizer, spec)  # before the weights
    params = {name: load_params(files, spec, name, dtype if name == "transformer" else None) for name in COMPONENTS}
    model = Model(spec=spec, params=params, tokenizer=tokenizer)
    for lora, weight in weighted:
        model = load_lora(model, lora, weight)
    if tensor := find_not_finite({"transformer": model.params["transformer"]}):
        raise not_finite(source, tensor, with_loras=True)
    return model


def stack_loras(weighted: Sequence[tuple[LoRA, float]]) -> LoRA | None:
    """LoRAs with their weights, as one; None of none. Raises: ValueError for a weight that cannot be."""
    for lora, weight in weighted:
        _check_weight(lora, weight)
    if not weighted:
        return None
    stacked = loras.stack([lora for lora, _ in weighted], [weight for _, weight in weighted])
    return dataclasses.replace(stacked, parts=used_loras(weighted))


def _check_number(weight: Any) -> float:
    """A weight as a number, before a file is read. Raises: ValueError for anything else."""
    try:
        number = math.nan if isinstance(weight, str | bytes | bool) else float(weight)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"the weight of a LoRA must be a finite number, got {quoted(weight)}")
    return number


def _check_weight(lora: LoRA, weight: float) -> None:
    weight = _check_number(weight)
    if not abs(weight * lora.scale) <= float(np.finfo(np.float32).max):
        raise ValueError(f"the weight of a LoRA, {weight:g}, times its scale, {lora.scale:g}, is beyond float32")


def find_lora(source: str | os.PathLike, spec: ModelSpec, alpha: float | None = None) -> LoRA:
    """The LoRA that a path, or the name of a shipped one, stands for, checked against `spec`; see `load_lora`."""
    check_spec(spec)
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    if not isinstance(name, str):
        raise ValueError(f"a LoRA is a path, a URL or a `LoRA`, got {quoted(source)}")
    given, name = name, os.fspath(shipped(name))
    if (run := find_run(name)) is not None:
        if alpha is not None:
            raise ValueError(f"{name} is a run, which has its alpha; alpha is for a file")
        lora = read_run_lora(run, spec)
    else:
        lora = read_lora(name if "://" in name else Path(name), spec, alpha)
    _check_finite(lora, repr(str(source)))
    return dataclasses.replace(lora, source=given)


def _check_finite(lora: LoRA, name: str) -> None:
    differences = {one.path: one.values for one in lora.differences}
    if tensor := find_not_finite({**lora.adapters, "differences": differences}):
        raise ValueError(f"the LoRA {name} holds numbers that are not finite, in {tensor}: its training diverged")
