"""DDIM, DPM-Solver++ and LCM as coefficients of one linear update, `diffusion.update`, in NumPy on the host.

All that is singular (alphas_bar is 0 at the first step and 1 after the last) is resolved here in float64,
as the limits that IEEE arithmetic gives; the device sees finite numbers only.

A new sampler is a function here and a row of SAMPLERS.
"""

import dataclasses
from typing import Protocol

import numpy as np

from cogvx_jax.configs import ScheduleConfig
from cogvx_jax.diffusion import schedule

COLUMNS = 6  # of a table of coefficients
LCM_STEPS = 50  # of whose timesteps `lcm` takes some, as diffusers' original_inference_steps


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """A sampler with its steps laid out. N is the number of steps executed."""

    timesteps: np.ndarray  # (N,) int64
    table: np.ndarray  # (N, COLUMNS) float64; cast a row to float32 for `diffusion.update`
    draws: np.ndarray  # (N,) int64, noise arrays that the reference draws; the last of a step is the one used


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
    return Sampler(kept, table, np.zeros_like(kept))


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
    return Sampler(kept, table, 1 + second.astype(np.int64))


def lcm(cfg: ScheduleConfig, n: int, *, start: int = 0) -> Sampler:
    """For models that jump to the clean latents from anywhere: noise of the next level is added to where they land.

    Timesteps are some of DDIM's in 50 steps, as in the reference; above 50, which that refuses, some of all. Its c_skip
    and c_out, at t at least 19 next to 0 and 1 (within 7e-6), are 0 and 1: the last step gives the clean latents.

    Arguments and errors as in `ddim`. Source: Luo et al. 2023, arXiv:2310.04378; diffusers' LCMScheduler.
    """
    if not 0 <= start < n <= cfg.steps:
        raise ValueError(f"start and steps must be 0 <= start < steps <= {cfg.steps}, got {start} and {n}")
    every = schedule.timesteps(cfg, LCM_STEPS if n <= LCM_STEPS < cfg.steps else cfg.steps)
    kept = every[np.floor(np.linspace(0, len(every), n, endpoint=False)).astype(np.int64)][start:]
    a = schedule.alphas_bar(cfg)[kept]
    p = np.append(a[1:], 1.0)
    none = np.zeros_like(a)
    table = np.stack([np.sqrt(a), np.sqrt(1 - a), none, np.sqrt(p), none, np.sqrt(1 - p)], axis=1)
    return Sampler(kept, table, (p < 1).astype(np.int64))


class LayOut(Protocol):
    """See `ddim`."""

    def __call__(self, cfg: ScheduleConfig, n: int, *, start: int = 0) -> Sampler: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A row of the table: calling it lays out its steps."""

    lay_out: LayOut
    stochastic: bool  # whether its steps add noise

    def __call__(self, cfg: ScheduleConfig, n: int, *, start: int = 0) -> Sampler:
        return self.lay_out(cfg, n, start=start)


SAMPLERS = {
    "ddim": Method(lay_out=ddim, stochastic=False),
    "dpm": Method(lay_out=dpm, stochastic=True),
    "lcm": Method(lay_out=lcm, stochastic=True),
}


def _steps(cfg: ScheduleConfig, n: int, start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Timesteps kept, (N,), with alphas_bar there and after the step, which is 1 at the clean latents."""
    kept = schedule.timesteps(cfg, n)
    if not 0 <= start < len(kept):
        raise ValueError(f"start must be in 0..{len(kept) - 1}, got {start}")
    kept = kept[start:]
    alphas, after = schedule.alphas_bar(cfg), schedule.previous(cfg, kept, n)
    return kept, alphas[kept], np.where(after >= 0, alphas[np.maximum(after, 0)], 1.0)
