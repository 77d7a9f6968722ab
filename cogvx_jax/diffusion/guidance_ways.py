"""Which sampling steps are guided in full, laid out on the host; the others compute the prompt's branch alone.

interval  guidance within a part of the timesteps only; elsewhere the prompt's prediction as it is
delta     skipped steps take the unconditional prediction as the conditional one less their last difference
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from cogvx_jax.diffusion.number_text import number_text
from cogvx_jax.diffusion.reuse import FEWEST, Schedule, evenly


@dataclasses.dataclass(frozen=True)
class Way:
    """A way of guidance with its numbers, of `parse_guidance`."""

    name: str
    values: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.name}:{'-'.join(map(number_text, self.values))}"

    def check_steps(self, count: int) -> None:
        """Raises ValueError where so many executed steps are too few to leave any out."""
        if self.name == "delta" and count < FEWEST:
            raise ValueError(f"guidance {self} needs at least {FEWEST} steps, got {count}; leave it out")


def parse_guidance(text: str) -> Way:
    """The value of "interval:0.2-0.8" or "delta:2". Raises: ValueError, one sentence."""
    name, _, rest = text.partition(":")
    if name not in WAYS:
        raise ValueError(f"unknown guidance {name[:40]!r}; the known ones are {', '.join(WAYS)}")
    try:
        values = tuple(float(word) for word in rest.split("-")) if len(rest) < 40 else ()
    except ValueError:
        values = ()
    if name == "interval" and not (len(values) == 2 and 0 <= values[0] < values[1] <= 1):
        raise ValueError(
            f"guidance interval must be two shares of the timesteps, such as interval:0.2-0.8, got {text[:40]!r}"
        )
    if name == "delta" and not (len(values) == 1 and 1 <= values[0] <= 100):
        raise ValueError(f"guidance delta must be a rate from 1 to 100, such as delta:2, got {text[:40]!r}")
    return Way(name, values)


def guided_steps(way: Way, timesteps: np.ndarray, training_steps: int) -> Schedule:
    """The steps that are guided in full.

    Args:
      timesteps: (N,) of the steps that are executed.
      training_steps: of the noise schedule; an interval is of shares of them.
    Raises: ValueError as `Way.check_steps`.
    """
    way.check_steps(len(timesteps))
    full = WAYS[way.name].full(way, timesteps, training_steps)
    return Schedule(kind=way.name, order=0, computed=full, control=np.zeros((len(full), 1), np.float32))


def _interval(way: Way, timesteps: np.ndarray, training_steps: int) -> np.ndarray:
    """Source: Kynkäänniemi et al. 2024, arXiv:2404.07724, whose interval is one of noise levels."""
    low, high = way.values
    return (timesteps >= low * training_steps) & (timesteps <= high * training_steps)


def _delta(way: Way, timesteps: np.ndarray, training_steps: int) -> np.ndarray:
    return evenly(len(timesteps), round(len(timesteps) / way.values[0]))


class Row(NamedTuple):
    """A row of the table."""

    full: Callable[[Way, np.ndarray, int], np.ndarray]  # (N,) bool
    cost: str  # as judged, in words


WAYS: Mapping[str, Row] = {
    "interval": Row(_interval, "tiny's videos are others, 31 dB from those guided throughout at interval:0.2-0.8"),
    "delta": Row(
        _delta, "tiny's videos are 49 dB from those guided throughout at 30 of 40 evaluations; 15 steps: 35 dB"
    ),
}
