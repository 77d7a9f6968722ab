"""The v-prediction objective on arrays, in float32.

Shapes: x0, x, noise, v and prediction are (B, ...); alpha_bar is (B,), gathered from `schedule.alphas_bar`.
The coefficients stay float32: in bfloat16 the noise at small t would vanish.
"""

import jax
import jax.numpy as jnp


def loss(prediction: jax.Array, x0: jax.Array, noise: jax.Array, alpha_bar: jax.Array) -> jax.Array:
    """Mean squared error of the velocity, (B,) float32.

    Equals the error of the clean latents weighted by 1 / (1 - alpha_bar), the weight of the reference.
    """
    error = prediction.astype(jnp.float32) - velocity(x0, noise, alpha_bar)
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))


def add_noise(x0: jax.Array, noise: jax.Array, alpha_bar: jax.Array) -> jax.Array:
    """Latents at the noise level `alpha_bar`."""
    signal, sigma = _coefficients(alpha_bar, x0.ndim)
    return signal * x0 + sigma * noise


def velocity(x0: jax.Array, noise: jax.Array, alpha_bar: jax.Array) -> jax.Array:
    """Velocity, the model's target. Source: Salimans & Ho 2022, arXiv:2202.00512, appendix D."""
    signal, sigma = _coefficients(alpha_bar, x0.ndim)
    return signal * noise - sigma * x0


def clean(x: jax.Array, v: jax.Array, alpha_bar: jax.Array) -> jax.Array:
    """The clean latents of noisy latents `x` and their velocity."""
    signal, sigma = _coefficients(alpha_bar, x.ndim)
    return signal * x - sigma * v


def uniform_timesteps(key: jax.Array, batch: int, steps: int) -> jax.Array:
    """Independent training timesteps in 0..steps - 1, (batch,) int32."""
    return jax.random.randint(key, (batch,), 0, steps)


def explicit_timesteps(key: jax.Array, batch: int, steps: int) -> jax.Array:
    """The paper's explicit uniform sampling, (batch,) int32: row i has the i-th part of the range.

    Each timestep is as likely as with `uniform_timesteps`, but every batch covers the range evenly.
    Source: arXiv:2408.06072, section 3.3, with a row in place of a data-parallel rank.
    """
    part = (jnp.arange(batch) + jax.random.uniform(key, (batch,))) * (steps / batch)
    return jnp.minimum(part.astype(jnp.int32), steps - 1)  # rounding may reach `steps` itself


def _coefficients(alpha_bar: jax.Array, ndim: int) -> tuple[jax.Array, jax.Array]:
    """Square roots of signal and noise power, each (B, 1, ..., 1) float32."""
    a = jnp.asarray(alpha_bar, jnp.float32).reshape(-1, *(1,) * (ndim - 1))
    return jnp.sqrt(a), jnp.sqrt(1 - a)
