"""What makes a run of CogVideo (2022) what it is, as values that need no jax: they are the command line, too."""

import dataclasses
from typing import Literal

CHANNEL = ("extra_positions", "blocks/channel/*")  # what a stage adds to the base
PICTURES = ("words", "positions", "norm/*", "blocks/base/*")  # the base, which makes pictures by itself
Trained = Literal["sequential", "interpolation"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelTraining:
    """Which of the two temporal channels of CogVideo (2022) is trained, and from where."""

    # of CogVideo (2022), the channel to train: key frames one after the other, or frames between others
    channel: Trained = "sequential"
    # of CogVideo (2022), begin with a new channel where the model has one
    new_channel: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodesObjective:
    """What is random about the loss of codes, and its terms. Raises: ValueError for numbers out of range.

    The makers' trainer is not known to leave captions out; `text_dropout` and `named` are ours, for guidance.
    """

    text_dropout: float = 0.1  # share of captions replaced by the guide's, which guidance steers away from
    named: float = 0.5  # share of captions with the word that guidance puts after a prompt
    # weight of the loss of first frames, as the base makes them from their own text; it is for training the base
    first: float = 0.0
    later: float = 1.0  # weight of the loss of frames by the channel

    def __post_init__(self) -> None:
        for name in ("text_dropout", "named"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if min(self.first, self.later) < 0 or not self.first + self.later > 0:
            raise ValueError("the weights of first and later frames must be at least 0, and one of them above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodesRunConfig:
    """What makes a run what it is, but for its clips and its pace. Raises: ValueError for numbers that cannot be."""

    channel: Trained = "sequential"
    new_channel: bool = False
    parts: tuple[str, ...] = CHANNEL  # patterns of the paths of what is trained, as for `parts.split`
    objective: CodesObjective = CodesObjective()
    optimizer: Literal["adamw", "adafactor", "muon"] = "adamw"
    weight_decay: float = 1e-4
    average: float = 0.99  # decay of the moving average that is exported; 0 keeps none
    validation: float = 0.0  # videos to keep out and validate with: a share of them, or from 1 on their number
    seed: int = 0  # of all that is random

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("a run trains some parts of the model")
        if self.weight_decay < 0 or not 0 <= self.average < 1:
            raise ValueError("weight decay must be at least 0, the average's decay in 0..1")
