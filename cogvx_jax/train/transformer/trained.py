"""What a run has trained, read from its folder, and a model with it."""

import dataclasses
from typing import Any

from flax import traverse_util

from cogvx_jax.configs import LoRAConfig
from cogvx_jax.convert.runs import check_trained_from, check_trains, read_exported, read_run, transformer_shapes
from cogvx_jax.models import lora as loras
from cogvx_jax.pipelines.model import Model, with_logit_bound
from cogvx_jax.sharding import params_digest
from cogvx_jax.storage import StoragePath
from cogvx_jax.train import parts


def read_model(folder: StoragePath, model: Model, *, best: bool = False) -> Model:
    """The model that a run of all or some of its parameters was trained from, with their moving average.

    Raises: ValueError as `convert.runs.read_run_lora`, and if its weights are not those that the run began with.
    """
    said = read_run(folder)
    check_trained_from(folder, said, model.spec)
    check_trains(folder, said, "parts")
    if said["transformer"] != params_digest(model.params["transformer"]):
        raise ValueError(f"{folder} was trained from other weights than those of this {model.spec.name}")
    like, _ = parts.split(transformer_shapes(model.spec), said["parts"])
    return with_trained(model, None, read_exported(folder, like, best))


def with_trained(model: Model, lora: LoRAConfig | None, trained: Any) -> Model:
    """The model with adapters merged, or with parameters in place of its own, in its parameters' types."""
    base = model.params["transformer"]
    if lora is not None:
        transformer = loras.merge(base, trained, lora.scale)
        return dataclasses.replace(model, params=model.params | {"transformer": transformer})
    leaves, new = traverse_util.flatten_dict(base), traverse_util.flatten_dict(trained)
    transformer = traverse_util.unflatten_dict(leaves | {path: x.astype(leaves[path].dtype) for path, x in new.items()})
    compute = with_logit_bound(model.compute, model.spec, transformer)
    return dataclasses.replace(model, compute=compute, params=model.params | {"transformer": transformer})
