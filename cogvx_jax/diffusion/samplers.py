"""Samplers as coefficients of one linear update, `diffusion.update`, in NumPy on the host.

All that is singular (alphas_bar is 0 at the first step and 1 after the last) is resolved here in float64,
as the limits that IEEE arithmetic gives; the device sees finite numbers only.

`ddim` and `dpm` take the steps of the models' own schedulers, quirks included. All others go from each visited timestep
to the next one, and from the last to the clean latents, whatever the number of steps. `lcm` visits some of DDIM's.

A new sampler is a function here and a row of SAMPLERS. With a alphas_bar, x is sqrt(a) x0 + sqrt(1 - a) eps. Formulas
that are published for x / sqrt(a), whose noise has the standard deviation sqrt((1 - a) / a), are written for x.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from cogvx_jax.configs import ScheduleConfig
from cogvx_jax.diffusion import schedule

LCM_STEPS = 50  # of whose timesteps `lcm` takes some, as diffusers' original_inference_steps


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """A sampler with its steps laid out. N is the number of evaluations of the model."""

    timesteps: np.ndarray  # (N,) int64
    table: np.ndarray  # (N, columns(history)) float64; cast a row to float32 for `diffusion.update`
    draws: np.ndarray  # (N,) int64, noise arrays that the reference draws; the last of a step is the one used

    @property
    def history(self) -> int:
        """Estimates that it remembers."""
        return self.table.shape[1] - columns(0)

    @property
    def estimates_noise(self) -> np.ndarray:
        """Steps whose estimate is of the noise, sqrt(1 - a) x + sqrt(a) v; of others sqrt(a) x - sqrt(1 - a) v: x0."""
        return self.table[:, 1] < 0


def columns(history: int) -> int:
    """Of a table of coefficients, where so many estimates are remembered."""
    return 5 + history


def ddim(cfg: ScheduleConfig, n: int, *, start: int = 0) -> Sampler:
    """Deterministic DDIM (eta 0).

    Args:
      n: inference steps of the full run; sets the step size.
      start: index of the first step kept; video-to-video runs the tail.
    Raises: ValueError if `n` or `start` is out of range.
    Source: Song et al. 2021, arXiv:2010.02502; diffusers' CogVideoXDDIMScheduler.step.
    """
    return _deterministic(_reference_steps(cfg, n, start))


def dpm(cfg: ScheduleConfig, n: int, *, start: int = 0) -> Sampler:
    """Stochastic DPM-Solver++(2M). First order where no step was executed before, or the step is the last.

    The reference draws a first-order noise in every step and drops it in second-order ones, hence
    `draws` of 1, 2, ..., 2, 1. Arguments and errors as in `ddim`.
    Source: Lu et al. 2022, arXiv:2211.01095; diffusers' CogVideoXDPMScheduler.step.
    """
    steps = _reference_steps(cfg, n, start)
    a, p, second, half = steps.a, steps.p, steps.second, steps.half_ratio
    m = -np.expm1(-2 * steps.h) * np.sqrt(p)
    return Sampler(
        steps.timesteps,
        _table(
            clean=a,
            x=np.sqrt((1 - p) / (1 - a)) * np.exp(-steps.h),
            now=m * (1 + half),
            before=[-m * half],
            noise=np.sqrt(1 - p) * np.sqrt(1 - np.exp(-2 * steps.h)),
        ),
        1 + second.astype(np.int64),
    )


def euler(cfg: ScheduleConfig, n: int, *, start: int = 0) -> Sampler:
    """Euler's method in x / sqrt(a), which is DDIM, to the clean latents for every number of steps.

    Arguments and errors as in `ddim`. Source: Karras et al. 2022, arXiv:2206.00364, algorithm 1.
    """
    return _deterministic(_visited_steps(cfg, n, start))


def euler_ancestral(cfg: ScheduleConfig, n: int, *, start: int = 0) -> Sampler:
    """Euler's method to less noise than the step ends with, and as much new noise as is missing (eta 1).

    Arguments and errors as in `ddim`. Source: k-diffusion's sample_euler_ancestral; diffusers'
    EulerAncestralDiscreteScheduler, which draws after the last step, too, and adds none of it.
    """
    steps = _visited_steps(cfg, n, start)
    a, p = steps.a, steps.p
    share = (1 - p) * a / ((1 - a) * p)  # of the noise's variance after the step in that before it, in x / sqrt(a)
    return Sampler(
        steps.timesteps,
        _table(
            clean=a,
            x=np.sqrt(p * a) * (1 - p) / ((1 - a) * p),
            now=np.sqrt(p) * (1 - share),
            noise=np.sqrt((1 - p) * (1 - share)),
        ),
        np.ones_like(steps.timesteps),
    )


def dpmpp_2m(cfg: ScheduleConfig, n: int, *, start: int = 0) -> Sampler:
    """Deterministic DPM-Solver++(2M), first order in the first and in the last step.

    Arguments and errors as in `ddim`. Source: Lu et al. 2022, arXiv:2211.01095, algorithm 2.
    """
    steps = _visited_steps(cfg, n, start)
    m, half = -np.expm1(-steps.h) * np.sqrt(steps.p), steps.half_ratio
    table = _table(clean=steps.a, x=steps.c_x, now=m * (1 + half), before=[-m * half])
    return Sampler(steps.timesteps, table, np.zeros_like(steps.timesteps))


def unipc(cfg: ScheduleConfig, n: int, *, start: int = 0) -> Sampler:
    """UniPC of order 2 with B2(h): each evaluation corrects the step before, then predicts the next one.

    The corrector replaces the predicted x by x + c (x0 now) + d (x0 before) + e (x0 before that): what both have of the
    sample that the step began with is the same. So x need not be remembered, and one row does both.
    Arguments and errors as in `ddim`. Source: Zhao et al. 2023, arXiv:2302.04867, algorithms 5 and 6.
    """
    steps = _visited_steps(cfg, n, start)
    predicted = _unipc_predictor(steps)  # (N, 2): of x0 now and before
    corrected = np.zeros((len(steps.a), 3))  # to be added to x, of x0 now, before, and before that
    corrected[1:] = _unipc_corrector(steps)[:-1]
    corrected[1:, 1:] -= predicted[:-1]
    x = steps.c_x
    table = _table(
        clean=steps.a,
        x=x,
        now=predicted[:, 0] + x * corrected[:, 0],
        before=[predicted[:, 1] + x * corrected[:, 1], x * corrected[:, 2]],
    )
    return Sampler(steps.timesteps, table, np.zeros_like(steps.timesteps))


def deis(cfg: ScheduleConfig, n: int, *, start: int = 0) -> Sampler:
    """DEIS of order 2, the noise extrapolated in the logarithm of sqrt((1 - a) / a); first and last step are DDIM.

    It remembers eps, not x0; at a = 0 eps is x itself, and x0 is what the model tells. Arguments and errors as in
    `ddim`. Source: Zhang & Chen 2023, arXiv:2204.13902, rho-AB of two points in the logarithm.
    """
    steps = _visited_steps(cfg, n, start)
    a, p = steps.a, steps.p
    first = _table(clean=a, x=steps.c_x, now=np.sqrt(p) - np.sqrt(a) * steps.c_x)
    with np.errstate(divide="ignore", invalid="ignore"):
        rho, after = np.sqrt((1 - a) / a), np.sqrt((1 - p) / p)
        last = np.log(np.concatenate([rho[:1], rho[:-1]]))  # of the step before; infinite at a = 0
        # Of rho to `after`, the integral of the line that is 1 here and 0 at the step before, less that of 1.
        extra = (after * (np.log(after) - np.log(rho) - 1) + rho) / (np.log(rho) - last)
        table = np.stack(
            [
                np.sqrt(1 - a),  # eps = sqrt(1 - a) x + sqrt(a) v
                -np.sqrt(a),
                np.sqrt(p / a),
                np.sqrt(p) * (after - rho + extra),
                -np.sqrt(p) * extra,
                np.zeros_like(a),
            ],
            axis=1,
        )
    usual = steps.second & (a > 0)
    table = np.where(usual[:, None], table, first)
    # A first-order step remembers x0 unless a second-order one follows, which needs eps.
    follows = np.concatenate([usual[1:], [False]]) & ~usual & (a > 0)
    table[follows] = _remembering_noise(table, a)[follows]
    return Sampler(steps.timesteps, table, np.zeros_like(steps.timesteps))


def heun(cfg: ScheduleConfig, n: int, *, start: int = 0) -> Sampler:
    """Heun's method in x / sqrt(a): two evaluations a step, the slope's mean at both ends.

    The last step is Euler's. So is one from a = 0, of which the mean has no limit. Arguments and errors as in `ddim`;
    `timesteps` has each evaluation's. Source: Karras et al. 2022, arXiv:2206.00364, algorithm 1.
    """
    steps = _visited_steps(cfg, n, start)
    a, p, none = steps.a, steps.p, np.zeros_like(steps.a)
    with np.errstate(divide="ignore", invalid="ignore"):
        # The predicted x lies on the line from x to x0, so that the slopes at both ends differ by those of x0 there.
        c = np.sqrt(p) * (np.sqrt((1 - a) * p / (a * (1 - p))) - 1) / 2
        corrector = np.stack([np.sqrt(p), np.sqrt(1 - p), none + 1, c, -c, none], axis=1)
    both = np.stack([_deterministic(steps).table, corrector], axis=1).reshape(-1, columns(1))
    timesteps = np.stack([steps.timesteps, np.append(steps.timesteps[1:], -1)], axis=1).reshape(-1)
    taken = np.stack([a >= 0, (a > 0) & (p < 1)], axis=1).reshape(-1)
    return Sampler(timesteps[taken], both[taken], np.zeros_like(timesteps[taken]))


def _heun_evaluations(cfg: ScheduleConfig, n: int, start: int) -> int:
    """Two a step, but for the last one, and for the first one of pure noise."""
    return max(2 * (n - start) - 1 - (cfg.zero_terminal_snr and start == 0), 1)


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
    table = _table(clean=a, x=np.zeros_like(a), now=np.sqrt(p), noise=np.sqrt(1 - p))
    return Sampler(kept, table, (p < 1).astype(np.int64))


class LayOut(Protocol):
    """See `ddim`."""

    def __call__(self, cfg: ScheduleConfig, n: int, *, start: int = 0) -> Sampler: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A row of the table: calling it lays out its steps."""

    lay_out: LayOut
    stochastic: bool = False  # whether its steps add noise
    history: int = 1  # estimates that it remembers
    few_steps: bool = False  # whether it is for models alone that were distilled for it
    evaluations: Callable[[ScheduleConfig, int, int], int] = lambda cfg, n, start: n - start  # of N steps from `start`

    def __call__(self, cfg: ScheduleConfig, n: int, *, start: int = 0) -> Sampler:
        return self.lay_out(cfg, n, start=start)


SAMPLERS = {
    "ddim": Method(lay_out=ddim),
    "dpm": Method(lay_out=dpm, stochastic=True),
    "euler": Method(lay_out=euler),
    "euler-ancestral": Method(lay_out=euler_ancestral, stochastic=True),
    "dpmpp-2m": Method(lay_out=dpmpp_2m),
    "unipc": Method(lay_out=unipc, history=2),
    "deis": Method(lay_out=deis),
    "heun": Method(lay_out=heun, evaluations=_heun_evaluations),
    "lcm": Method(lay_out=lcm, stochastic=True, few_steps=True),
}


class _Steps(NamedTuple):
    """Steps that are executed, N of them."""

    timesteps: np.ndarray  # (N,) int64
    a: np.ndarray  # (N,) alphas_bar
    p: np.ndarray  # (N,) alphas_bar after the step; 1 is the clean latents
    h: np.ndarray  # (N,) growth of half the logarithm of the signal-to-noise ratio; infinite at a = 0 and p = 1
    h_before: np.ndarray  # (N,) of the step before; of the first one nothing
    second: np.ndarray  # (N,) bool: neither the first nor the last step, so of second order

    @property
    def c_x(self) -> np.ndarray:
        """What a step keeps of x where it keeps eps or x0 of the model."""
        return np.sqrt((1 - self.p) / (1 - self.a))

    @property
    def half_ratio(self) -> np.ndarray:
        """h / (2 h_before) of second-order steps, 0 of others and of the step after a = 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.second, 1 / (2 * (self.h_before / self.h)), 0)


def _reference_steps(cfg: ScheduleConfig, n: int, start: int) -> _Steps:
    """Steps as the models' own schedulers take them: from t to `schedule.previous`."""
    kept = _tail(schedule.timesteps(cfg, n), start)
    return _steps(cfg, kept, schedule.previous(cfg, kept, n))


def _visited_steps(cfg: ScheduleConfig, n: int, start: int) -> _Steps:
    """Steps from each visited timestep to the next one, and to the clean latents."""
    kept = _tail(schedule.visited(cfg, n), start)
    return _steps(cfg, kept, np.append(kept[1:], -1))


def _tail(timesteps: np.ndarray, start: int) -> np.ndarray:
    if not 0 <= start < len(timesteps):
        raise ValueError(f"start must be in 0..{len(timesteps) - 1}, got {start}")
    return timesteps[start:]


def _steps(cfg: ScheduleConfig, kept: np.ndarray, after: np.ndarray) -> _Steps:
    alphas = schedule.alphas_bar(cfg)
    a, p = alphas[kept], np.where(after >= 0, alphas[np.maximum(after, 0)], 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        now, then = (np.log(np.sqrt(x / (1 - x))) for x in (a, p))  # half log-SNR, -inf at a = 0, inf at p = 1
        before = np.concatenate([now[:1], now[:-1]])  # of the previously executed timestep
        return _Steps(kept, a, p, then - now, now - before, (np.arange(len(kept)) > 0) & (after >= 0))


def _table(*, clean: np.ndarray, x: np.ndarray, now: np.ndarray, before=None, noise=None) -> np.ndarray:
    """(N, columns) of coefficients where x0 is what is estimated.

    Args:
      clean: (N,) alphas_bar, of which x0 is told.
      x, now, before, noise: (N,) of x, x0, the x0s before, and noise; None is 0.
    """
    none = np.zeros_like(clean)
    before, noise = [none] if before is None else before, none if noise is None else noise
    return np.stack([np.sqrt(clean), np.sqrt(1 - clean), x, now, *before, noise], axis=1)


def _deterministic(steps: _Steps) -> Sampler:
    """x0 and eps of the model, mixed anew."""
    table = _table(clean=steps.a, x=steps.c_x, now=np.sqrt(steps.p) - np.sqrt(steps.a) * steps.c_x)
    return Sampler(steps.timesteps, table, np.zeros_like(steps.timesteps))


def _unipc_predictor(steps: _Steps) -> np.ndarray:
    """Of each step, the coefficients of x0 now and before, (N, 2); that of x is `c_x`."""
    m, half = -np.expm1(-steps.h) * np.sqrt(steps.p), steps.half_ratio
    return np.stack([m * (1 + half), -m * half], axis=1)


def _unipc_corrector(steps: _Steps) -> np.ndarray:
    """Of the same step once its end is evaluated: of x0 there, at its beginning, and at that of the step before.

    (N, 3). The last row, of the clean latents, which nobody evaluates, means nothing.
    """
    h, m = steps.h, -np.expm1(-steps.h) * np.sqrt(steps.p)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = -steps.h_before / h  # of the step before, -inf after a = 0
        phi = np.expm1(-h) / -h - 1
        b1, b2 = phi / np.expm1(-h), 2 * (phi / -h - 0.5) / np.expm1(-h)
        old = np.where(steps.second, (b2 - b1) / (ratio - 1), 0)
        new = np.where(steps.second, b1 - old, 0.5)
        old = np.where(steps.second, old / ratio, 0)
    return m[:, None] * np.stack([new, 1 - new - old, old], axis=1)


def _remembering_noise(table: np.ndarray, a: np.ndarray) -> np.ndarray:
    """The same rows where eps is estimated in place of x0, for a > 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        x = table[:, 2] + table[:, 3] / np.sqrt(a)  # x0 = (x - sqrt(1 - a) eps) / sqrt(a)
        now = -table[:, 3] * np.sqrt((1 - a) / a)
        return np.stack([np.sqrt(1 - a), -np.sqrt(a), x, now, table[:, 4], table[:, 5]], axis=1)
