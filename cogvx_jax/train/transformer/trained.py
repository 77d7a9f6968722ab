"""What a run has trained, read from its folder, and a model with it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util

from cogvx_jax.configs import ModelSpec
from cogvx_jax.convert import expected_shapes
from cogvx_jax.models import lora as loras
from cogvx_jax.models.lora import LoRA, LoRAConfig
from cogvx_jax.pipelines.model import Model, with_logit_bound
from cogvx_jax.sharding import params_digest
from cogvx_jax.storage import StoragePath
from cogvx_jax.train import run_folder as facts
from cogvx_jax.train.checkpoint import read_exported
from cogvx_jax.train.transformer import parts


def read_lora(folder: StoragePath, spec: ModelSpec, *, best: bool = False) -> LoRA:
    """The moving average of a run's adapters, from its newest checkpoint, or its best by validation loss.

    Raises: ValueError, one sentence, for a folder without a run or checkpoint, or a run of another model.
    """
    said = facts.read(folder)
    _check_model(folder, said, spec)
    if said["lora"] is None:
        raise ValueError(f"{folder} trained the model itself, not a LoRA; `cogvx export` makes a model of it")
    lora = LoRAConfig(**said["lora"] | {"targets": tuple(said["lora"]["targets"])})
    adapters = read_exported(folder, loras.init(jax.random.key(0), transformer_shapes(spec), lora), best)
    return LoRA(adapters=adapters, rank=lora.rank, alpha=lora.alpha)


def read_model(folder: StoragePath, model: Model, *, best: bool = False) -> Model:
    """The model that a run of all or some of its parameters was trained from, with their moving average.

    Raises: ValueError as `read_lora`, and if its weights are not those that the run began with.
    """
    said = facts.read(folder)
    _check_model(folder, said, model.spec)
    if said["lora"] is not None:
        raise ValueError(f"{folder} trained a LoRA, not the model itself")
    if said["transformer"] != params_digest(model.params["transformer"]):
        raise ValueError(f"{folder} was trained from other weights than those of this {model.spec.name}")
    like, _ = parts.split(transformer_shapes(model.spec), said["parts"])
    return with_trained(model, None, read_exported(folder, like, best))


def with_trained(model: Model, lora: LoRAConfig | None, trained: Any) -> Model:
    """The model with adapters merged, or with parameters in place of its own, in its parameters' types."""
    base = model.params["transformer"]
    if lora is not None:
        transformer = loras.merge(base, trained, lora.alpha / lora.rank)
        return dataclasses.replace(model, params=model.params | {"transformer": transformer})
    leaves, new = traverse_util.flatten_dict(base), traverse_util.flatten_dict(trained)
    transformer = traverse_util.unflatten_dict(leaves | {path: x.astype(leaves[path].dtype) for path, x in new.items()})
    spec = with_logit_bound(model.spec, transformer)
    return dataclasses.replace(model, spec=spec, params=model.params | {"transformer": transformer})


def transformer_shapes(spec: ModelSpec) -> Any:
    """The transformer's parameters as shapes in float32, which is what they are trained in."""
    shapes = {path: jax.ShapeDtypeStruct(s, "float32") for path, s in expected_shapes(spec, "transformer").items()}
    return traverse_util.unflatten_dict(shapes, sep="/")


def _check_model(folder: StoragePath, said: Mapping[str, Any], spec: ModelSpec) -> None:
    width, layers = spec.transformer.width, spec.transformer.layers
    if (said["width"], said["layers"]) != (width, layers):
        raise ValueError(
            f"{folder} does not fit {spec.name} (width {width}, {layers} layers); "
            f"it was made for {said['name']} (width {said['width']}, {said['layers']} layers)"
        )
