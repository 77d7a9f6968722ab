"""The sampling loop over a model's steps, or all of them as one program."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm.auto import tqdm

from cogvx_jax.diffusion import samplers
from cogvx_jax.diffusion.update import init
from cogvx_jax.pipelines.finite import NotFiniteError, all_finite
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.noise import NoiseSource, SeededNoise
from cogvx_jax.pipelines.step_programs import loop_program, step_program
from cogvx_jax.sharding import replicate


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
