"""The sampling loop over a model's steps, and its compiled programs: one step, or all of them in one."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm.auto import tqdm

from cogvx_jax.diffusion import guidance, samplers
from cogvx_jax.diffusion.update import init, update
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.pipelines.exact import row_by_row
from cogvx_jax.pipelines.finite import NotFiniteError, all_finite
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.noise import NoiseSource, SeededNoise
from cogvx_jax.sharding import activate, everywhere, replicate


def denoise(
    model: Model,
    latents: jax.Array,
    text: jax.Array,
    negative: jax.Array | None,
    sampler: samplers.Sampler,
    weights: np.ndarray,
    *,
    condition: jax.Array | None = None,
    noise: NoiseSource,
    progress: bool = True,
) -> jax.Array:
    """The sampling loop: one compiled step, called once per timestep.

    Args:
      latents: (B, T, h, w, 16) float32 to start from.
      text, negative: states (B, L, text_dim); no negative, no guidance.
      weights: (N,) guidance weight of each step.
      condition: (B, T, h, w, 16) image latents, concatenated on the channels.
    Returns: sampled latents, (B, T, h, w, 16) float32.
    Raises: NotFiniteError, with `progress` after the step that gave such numbers, else after the last.
    """
    step = model.compiled("step", step_program(model.transformer, negative is not None, model.mesh, model.exact))
    state, states = _begin(model, latents, text, negative)
    rows, weights = sampler.table.astype(np.float32), weights.astype(np.float32)
    stochastic = bool(np.any(sampler.draws))
    params = model.params["transformer"]
    count, finite = len(sampler.timesteps), []
    for i in tqdm(range(count), disable=not progress, unit="step", desc="sampling"):
        drawn = replicate(noise.step(i, latents.shape), model.mesh) if stochastic else None
        t = np.int32(sampler.timesteps[i])
        state = step(params, state, states, condition, t, rows[i], weights[i], drawn)
        finite.append(all_finite(state.latents))
        if progress and not finite[-1]:  # this waits for the step, so that the bar tells the truth
            break
    for i, good in enumerate(jax.device_get(finite), 1):
        if not good:
            raise NotFiniteError.of(model, "transformer", f"sampling step {i} of {count}")
    return state.latents


def denoise_in_one(
    model: Model,
    latents: jax.Array,
    text: jax.Array,
    negative: jax.Array | None,
    sampler: samplers.Sampler,
    weights: np.ndarray,
    *,
    condition: jax.Array | None = None,
    noise: NoiseSource,
) -> jax.Array:
    """`denoise` as one program, a `lax.fori_loop` over the steps: the same result, no bar.

    Args:
      noise: a `SeededNoise` draws inside the program; of another source all steps' noise is drawn before it, and
        held on every device.
    Raises: NotFiniteError, after the last step.
    """
    loop = model.compiled("loop", loop_program(model.transformer, negative is not None, model.mesh))
    state, states = _begin(model, latents, text, negative)
    rows, weights = sampler.table.astype(np.float32), weights.astype(np.float32)
    steps, draw = sampler.timesteps.astype(np.int32), None
    if np.any(sampler.draws):
        several = range(len(steps))
        draw = noise if isinstance(noise, SeededNoise) else RecordedSteps.of(noise, several, latents.shape, model.mesh)
    x = loop(model.params["transformer"], state, states, condition, steps, rows, weights, draw).latents
    if not all_finite(x):
        raise NotFiniteError.of(model, "transformer", f"one of the {len(steps)} sampling steps")
    return x


def _begin(model: Model, latents: jax.Array, text: jax.Array, negative: jax.Array | None):
    """What sampling starts from, and the states of all rows: those of the negatives come first."""
    # Its own copy, since the state is donated to the steps.
    state = jax.tree.map(lambda x: replicate(x, model.mesh), init(jnp.array(latents)))
    return state, text if negative is None else jnp.concatenate([negative, text])


class RecordedSteps(NamedTuple):
    """The noise of every step, (N, B, T, h, w, 16), as a source whose index may be traced."""

    steps: jax.Array

    @classmethod
    def of(cls, noise: NoiseSource, several: range, shape: tuple[int, ...], mesh: Mesh | None) -> "RecordedSteps":
        return cls(replicate(jnp.stack([noise.step(i, shape) for i in several]), mesh))

    def step(self, index: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return self.steps[index]


@functools.lru_cache
def step_program(transformer: Transformer, guided: bool, mesh: Mesh | None = None, exact: bool = False):
    """One step, jitted: (params, state, text, condition, t, row, weight, noise) -> state, which is donated."""
    one = _update(transformer, guided, mesh, exact)

    def step(params, state, text, condition, t, row, weight, noise):
        return one(params, state, text, condition, t, row, weight, noise)

    return jax.jit(step, donate_argnums=1, out_shardings=everywhere(mesh))


@functools.lru_cache
def loop_program(transformer: Transformer, guided: bool, mesh: Mesh | None = None):
    """All steps, jitted: as `step_program`, with a leading axis of t, row and weight, and a source of noise."""
    one = _update(transformer, guided, mesh)

    def loop(params, state, text, condition, timesteps, rows, weights, noise):
        def body(i, state):
            drawn = None if noise is None else noise.step(i, state.latents.shape)
            if drawn is not None and mesh is not None:
                drawn = jax.lax.with_sharding_constraint(drawn, everywhere(mesh))
            state = one(params, state, text, condition, timesteps[i], rows[i], weights[i], drawn)
            # Between steps it lies as between the calls of `denoise`.
            return state if mesh is None else jax.lax.with_sharding_constraint(state, everywhere(mesh))

        return jax.lax.fori_loop(0, len(timesteps), body, state)

    return jax.jit(loop, donate_argnums=1, out_shardings=everywhere(mesh))


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
