"""A clip's latents at each level of noise that sampling visits: what the blocks of an edit look at."""

from typing import Any

import jax
import numpy as np

from cogvx_jax.diffusion import inversion, samplers
from cogvx_jax.pipelines.conditions import Reference, SamplingInputs
from cogvx_jax.pipelines.denoise import denoise
from cogvx_jax.pipelines.model import Model


def invert(
    model: Model, clean: jax.Array, text: jax.Array, plan: samplers.Sampler, timesteps: np.ndarray, **how: Any
) -> Reference:
    """The reference of sampling at those timesteps, by one evaluation of the model for each of the plan's.

    Args:
      clean: latents (B, T, h, w, C).
      text: states of the empty prompt (B, L, text_dim); guidance with itself would change nothing.
      plan: of `diffusion.inversion` for the same timesteps.
      how: as for `denoise`.
    Returns: latents in the host's memory: a step's are on the devices while it runs.
    Raises: NotFiniteError.
    """
    found: list[np.ndarray] = []
    ones = np.ones(len(plan.timesteps), np.float32)
    denoise(
        model,
        SamplingInputs(clean),
        text,
        None,
        plan,
        ones,
        on_step=lambda step: found.append(np.asarray(step.latents)),
        what="inversion",
        **how,
    )
    return Reference(np.stack(found), inversion.which(plan.timesteps, timesteps))
