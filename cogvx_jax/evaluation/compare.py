"""Two files of scores, measure by measure: how much better one is, and whether that is more than chance."""

import dataclasses
from collections.abc import Mapping

from cogvx_jax.evaluation.scores import Score
from cogvx_jax.metrics.bootstrap import bootstrap_mean

FEW = 8  # prompts, below which an interval says nothing


@dataclasses.dataclass(frozen=True)
class Difference:
    """A measure of two folders.

    Attributes:
      first, second: the whole scores.
      change: second - first, the mean over prompts that both have; of whole scores where videos are not told.
      low, high: the interval of the change; None where it cannot be had.
      prompts: that both have.
      left: prompts that only one has.
    """

    first: float
    second: float
    change: float
    low: float | None = None
    high: float | None = None
    prompts: int = 0
    left: int = 0

    def word(self) -> str:
        """What the interval says."""
        if self.low is None or self.high is None:
            return "no interval: one number of all videos" if not self.prompts else "no interval: one prompt"
        if self.prompts < FEW:
            return f"fewer than {FEW} prompts say nothing"
        if self.low <= 0 <= self.high:
            return "within chance"
        return "more" if self.change > 0 else "less"


def compare_scores(first: Mapping[str, Score], second: Mapping[str, Score]) -> dict[str, Difference]:
    """The differences of all measures that both have.

    Prompts are the pairs: each has a mean on either side, and pairs are drawn for the interval.

    Raises: ValueError where they have no measure in common.
    """
    common = [name for name in first if name in second]
    if not common:
        raise ValueError(f"they have no measure in common: {', '.join(first)} and {', '.join(second)}")
    return {name: _difference(first[name], second[name]) for name in common}


def _difference(first: Score, second: Score) -> Difference:
    whole = Difference(first.value, second.value, second.value - first.value)
    sides = [_prompts(one) for one in (first, second)]
    both = [prompt for prompt in sides[0] if prompt in sides[1]]
    if not both:
        return whole
    found = bootstrap_mean([sides[1][prompt] - sides[0][prompt] for prompt in both], both)
    left = len({*sides[0], *sides[1]}) - len(both)
    interval = {} if len(both) == 1 else {"low": found.low, "high": found.high}
    return dataclasses.replace(whole, change=found.mean, prompts=len(both), left=left, **interval)


def _prompts(score: Score) -> dict[str, float]:
    """The mean of each prompt's videos."""
    sums, weights = dict[str, float](), dict[str, float]()
    for one in score.videos:
        sums[one.prompt] = sums.get(one.prompt, 0.0) + one.value * one.weight
        weights[one.prompt] = weights.get(one.prompt, 0.0) + one.weight
    return {prompt: total / weights[prompt] for prompt, total in sums.items()}
