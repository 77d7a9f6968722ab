"""One optimizer update as a pure function of its state."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Params = Any
Rows = dict[str, jax.Array]  # arrays (B, ...)


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss, a mean over clips, that can be taken of a few clips at a time: what is random is drawn first, for all.

    It is a `LossFn`.
    """

    draw: Callable[[Any, jax.Array], Rows]  # (batch, key) -> rows
    mean: Callable[[Params, Rows, Any], jax.Array]  # (params, some of the rows, batch) -> scalar

    def __call__(self, params: Params, batch: Any, key: jax.Array) -> jax.Array:
        return self.mean(params, self.draw(batch, key), batch)


@dataclasses.dataclass(frozen=True)
class Gradient:
    """What moves networks that are trained against each other, of which no one loss is the gradient."""

    # (params, batch, updates done, key) -> the loss to show, the gradient, more numbers to show
    of: Callable[[Params, Any, jax.Array, jax.Array], tuple[jax.Array, Params, dict[str, jax.Array]]]


LossFn = Callable[[Params, Any, jax.Array], jax.Array] | Gradient  # (params, batch, key) -> scalar


class State(NamedTuple):
    """What a run carries from step to step."""

    step: jax.Array  # () int32, updates done
    params: Params
    average: Params | None  # exponential moving average of `params`, in float32; None where none is held
    opt: optax.OptState

    @property
    def exported(self) -> Params:
        """What the run is for: the average, or the parameters themselves."""
        return self.params if self.average is None else self.average


def init(params: Params, tx: optax.GradientTransformation, *, average: bool = True) -> State:
    # The average has its own buffers: the state is donated as a whole. Its steps would be lost in fewer bits.
    mean = jax.tree.map(lambda x: jnp.array(x, jnp.float32), params) if average else None
    return State(jnp.zeros((), jnp.int32), params, mean, tx.init(params))


def step(
    state: State,
    batch: Any,
    key: jax.Array,
    *,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    decay: float,
    accumulate: int = 1,
) -> tuple[State, dict[str, jax.Array]]:
    """One update on the global batch. Where the loss or the gradient is not finite, nothing but the count moves.

    Parameters of 16 bits are rounded up or down at random, as near as they are to either, so that updates smaller than
    half of their last bit are not lost: they arrive on average. Float32 ones are rounded as always.

    Args:
      decay: of the moving average, where the state has one, warmed up from 0.
      accumulate: parts that the batch is computed in, one after the other; above 1, `loss_fn` is a `Loss`.
    """
    key = jax.random.fold_in(key, state.step)
    more: dict[str, jax.Array] = {}
    if isinstance(loss_fn, Gradient) and accumulate == 1:
        loss, grads, more = loss_fn.of(state.params, batch, state.step, key)
    else:
        loss, grads = gradient(loss_fn, accumulate)(state.params, batch, key)
    norm = optax.tree.norm(grads)
    sound = jnp.isfinite(loss) & jnp.isfinite(norm)

    def move(state: State, grads: Params) -> State:
        updates, opt = tx.update(grads, state.opt, state.params)
        params = apply(state.params, updates, jax.random.fold_in(key, 1))
        average = state.average
        if average is not None:
            weight = 1 - jnp.minimum(decay, (1 + state.step) / (10 + state.step))
            average = jax.tree.map(lambda a, p: a + weight * (p - a), average, params)
        return State(state.step, params, average, opt)

    # Not a choice between old and new numbers, which would hold both.
    state = jax.lax.cond(sound, move, lambda state, grads: state, state, grads)
    return state._replace(step=state.step + 1), more | {"loss": loss, "grad_norm": norm, "sound": sound}


def apply(params: Params, updates: Params, key: jax.Array) -> Params:
    """Parameters moved by an optimizer's updates; those in bfloat16 are rounded at random."""
    leaves, tree = jax.tree.flatten(params)
    moved = []
    for number, (p, u) in enumerate(zip(leaves, jax.tree.leaves(updates), strict=True)):
        whole = p.astype(jnp.float32) + u.astype(jnp.float32)
        if p.dtype == jnp.bfloat16:
            whole = _round_at_random(whole, jax.random.fold_in(key, number))
        moved.append(whole.astype(p.dtype))
    return jax.tree.unflatten(tree, moved)


def _round_at_random(x: jax.Array, key: jax.Array) -> jax.Array:
    """Float32 numbers that bfloat16 has: one of the two next to each, whose mean is the number itself."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    below = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    rounded = jax.lax.bitcast_convert_type((bits + below) & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x)


def gradient(loss_fn: LossFn, accumulate: int = 1) -> Callable[[Params, Any, jax.Array], tuple[jax.Array, Params]]:
    """Loss and gradient of a batch, (params, batch, key) -> (scalar, tree), in `accumulate` parts; see `step`."""
    if accumulate == 1 and not isinstance(loss_fn, Gradient):
        return jax.value_and_grad(loss_fn)
    if not isinstance(loss_fn, Loss):
        raise TypeError("only a Loss can be taken of a part of a batch")

    def whole(params, batch, key):
        # Part i has every n-th row: on a mesh, each device then finds its rows of every part at home.
        rows = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), loss_fn.draw(batch, key))

        def add(total, part):
            found = jax.value_and_grad(loss_fn.mean)(params, part, batch)
            return jax.tree.map(jnp.add, total, found), None

        zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
        total, _ = jax.lax.scan(add, zero, rows)
        return jax.tree.map(lambda x: x / accumulate, total)

    return whole
