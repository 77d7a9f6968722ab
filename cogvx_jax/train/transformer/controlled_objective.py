"""The objective of a ControlNet: the model that it stands beside, which stays as it is, predicts better with it.

    loss = make_controlled_loss(spec, Compute(), Objective(), whole, cfg=ControlNetConfig())
    value = loss(controlnet_params, batch, key)

What is drawn and what is compared is as for the model itself, see `objective`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp

from cogvx_jax.configs import Compute, ControlNetConfig, ModelSpec
from cogvx_jax.models.controlnet import ControlBranch
from cogvx_jax.models.per_block import PerBlock, States
from cogvx_jax.pipelines.controlnets import branch_compute
from cogvx_jax.train.step import Loss, Rows
from cogvx_jax.train.transformer.objective import make_draw, make_errors
from cogvx_jax.train.transformer.settings import Objective


def make_controlled_loss(
    spec: ModelSpec, compute: Compute, options: Objective, whole: Callable[[Any, Any], Any], *, cfg: ControlNetConfig
) -> Loss:
    """`loss(controlnet_params, batch, key) -> scalar`, the mean over the batch.

    The batch holds what `objective.make_loss` says, `base`, of which `whole` makes the transformer's parameters, and
    control: (B, F, H, W, 3) uint8, the pixels of the clips' control videos.
    """
    draw, errors = make_controlled_errors(spec, compute, options, whole, cfg)
    return Loss(draw, lambda net, rows, batch: jnp.mean(errors(net, rows, batch)))


def make_controlled_errors(
    spec: ModelSpec, compute: Compute, options: Objective, whole: Callable[[Any, Any], Any], cfg: ControlNetConfig
) -> tuple[Callable[..., Rows], Callable[[Any, Rows, Any], jax.Array]]:
    """`draw(batch, key, t=None)` and `errors(net, rows, batch)`, the loss (B,) of each clip that was drawn."""
    own = dataclasses.replace(branch_compute(compute), remat=compute.remat)
    branch, layers = ControlBranch(cfg, spec.transformer, own), spec.transformer.layers
    plain, compared = make_draw(spec, compute, options), make_errors(spec, compute)

    def draw(batch: Mapping[str, Any], key: jax.Array, t: jax.Array | None = None) -> Rows:
        return plain(batch, key, t) | {"control": batch["control"]}

    def errors(net: Any, rows: Rows, batch: Mapping[str, Any]) -> jax.Array:
        noisy, pixels = rows["x"][..., : cfg.latent_channels], rows["control"].astype(jnp.float32) / 127.5 - 1
        states = cast(jax.Array, branch.apply({"params": net}, noisy, pixels, rows["text"], rows["t"]))
        return compared(whole(batch["base"], net), rows, PerBlock(states=States.of(states, layers)))

    return draw, errors
