"""What a model of few steps learns: jumps along the path that many guided steps of its teacher take.

Grid:    t_0 = steps - 1 > t_1 > ... > t_(N-1), and then the clean latents: what the deterministic sampler visits in N
         steps. It is cut into phases of equal length.
Student: f(x, i) jumps from t_i to the end of its phase.
Loss:    f(x, i) is to be what f gives after the teacher's own step from t_i to t_(i+1). At a phase's end f changes
         nothing, so the chain of equations ends in what the teacher's steps lead to. Or, from the start of a phase, it
         is to be what all of the teacher's steps in it lead to.

All steps and jumps are `c_x * x + c_v * v`, the solution for a constant velocity, with nothing singular at alphas_bar
of 0 or 1. With several phases they are those of the deterministic sampler in as many steps. With one phase this is the
latent consistency model, whose boundary condition needs no c_skip and c_out here: the path's last point is clean, and a
jump from there is none. On such a grid those differ from 0 and 1 by 7e-6 at most.

Source: Luo et al. 2023, arXiv:2310.04378 (one phase); Wang et al. 2024, arXiv:2405.18407, and Heek et al. 2024,
arXiv:2403.06807 (several); Salimans & Ho 2022, arXiv:2202.00512 (from their starts).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cogvx_jax.configs import ScheduleConfig
from cogvx_jax.diffusion import schedule

HUBER = 1e-3  # error from which the pseudo-Huber loss is linear, as in diffusers' LCM trainers


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """The points that the teacher's steps join, noisiest first; the last is the clean latents. (c_x, c_v) in rows."""

    timesteps: np.ndarray  # (N + 1,) int64; of the clean latents 0, where no prediction counts
    step: np.ndarray  # (N, 2) float64, from a point to the next
    jump: np.ndarray  # (N, 2), from a point to the end of its phase
    rest: np.ndarray  # (N, 2), from the next point to the same end; (1, 0) where it is there
    phase: int  # points of each phase


def grid(cfg: ScheduleConfig, points: int, phases: int) -> Grid:
    """The grid of `points` steps in `phases` phases.

    Raises: ValueError where the steps are fewer than 2 a phase, no multiple of the phases, or do not divide the
      schedule's.
    """
    if phases < 1 or points < 2 * phases or points % phases:
        raise ValueError(f"the teacher's steps must be a multiple of {phases}, at least {2 * phases}, got {points}")
    if cfg.steps % points:
        exact = [n for n in schedule.exact_steps(cfg.steps) if n >= 2 * phases and n % phases == 0]
        raise ValueError(f"the teacher's steps must divide {cfg.steps}, such as {exact[:6]}, got {points}")
    timesteps = schedule.timesteps(cfg, points)
    alphas = np.append(schedule.alphas_bar(cfg)[timesteps], 1.0)
    here = np.arange(points)
    phase = points // phases
    ends = (here // phase + 1) * phase
    return Grid(
        np.append(timesteps, 0),
        step=rotation(alphas[here], alphas[here + 1]),
        jump=rotation(alphas[here], alphas[ends]),
        rest=rotation(alphas[here + 1], alphas[ends]),
        phase=phase,
    )


def rotation(alpha: np.ndarray, after: np.ndarray) -> np.ndarray:
    """c_x, c_v (..., 2) of the deterministic step from one signal power to another, float64.

    The same numbers as sqrt(after) * x0 + sqrt(1 - after) * noise of the x0 and noise that v stands for.
    """
    signal, sigma = np.sqrt(alpha), np.sqrt(1 - alpha)
    signal_after, sigma_after = np.sqrt(after), np.sqrt(1 - after)
    return np.stack([signal * signal_after + sigma * sigma_after, signal * sigma_after - sigma * signal_after], axis=-1)


def move(x: jax.Array, v: jax.Array, coefficients: jax.Array) -> jax.Array:
    """c_x * x + c_v * v in float32; x, v (B, ...), coefficients (B, 2)."""
    c_x, c_v = (c.reshape(-1, *(1,) * (x.ndim - 1)) for c in jnp.asarray(coefficients, jnp.float32).T)
    return c_x * x.astype(jnp.float32) + c_v * v.astype(jnp.float32)


def pseudo_huber(error: jax.Array) -> jax.Array:
    """Mean over elements of sqrt(error^2 + c^2) - c, (B,): squared where errors are small, else linear."""
    return jnp.mean(jnp.sqrt(jnp.square(error) + HUBER**2) - HUBER, axis=tuple(range(1, error.ndim)))


def squared(error: jax.Array) -> jax.Array:
    """Mean over elements of the squared error, (B,)."""
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))


DISTANCES = {"huber": pseudo_huber, "squared": squared}
