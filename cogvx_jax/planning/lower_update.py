"""A training update, lowered from shapes alone: `scripts/tpu_cost.py` compiles it for slices that are not here."""

import functools
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from cogvx_jax.configs import Compute, LoRAConfig, ModelSpec
from cogvx_jax.models import lora as loras
from cogvx_jax.models.abstract import abstract_params
from cogvx_jax.pipelines.weights import abstract_weights
from cogvx_jax.sharding import everywhere
from cogvx_jax.train import step as update
from cogvx_jax.train.placement import Placement, adapter_shardings, row_sharding
from cogvx_jax.train.transformer.objective import make_partial_loss
from cogvx_jax.train.transformer.settings import Objective


def lower_update(
    spec: ModelSpec,
    compute: Compute,
    mesh: Mesh,
    clips: tuple[int, ...],
    lora: LoRAConfig | None,
    tx: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    average: bool = True,
    trained_dtype: str = "float32",
) -> Any:
    """An update on latents (B, T, h, w, C), of adapters or, with None, of all parameters, as `train.run` makes it.

    Of text-to-video models only.

    Args:
      accumulate: parts that the batch is computed in.
      average: whether it keeps a moving average.
      trained_dtype: of parameters and moments; adapters are in float32.
    """
    weights = abstract_weights(spec, compute, "transformer", mesh)
    if lora is None:
        params, base = jax.tree.map(lambda x: _array(x.shape, trained_dtype, x.sharding), weights), {}
    else:
        shapes = jax.eval_shape(lambda weights: loras.init(jax.random.key(0), weights, lora), weights)
        where = adapter_shardings(shapes, abstract_params(spec.transformer), mesh)
        params, base = jax.tree.map(lambda x, at: _array(x.shape, "float32", at), shapes, where), weights

    def whole(base: Any, part: Any) -> Any:
        return part if lora is None else loras.merge(base, part, lora.scale)

    state = Placement(mesh).shapes(params, tx, average=average)
    at = jax.tree.map(lambda x: x.sharding, state)
    cfg = spec.transformer
    rows = {"moments": (*clips[:-1], 2 * clips[-1]), "text": (clips[0], cfg.text_length, cfg.text_dim)}
    batch: dict[str, Any] = {name: _array(shape, "float32", row_sharding(mesh, shape)) for name, shape in rows.items()}
    batch |= {"base": base, "empty": _array(rows["text"][1:], "float32", everywhere(mesh))}
    key = jax.eval_shape(lambda: jax.random.key(0))
    loss = Placement(mesh).loss(make_partial_loss(spec, compute, Objective(), whole))
    step = functools.partial(update.step, loss_fn=loss, tx=tx, decay=0.99, accumulate=accumulate)
    return jax.jit(step, donate_argnums=0, out_shardings=(at, everywhere(mesh))).lower(
        state, batch, jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=everywhere(mesh))
    )


def _array(shape: tuple[int, ...], dtype: Any, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.dtype(dtype), sharding=where)
