"""One optimizer update as a pure function of its state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Params = Any
LossFn = Callable[[Params, Any, jax.Array], jax.Array]  # (params, batch, key) -> scalar


class State(NamedTuple):
    """What a run carries from step to step."""

    step: jax.Array  # () int32, updates done
    params: Params
    average: Params  # exponential moving average of `params`, what is exported
    opt: optax.OptState


def init(params: Params, tx: optax.GradientTransformation) -> State:
    average = jax.tree.map(jnp.copy, params)  # its own buffers: the state is donated as a whole
    return State(jnp.zeros((), jnp.int32), params, average, tx.init(params))


def step(
    state: State, batch: Any, key: jax.Array, *, loss_fn: LossFn, tx: optax.GradientTransformation, decay: float
) -> tuple[State, dict[str, jax.Array]]:
    """One update on the global batch. `decay` is the moving average's, warmed up from 0."""
    key = jax.random.fold_in(key, state.step)
    loss, grads = jax.value_and_grad(loss_fn)(state.params, batch, key)
    updates, opt = tx.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    weight = 1 - jnp.minimum(decay, (1 + state.step) / (10 + state.step))
    average = jax.tree.map(lambda a, p: a + weight * (p - a), state.average, params)
    return State(state.step + 1, params, average, opt), {"loss": loss, "grad_norm": optax.global_norm(grads)}
