"""Classifier-free guidance. Its weights are float64 on the host, one a step."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def guide(unconditional: jax.Array, conditional: jax.Array, weight: float | jax.Array) -> jax.Array:
    """Moves a prediction away from the unconditional one, in float32; weight 1 is the conditional one."""
    unconditional, conditional = unconditional.astype(jnp.float32), conditional.astype(jnp.float32)
    return unconditional + weight * (conditional - unconditional)


def weights(scale: float, timesteps: np.ndarray, num_inference_steps: int, dynamic: bool) -> np.ndarray:
    """Guidance weight of each step, (N,) float64. Arguments as in `dynamic_weight`."""
    if not dynamic:
        return np.full(len(timesteps), scale, np.float64)
    return np.array([dynamic_weight(scale, t, num_inference_steps) for t in timesteps], np.float64)


def dynamic_weight(scale: float, t: int, num_inference_steps: int) -> float:
    """Dynamic guidance weight, in 1..1 + scale.

    As published it compares the training timestep with the number of inference steps. Where t exceeds
    that number the cosine's argument is huge, and the weight an arbitrary but reproducible number, which
    float32 gets wrong (1.0004 for 2.2915 at t = 999, 50 steps, scale 6).

    Args:
      t: training timestep, not the index of the step.
      num_inference_steps: steps of the run; in video-to-video those kept, full steps - start.
    Source: diffusers 0.42.1, CogVideoXPipeline.__call__.
    """
    n = num_inference_steps
    return 1 + scale * ((1 - math.cos(math.pi * ((n - int(t)) / n) ** 5.0)) / 2)
