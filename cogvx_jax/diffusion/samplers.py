"""DDIM and DPM-Solver++ as one linear update whose coefficients are a table.

    x0     = row[0] * x - row[1] * prediction
    x_next = row[2] * x + row[3] * x0 + row[4] * x0_before + row[5] * noise

All that is singular (alphas_bar is 0 at the first step and 1 after the last) is resolved on the host
in float64, as the limits that IEEE arithmetic gives; the device sees finite numbers only.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cogvx_jax.configs import ScheduleConfig
from cogvx_jax.diffusion import schedule


class SamplerState(NamedTuple):
    """What sampling carries from step to step."""

    latents: jax.Array  # (B, T, h, w, C), any float dtype
    x0: jax.Array  # same shape, float32: the last prediction of the clean latents, zeros at first


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """A sampler with its steps laid out. N is the number of steps executed."""

    name: str
    timesteps: np.ndarray  # (N,) int64
    table: np.ndarray  # (N, 6) float64; cast a row to float32 for `update`
    draws: np.ndarray  # (N,) int64, noise arrays that the reference draws; the last of a step is the one used


def init(latents: jax.Array) -> SamplerState:
    return SamplerState(latents, jnp.zeros(latents.shape, jnp.float32))


def update(state: SamplerState, prediction: jax.Array, row: jax.Array, noise: jax.Array | None = None) -> SamplerState:
    """One step, in float32. `row` may be traced, so that one compiled step serves all.

    Args:
      prediction: velocity, after guidance; the shape of the latents.
      row: (6,) float32, of `Sampler.table`.
      noise: standard normal, the shape of the latents; None only for samplers that draw none.
    Returns: the next state; the latents keep their dtype, x0 stays float32.
    """
    x = state.latents.astype(jnp.float32)
    x0 = row[0] * x - row[1] * prediction.astype(jnp.float32)
    x = row[2] * x + row[3] * x0 + row[4] * state.x0
    if noise is not None:
        x = x + row[5] * noise.astype(jnp.float32)
    return SamplerState(x.astype(state.latents.dtype), x0)


def ddim(cfg: ScheduleConfig, n: int, *, start: int = 0) -> Sampler:
    """Deterministic DDIM (eta 0).

    Args:
      n: inference steps of the full run; sets the step size.
      start: index of the first timestep kept; video-to-video runs the tail.
    Raises: ValueError if `n` or `start` is out of range.
    Source: Song et al. 2021, arXiv:2010.02502; diffusers' CogVideoXDDIMScheduler.step.
    """
    kept, a, p = _steps(cfg, n, start)
    c_x = np.sqrt((1 - p) / (1 - a))
    none = np.zeros_like(a)
    table = np.stack([np.sqrt(a), np.sqrt(1 - a), c_x, np.sqrt(p) - np.sqrt(a) * c_x, none, none], axis=1)
    return Sampler("ddim", kept, table, np.zeros_like(kept))


def dpm(cfg: ScheduleConfig, n: int, *, start: int = 0) -> Sampler:
    """Stochastic DPM-Solver++(2M). First order where no step was executed before, or the step is the last.

    The reference draws a first-order noise in every step and drops it in second-order ones, hence
    `draws` of 1, 2, ..., 2, 1. Arguments and errors as in `ddim`.
    Source: Lu et al. 2022, arXiv:2211.01095; diffusers' CogVideoXDPMScheduler.step.
    """
    kept, a, p = _steps(cfg, n, start)
    second = (np.arange(len(kept)) > 0) & (schedule.previous(cfg, kept, n) >= 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        now, after = (np.log(np.sqrt(x / (1 - x))) for x in (a, p))  # half log-SNR, -inf at a = 0, inf at p = 1
        h = after - now
        before = np.concatenate([now[:1], now[:-1]])  # of the previously executed timestep
        half = np.where(second, 1 / (2 * ((now - before) / h)), 0)  # 0 in step 1, whose `before` is -inf
    c_x = np.sqrt((1 - p) / (1 - a)) * np.exp(-h)
    m = -np.expm1(-2 * h) * np.sqrt(p)
    c_noise = np.sqrt(1 - p) * np.sqrt(1 - np.exp(-2 * h))
    table = np.stack([np.sqrt(a), np.sqrt(1 - a), c_x, m * (1 + half), -m * half, c_noise], axis=1)
    return Sampler("dpm", kept, table, 1 + second.astype(np.int64))


SAMPLERS = {"ddim": ddim, "dpm": dpm}


def _steps(cfg: ScheduleConfig, n: int, start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Timesteps kept, (N,), with alphas_bar there and after the step, which is 1 at the clean latents."""
    kept = schedule.timesteps(cfg, n)
    if not 0 <= start < len(kept):
        raise ValueError(f"start must be in 0..{len(kept) - 1}, got {start}")
    kept = kept[start:]
    alphas, after = schedule.alphas_bar(cfg), schedule.previous(cfg, kept, n)
    return kept, alphas[kept], np.where(after >= 0, alphas[np.maximum(after, 0)], 1.0)
