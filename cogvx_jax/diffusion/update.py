"""One step of any sampler: a linear update, whose coefficients are a row of the sampler's table.

x0     = row[0] * x - row[1] * prediction
x_next = row[2] * x + row[3] * x0 + row[4] * x0_before + row[5] * noise
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class SamplerState(NamedTuple):
    """What sampling carries from step to step."""

    latents: jax.Array  # (B, T, h, w, C), any float dtype
    x0: jax.Array  # same shape, float32: the last prediction of the clean latents, zeros at first


def init(latents: jax.Array) -> SamplerState:
    return SamplerState(latents, jnp.zeros(latents.shape, jnp.float32))


def update(state: SamplerState, prediction: jax.Array, row: jax.Array, noise: jax.Array | None = None) -> SamplerState:
    """One step, in float32. `row` may be traced, so that one compiled step serves all.

    Args:
      prediction: velocity, after guidance; the shape of the latents.
      row: (6,) float32, of `samplers.Sampler.table`.
      noise: standard normal, the shape of the latents; None only for samplers that draw none.
    Returns: the next state; the latents keep their dtype, x0 stays float32.
    """
    x = state.latents.astype(jnp.float32)
    x0 = row[0] * x - row[1] * prediction.astype(jnp.float32)
    x = row[2] * x + row[3] * x0 + row[4] * state.x0
    if noise is not None:
        x = x + row[5] * noise.astype(jnp.float32)
    return SamplerState(x.astype(state.latents.dtype), x0)
