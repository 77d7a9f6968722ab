"""One step of any sampler: a linear update, whose coefficients are a row of the sampler's table.

now    = row[0] * x - row[1] * prediction
x_next = row[2] * x + row[3] * now + row[4] * history[0] + ... + row[-1] * noise

`now` is an estimate of what the model knows: the clean latents, or for some samplers the noise.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class SamplerState(NamedTuple):
    """What sampling carries from step to step."""

    latents: jax.Array  # (B, T, h, w, C), any float dtype
    history: tuple[jax.Array, ...]  # of the same shape, float32: the last estimates, the newest first, zeros at first
    guider: Any = None  # what the guider carries, see `combining.start`; a step without it leaves it


def init(latents: jax.Array, history: int = 1) -> SamplerState:
    """What sampling starts with; `history` is how many estimates the sampler remembers."""
    return SamplerState(latents, tuple(jnp.zeros(latents.shape, jnp.float32) for _ in range(history)))


def update(state: SamplerState, prediction: jax.Array, row: jax.Array, noise: jax.Array | None = None) -> SamplerState:
    """One step, in float32. `row` may be traced, so that one compiled step serves all.

    Args:
      prediction: velocity, after guidance; the shape of the latents.
      row: (columns,) float32, of `samplers.Sampler.table`.
      noise: standard normal, the shape of the latents; None only for samplers that draw none.
    Returns: the next state; the latents keep their dtype, the history stays float32.
    """
    x = state.latents.astype(jnp.float32)
    now = row[0] * x - row[1] * prediction.astype(jnp.float32)
    x = row[2] * x + row[3] * now
    for i, before in enumerate(state.history):
        x = x + row[4 + i] * before
    if noise is not None:
        x = x + row[-1] * noise.astype(jnp.float32)
    return state._replace(latents=x.astype(state.latents.dtype), history=(now, *state.history[:-1]))
