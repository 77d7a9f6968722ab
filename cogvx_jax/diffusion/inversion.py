"""DDIM inversion as a sampler whose steps go from the clean latents to noise, in NumPy on the host."""

import numpy as np

from cogvx_jax.configs import ScheduleConfig
from cogvx_jax.diffusion import samplers, schedule


def inversion(cfg: ScheduleConfig, timesteps: np.ndarray) -> samplers.Sampler:
    """Steps up through the timesteps, the first of which begins with the clean latents.

    With alphas_bar a before a step and p after it, x becomes

        (sqrt(p a) + sqrt((1 - p) (1 - a))) x + (sqrt((1 - p) a) - sqrt(p (1 - a))) v

    where v is what the model says of x at the timestep after the step: that before it is what inverts it, but is not
    known yet. So sampling gives the clip back the better, the more steps there are.

    Args:
      timesteps: at which a sampler evaluates the model, in any order; -1, which some counts of steps give, is left out.
    Returns: a step for each of them, from the least.
    Source: Mokady et al. 2022, arXiv:2211.09794, section 3.2; `inference/ddim_inversion.py` of CogVideo 7a1af71, whose
      schedule is without `snr_shift`, and so is not the one that 2B was trained with.
    """
    steps = np.unique(timesteps)
    steps = steps[steps >= 0]
    p = schedule.alphas_bar(cfg)[steps]
    a = np.concatenate([[1.0], p[:-1]])
    none = np.zeros_like(p)
    c_x = np.sqrt(p * a) + np.sqrt((1 - p) * (1 - a))
    c_v = np.sqrt((1 - p) * a) - np.sqrt(p * (1 - a))
    table = np.stack([none, none - 1, c_x, c_v, none, none], axis=1)  # what a step estimates is v
    assert table.shape[1] == samplers.columns(1)
    return samplers.Sampler(steps, table, np.zeros_like(steps))


def which(inverted: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
    """The index, among those of `inversion`, of each timestep, (N,) int32; of -1 the first."""
    return np.searchsorted(inverted, timesteps).astype(np.int32)
