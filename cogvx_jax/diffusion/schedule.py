"""The noise schedule and its timesteps, in NumPy float64 on the host.

Float32 does not do: alphas_bar[998] is 2e-7 and the samplers take its logarithm.
"""

import warnings

import numpy as np

from cogvx_jax.configs import ScheduleConfig


def alphas_bar(cfg: ScheduleConfig) -> np.ndarray:
    """Signal power left after each training step: (steps,) float64, decreasing from below 1."""
    betas = np.linspace(cfg.beta_start**0.5, cfg.beta_end**0.5, cfg.steps) ** 2
    alphas = snr_shift(np.cumprod(1 - betas), cfg.snr_shift)
    return zero_terminal_snr(alphas) if cfg.zero_terminal_snr else alphas  # after the shift, never before


def snr_shift(alphas_bar: np.ndarray, scale: float) -> np.ndarray:
    """Divides the signal-to-noise ratio of each step by `scale`.

    Source: Esser et al. 2024, arXiv:2403.03206, section 5.3.2, as in diffusers' CogVideoX schedulers.
    """
    return alphas_bar / (scale + (1 - scale) * alphas_bar)


def zero_terminal_snr(alphas_bar: np.ndarray) -> np.ndarray:
    """Stretches a noise schedule so that its last step is pure noise.

    Args:
      alphas_bar: (steps,) float64, signal power left after each step, decreasing from at most 1.
    Returns: (steps,), its first value kept and its last exactly 0.
    Source: Lin et al. 2024, arXiv:2305.08891, algorithm 1.
    """
    a = np.sqrt(alphas_bar)
    return np.square((a - a[-1]) * (a[0] / (a[0] - a[-1])))


def timesteps(cfg: ScheduleConfig, num_inference_steps: int) -> np.ndarray:
    """Training timesteps visited by a sampler, noisiest first, "trailing" spacing.

    Copies the reference with its quirk: for 62 of the 1000 counts (61, 103, 121, ...) float rounding
    gives one more timestep, -1, which reads alphas_bar[-1] = 0. Counts that divide `cfg.steps` are exact.

    Returns: (num_inference_steps,) int64, or one more as above.
    Raises: ValueError outside 1..cfg.steps. Warns where the run does not end at the clean latents.
    Source: diffusers 0.42.1, CogVideoXDDIMScheduler.set_timesteps.
    """
    n, kept = num_inference_steps, _trailing(cfg, num_inference_steps)
    if len(kept) != n or previous(cfg, kept[-1], n) >= 0:
        exact = exact_steps(cfg.steps)
        nearest = max(e for e in exact if e < n), min(e for e in exact if e > n)
        problem = f"visits {len(kept)} timesteps" if len(kept) != n else "stops before the clean latents"
        warnings.warn(
            f"{n} inference steps: the reference {problem}; the nearest exact counts are {nearest[0]} and {nearest[1]}",
            stacklevel=2,
        )
    return kept


def visited(cfg: ScheduleConfig, num_inference_steps: int) -> np.ndarray:
    """The same without the quirk: (num_inference_steps,) int64, all of them timesteps of the schedule.

    Raises: ValueError outside 1..cfg.steps.
    """
    kept = _trailing(cfg, num_inference_steps)
    return kept[kept >= 0]


def previous(cfg: ScheduleConfig, t, num_inference_steps: int):
    """The timestep that a step from `t` leads to; negative is the clean latents.

    Not the next of `timesteps`: the reference subtracts an integer step, so the two agree only for `EXACT_STEPS`.
    """
    return t - cfg.steps // num_inference_steps


def _trailing(cfg: ScheduleConfig, n: int) -> np.ndarray:
    if not 1 <= n <= cfg.steps:
        raise ValueError(f"num_inference_steps must be in 1..{cfg.steps}, got {n}")
    return np.round(np.arange(cfg.steps, 0, -cfg.steps / n)).astype(np.int64) - 1


def exact_steps(steps: int) -> tuple[int, ...]:
    """Counts of inference steps for which `previous` is the next timestep: the divisors of `steps`."""
    return tuple(n for n in range(1, steps + 1) if steps % n == 0)


EXACT_STEPS = exact_steps(ScheduleConfig.steps)  # 1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100, ...
