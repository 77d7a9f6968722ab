"""Which sampling steps reuse what earlier ones computed, laid out on the host in float64 before the first.

A method is a row of METHODS. Methods differ in how they choose the steps; there are three kinds of what is reused, see
`models.kept`. First and last step are always computed.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cogvx_jax.diffusion.number_text import number_text

# Of the relative change of the time embedding, an estimate of that of the blocks' result; highest power first.
# Source: ali-vilab/TeaCache, teacache_sample_video.py of CogVideoX; fitted at 50 steps.
POLYNOMIALS: Mapping[str, tuple[float, ...]] = {
    "CogVideoX-2b": (-31.0658903, 25.4732368, -5.92380459, 1.75769064, -0.00361568434),
    "CogVideoX-5b": (-1538.80483, 843.202495, -134.363087, 7.97131516, -0.0523162339),
    "CogVideoX-5b-I2V": (-1538.80483, 843.202495, -134.363087, 7.97131516, -0.0523162339),
    "CogVideoX1.5-5B": (250.210439, -165.061612, 35.7804877, -0.781551492, 0.0358559703),
    "CogVideoX1.5-5B-I2V": (122.842302, -104.088754, 26.2981677, -0.306009921, 0.037121322),
}
FEWEST = 3  # steps: with fewer there is none between the first and the last
MAX_ORDER = 3  # of differences that are kept
# Kinds of programs that steps run; see `Schedule.mode`.
MODES = (*(f"added-{order}" for order in range(MAX_ORDER + 1)), "attention", "first_block", "delta", "interval")
PAB_TIMESTEPS = (100, 850)  # between these attention is reused


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was measured of a model over the steps of a full run; see `cogvx calibrate`."""

    model: str
    ratios: tuple[float, ...]  # of each step: mean over tokens of |r_i| / |r_(i-1)|, the first is 1
    polynomial: tuple[float, ...]  # as POLYNOMIALS, fitted to this model


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Facts:
    """What a schedule may depend on."""

    timesteps: np.ndarray  # (N,) of the steps that are executed
    steps: int  # evaluations of the full run, whose tail is executed in video to video
    model: str
    calibration: Calibration | None = None
    embeddings: Callable[[np.ndarray], np.ndarray] | None = None  # timesteps (N,) -> time embeddings (N, width)


@dataclasses.dataclass(frozen=True)
class Reuse:
    """A method with its numbers, of `parse_reuse`."""

    method: str
    values: tuple[float, ...] = ()
    pattern: str = ""  # of "steps"

    def __str__(self) -> str:
        return f"{self.method}:{self.pattern or ','.join(map(number_text, self.values))}"

    @property
    def kind(self) -> str:
        """The kind of what is reused: "added", "attention" or "first_block"."""
        return METHODS[self.method].kind

    @property
    def order(self) -> int:
        """Of the differences that are kept, beside what the blocks added."""
        return int(self.values[1]) if self.method == "taylor" else 0

    def check_steps(self, count: int) -> None:
        """Raises ValueError where so many executed steps cannot reuse anything, or the pattern is of other steps."""
        if count < FEWEST:
            raise ValueError(f"reuse {self} needs at least {FEWEST} steps, got {count}; leave it out")
        if self.pattern and len(self.pattern) != count:
            raise ValueError(f"reuse {self} names {len(self.pattern)} steps, but {count} are taken")

    def check_calibration(self, model: str, calibration: Calibration | None) -> None:
        """Raises ValueError where the method needs what was not measured of the model, or was of another one."""
        if self.method not in ("magcache", "teacache"):
            return
        if calibration is not None and calibration.model != model:
            raise ValueError(f"the calibration is of {calibration.model}, and cannot be used for {model}")
        if calibration is None and (self.method == "magcache" or model not in POLYNOMIALS):
            raise ValueError(
                f"reuse {self} needs a calibration of {model}: make one by `cogvx calibrate`, or use every:2"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Number:
    """An argument of a method."""

    name: str
    default: float
    low: float
    high: float
    whole: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A row of the table."""

    kind: str
    choose: Callable[[Reuse, Facts], np.ndarray]  # (N,) bool, the steps that are computed
    numbers: tuple[Number, ...] = ()
    measures: bool = False  # whether the steps depend on more than their number
    cost: str  # as judged, in words


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Schedule:
    """How each of N steps is made, and with which numbers."""

    kind: str  # of `pipelines.shortcuts.KINDS`
    order: int
    computed: np.ndarray  # (N,) bool; where steps decide themselves, all of them
    control: np.ndarray  # (N, n) float32, what a step of that kind takes: see `models.kept`

    @property
    def skips(self) -> bool:
        return not self.computed.all() or self.kind == "first_block"


def parse_reuse(text: str) -> Reuse:
    """The value of "teacache:0.2", "magcache:0.06,3", "taylor:2" and so on; numbers that are left out are defaults.

    Raises: ValueError, one sentence, for an unknown method or a number out of its range.
    """
    name, _, rest = text.partition(":")
    if name not in METHODS:
        raise ValueError(f"unknown reuse {name[:40]!r}; the known ones are {', '.join(METHODS)}")
    if name == "steps":
        return Reuse(name, pattern=_checked_pattern(rest))
    numbers, words = METHODS[name].numbers, rest.split(",") if rest else []
    if len(words) > len(numbers):
        raise ValueError(f"reuse {name} takes {' and '.join(n.name for n in numbers)}, got {rest[:40]!r}")
    given = [_read(name, number, word) for number, word in zip(numbers, words, strict=False)]
    return Reuse(name, (*given, *(number.default for number in numbers[len(given) :])))


def schedule(reuse: Reuse, facts: Facts) -> Schedule:
    """The steps that are computed, and the numbers of all of them.

    Raises: ValueError as `Reuse.check_steps` and `Reuse.check_calibration`.
    """
    count = len(facts.timesteps)
    reuse.check_steps(count)
    reuse.check_calibration(facts.model, facts.calibration)
    computed = METHODS[reuse.method].choose(reuse, facts)
    computed[[0, -1]] = True
    if reuse.kind == "added":
        control = taylor_numbers(computed, reuse.order)
    elif reuse.kind == "first_block":
        control = np.full((count, 1), reuse.values[0])
        control[[0, -1]] = -1
    else:
        control = np.zeros((count, 1))
    return Schedule(kind=reuse.kind, order=reuse.order, computed=computed, control=control.astype(np.float32))


def taylor_numbers(computed: np.ndarray, order: int) -> np.ndarray:
    """Of each step, (N, order + 1): of a computed one `per_step` of `kept.keep_added`, else `add_kept`'s coefficients.

    A difference that was not measured yet counts as none.
    """
    found = np.zeros((len(computed), order + 1))
    last, known = 0, 0  # the last computed step, and how many factors are known there
    for i, here in enumerate(computed):
        if here:
            found[i, : min(known, order)] = 1 / (i - last) if i else 0
            last, known = i, min(known + 1, order + 1)
        else:
            found[i, :known] = [(i - last) ** k / math.factorial(k) for k in range(known)]
    return found


def evenly(count: int, kept: int) -> np.ndarray:
    """(count,) bool: `kept` of them, at least two, as evenly as whole steps allow, from the first to the last."""
    chosen = np.zeros(count, bool)
    chosen[np.round(np.linspace(0, count - 1, max(kept, 2))).astype(int)] = True
    return chosen


def accumulate(distances: np.ndarray, threshold: float) -> np.ndarray:
    """TeaCache's rule: a step is computed where the distances since the last computed one reach the threshold.

    Args:
      distances: (N,), of each step from the one before; those of the first and of the last step do not count.
    """
    computed, total = np.ones(len(distances), bool), 0.0
    for i in range(1, len(distances) - 1):
        total += distances[i]
        computed[i] = total >= threshold
        total = 0.0 if computed[i] else total
    return computed


def relative_changes(embeddings: np.ndarray) -> np.ndarray:
    """d_i = mean|e_i - e_(i-1)| / mean|e_(i-1)| of embeddings (N, width); (N,), the first is 0."""
    e = np.asarray(embeddings, np.float64)
    changes = np.abs(np.diff(e, axis=0)).mean(axis=1) / np.abs(e[:-1]).mean(axis=1)
    return np.concatenate([[0.0], changes])


def stretched(ratios: Sequence[float], count: int) -> np.ndarray:
    """A list for `count` steps: the nearest entries, as MagCache's `nearest_interp`."""
    if count == 1:
        return np.array(ratios[-1:])
    return np.array(ratios)[np.round(np.arange(count) * ((len(ratios) - 1) / (count - 1))).astype(int)]


def _teacache(reuse: Reuse, facts: Facts) -> np.ndarray:
    assert facts.embeddings is not None
    known = facts.calibration
    polynomial = POLYNOMIALS[facts.model] if known is None else known.polynomial
    changes = relative_changes(facts.embeddings(facts.timesteps))
    return accumulate(np.polyval(polynomial, changes), reuse.values[0])


def _magcache(reuse: Reuse, facts: Facts) -> np.ndarray:
    """Source: Ma et al. 2025, arXiv:2506.09045; here the last step is always computed."""
    assert facts.calibration is not None
    threshold, in_a_row, retention = reuse.values
    count = len(facts.timesteps)
    ratios = stretched(facts.calibration.ratios, max(facts.steps, count))[-count:]
    computed = np.ones(count, bool)
    ratio, error, skipped = 1.0, 0.0, 0
    for i in range(max(int(count * retention), 1), count - 1):
        ratio *= ratios[i]
        error, skipped = error + abs(1 - ratio), skipped + 1
        computed[i] = error > threshold or skipped > in_a_row
        if computed[i]:
            ratio, error, skipped = 1.0, 0.0, 0
    return computed


def _every(reuse: Reuse, facts: Facts) -> np.ndarray:
    count = len(facts.timesteps)
    return evenly(count, round(count / reuse.values[0]))


def _pab(reuse: Reuse, facts: Facts) -> np.ndarray:
    low, high = PAB_TIMESTEPS
    inside = (facts.timesteps > low) & (facts.timesteps < high)
    return (np.arange(len(inside)) % int(reuse.values[0]) == 0) | ~inside


def _all(reuse: Reuse, facts: Facts) -> np.ndarray:
    return np.ones(len(facts.timesteps), bool)


def _steps(reuse: Reuse, facts: Facts) -> np.ndarray:
    return np.array([letter == "x" for letter in reuse.pattern])


_RATE = Number(name="a rate, how many times fewer steps are computed", default=2, low=1, high=100)
METHODS: Mapping[str, Method] = {
    "every": Method(
        kind="added",
        choose=_every,
        numbers=(_RATE,),
        cost="tiny's videos are 45 dB from those of all steps at half the evaluations; half the steps: 41 dB",
    ),
    "teacache": Method(
        kind="added",
        choose=_teacache,
        measures=True,
        numbers=(Number(name="a threshold", default=0.1, low=0, high=1e6),),
        cost="tiny's videos are 43 dB from those of all steps at half the evaluations; half the steps: 41 dB",
    ),
    "magcache": Method(
        kind="added",
        choose=_magcache,
        measures=True,
        numbers=(
            Number(name="a threshold", default=0.06, low=0, high=1e6),
            Number(name="how many steps in a row", default=3, low=1, high=1000, whole=True),
            Number(name="the share of steps computed first", default=0.2, low=0, high=1),
        ),
        cost="tiny's videos are 43 dB from those of all steps at half the evaluations; half the steps: 41 dB",
    ),
    "taylor": Method(
        kind="added",
        choose=_every,  # not offered, see docs/performance.md: it lost to fewer steps
        numbers=(_RATE, Number(name="an order", default=1, low=0, high=MAX_ORDER, whole=True)),
        cost="tiny's videos are 38 dB from those of all steps at half the evaluations, worse than half the steps, 41",
    ),
    "first-block": Method(
        kind="first_block",
        choose=_all,
        measures=True,
        numbers=(Number(name="a threshold", default=0.1, low=0, high=1e6),),
        cost="tiny's videos are 44 dB from those of all steps at half the evaluations; half the steps: 41 dB",
    ),
    "pab": Method(
        kind="attention",
        choose=_pab,
        numbers=(Number(name="a period", default=2, low=1, high=1000, whole=True),),
        cost="tiny's videos are 47 dB from those of all steps with three fifths of the attention",
    ),
    "steps": Method(kind="added", choose=_steps, cost="as every:2, by the steps that are left out"),
}


def _read(method: str, number: Number, word: str) -> float:
    try:
        value = float(word) if len(word) < 40 else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not number.low <= value <= number.high or (number.whole and value != int(value)):
        kind = "a whole number" if number.whole else "a number"
        raise ValueError(
            f"reuse {method}: {number.name} must be {kind} from {number.low:g} to {number.high:g}, got {word[:40]!r}"
        )
    return value


def _checked_pattern(text: str) -> str:
    if not re.fullmatch(r"[x.]{1,1000}", text):
        raise ValueError(f"reuse steps must be of x, computed, and ., reused, such as steps:x.x.xx, got {text[:40]!r}")
    if not (text[0] == text[-1] == "x"):
        which = "first" if text[0] == "." else "last"
        raise ValueError(f"reuse steps:{text[:40]} would reuse the {which} step, which must be computed")
    return text


def checked_calibration(found: Mapping[str, Any]) -> Calibration:
    """Of the object in a file. Raises: ValueError, naming what is wrong."""
    model, lists = found.get("model"), {}
    if not isinstance(model, str) or not 0 < len(model) <= 200:
        raise ValueError("its model is no name")
    for name, low, high in (("ratios", FEWEST, 1001), ("polynomial", 1, 10)):
        values = found.get(name)
        if (
            not isinstance(values, list)
            or not low <= len(values) <= high
            or not all(type(v) in (int, float) and abs(v) < 1e9 for v in values)
        ):
            raise ValueError(f"its {name} must be {low} to {high} numbers")
        lists[name] = tuple(float(v) for v in values)
    if any(ratio <= 0 for ratio in lists["ratios"]):
        raise ValueError("its ratios must be above 0")
    return Calibration(model=model, **lists)
