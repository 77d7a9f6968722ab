"""How sure a mean is: percentile intervals by the bootstrap, of groups that are drawn whole.

Videos of one prompt are alike, so prompts are drawn, not videos.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 2000
AT_ONCE = 2**22  # numbers that are drawn at a time


class Interval(NamedTuple):
    """A mean, and between which numbers it lies with the probability that was asked for."""

    mean: float
    low: float
    high: float
    groups: int


def bootstrap_mean(
    values: Sequence[float],
    groups: Sequence[Hashable],
    weights: Sequence[float] | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The weighted mean of values and its interval; the same numbers give the same interval.

    Args:
      groups: of each value, such as its prompt.
      weights: of each value; None counts all alike.
      level: the interval's probability.
    Returns: of a single group the interval is the mean itself, which says nothing.
    Raises: ValueError without values, for numbers that are not finite, or lengths that differ.
    """
    numbers = np.asarray(values, np.float64)
    heavy = np.ones(len(numbers)) if weights is None else np.asarray(weights, np.float64)
    if not len(numbers) or not len(numbers) == len(groups) == len(heavy):
        raise ValueError(f"each value has a group and a weight, got {len(numbers)}, {len(groups)} and {len(heavy)}")
    if not np.isfinite(numbers).all() or not (heavy > 0).all():
        raise ValueError("values must be finite and weights positive")
    places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    own = np.array([places[group] for group in groups])
    sums, totals = (np.bincount(own, v, len(places)) for v in (numbers * heavy, heavy))
    random, count, means = np.random.default_rng(seed), len(places), list[np.ndarray]()
    step = max(AT_ONCE // count, 1)
    for begin in range(0, DRAWS, step):
        drawn = random.integers(count, size=(min(step, DRAWS - begin), count))
        means.append(sums[drawn].sum(axis=1) / totals[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sums.sum() / totals.sum()), float(low), float(high), count)
