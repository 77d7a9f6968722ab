"""The compiled programs of sampling: one step, or all of them in one."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cogvx_jax.diffusion import guidance
from cogvx_jax.diffusion.update import SamplerState, update
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.pipelines.conditions import condition_at, put_known
from cogvx_jax.pipelines.exact import row_by_row
from cogvx_jax.sharding import activate, everywhere


@functools.lru_cache
def step_program(transformer: Transformer, guided: bool, mesh: Mesh | None = None, exact: bool = False):
    """One step, jitted: (params, state, text, condition, t, row, weight, noise) -> state, which is donated."""
    one = _update(transformer, guided, mesh, exact)

    def step(params, state, text, condition, t, row, weight, noise):
        return one(params, state, text, condition, t, row, weight, noise)

    return jax.jit(step, donate_argnums=1, out_shardings=everywhere(mesh))


@functools.lru_cache
def loop_program(transformer: Transformer, guided: bool, mesh: Mesh | None = None):
    """All steps, jitted: as `step_program`, with a leading axis of t, row and weight, and a source of noise.

    `condition` is a `Condition`, and `known` what the steps must leave alone; None where there is none.
    """
    one = _update(transformer, guided, mesh)

    def loop(params, state, text, condition, timesteps, rows, weights, noise, known):
        def body(i, state):
            drawn = drawn_inside(noise, i, state, mesh)
            channels = condition_at(condition, i)
            state = one(params, state, text, channels, timesteps[i], rows[i], weights[i], drawn)
            state = put_known(known, state, i)
            # Between steps it lies as between the calls of `denoise`.
            return state if mesh is None else jax.lax.with_sharding_constraint(state, everywhere(mesh))

        return jax.lax.fori_loop(0, len(timesteps), body, state)

    return jax.jit(loop, donate_argnums=1, out_shardings=everywhere(mesh))


def drawn_inside(noise, i: jax.Array, state: SamplerState, mesh: Mesh | None) -> jax.Array | None:
    """The noise of a step in a program of all of them; None of no source."""
    if noise is None:
        return None
    drawn = noise.step(i, state.latents.shape)
    return drawn if mesh is None else jax.lax.with_sharding_constraint(drawn, everywhere(mesh))


def _update(transformer: Transformer, guided: bool, mesh: Mesh | None, exact: bool = False):
    """One step of sampling: (params, state, text, condition, t, row, weight, noise) -> state."""

    def predict(params, x, text, t):
        return transformer.apply({"params": params}, x, text, t).astype(jnp.float32)

    def predict_on_mesh(params, x, text, t):
        with activate(mesh):
            return predict(params, x, text, t)

    velocity = row_by_row(predict, mesh) if exact else predict_on_mesh

    def one(params, state, text, condition, t, row, weight, noise):
        x = state.latents
        if condition is not None:
            x = jnp.concatenate([x, condition], axis=-1)
        if guided:  # both branches in one batch: [negative, positive]
            x = jnp.concatenate([x, x])
        prediction = velocity(params, x, text, jnp.full((x.shape[0],), t))
        if guided:
            prediction = guidance.guide(*jnp.split(prediction, 2), weight)
        return update(state, prediction, row, noise)

    return one
