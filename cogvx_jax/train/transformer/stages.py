"""The stages of a run, one after the other: on which clips, how many at a time, how fast and for how long.

A file of them, where paths are relative to it, unless they are URLs of buckets:

    [[stage]]
    data = "cache/small"  # a folder of `cogvx encode`
    steps = 2000
    batch_size = 8

    [[stage]]
    data = {"cache/videos" = 3, "cache/images" = 1}  # of every 4 clips, 3 are videos
    steps = 500
    learning_rate = 1e-4
    pack = 20000  # rows of so many video tokens, which hold clips of any size and length; see `train.pack`

Without `pack` each batch is of one folder of its data.
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from cogvx_jax.storage import StoragePath, storage_path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a run. Raises: ValueError for numbers that cannot be."""

    data: tuple[tuple[StoragePath, int], ...]  # folders of `cogvx encode`, and in which proportion they are drawn from
    steps: int  # updates of this stage
    batch_size: int = 4  # clips an update; of packed ones, rows
    accumulate: int = 1  # parts of a batch that are computed one after the other
    learning_rate: float = 5e-4  # of adapters; the authors use 5e-4 to 1e-3, and 1e-5 for all parameters
    schedule: Literal["constant", "cosine"] = "constant"  # after the warmup; a cosine falls to 1% at the stage's end
    warmup: int = 50  # updates from 0 to the learning rate
    pack: int | None = None  # video tokens a row of clips of any size; None has one clip a row

    def __post_init__(self):
        if not self.data:
            raise ValueError("a stage needs data")
        if any(type(weight) is not int or weight < 1 for _, weight in self.data):
            raise ValueError("weights of data are whole numbers from 1 on, such as 7 and 3")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.batch_size < 1:
            raise ValueError(f"the batch size must be at least 1, got {self.batch_size}")
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ValueError(f"a batch of {self.batch_size} clips cannot be computed in {self.accumulate} equal parts")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"the learning rate must be above 0 and below 1, got {self.learning_rate}")
        if self.warmup < 0:
            raise ValueError(f"warmup must be at least 0, got {self.warmup}")
        if self.pack is not None and self.pack < 1:
            raise ValueError(f"packed rows need a token, got {self.pack}")
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"the schedule must be constant or cosine, got {self.schedule!r}")
        if self.schedule == "cosine" and self.steps <= self.warmup:
            raise ValueError(f"a cosine of {self.steps} updates leaves none after a warmup of {self.warmup}")

    @property
    def decay_steps(self) -> int | None:
        """Updates over which the learning rate falls; None where it stays."""
        return self.steps if self.schedule == "cosine" else None


KINDS: dict[str, Any] = {
    "steps": int,
    "batch_size": int,
    "accumulate": int,
    "learning_rate": float,
    "schedule": str,
    "warmup": int,
    "pack": int,
}


def read_stages(path: Path, defaults: Mapping[str, Any]) -> tuple[Stage, ...]:
    """The stages of a TOML file.

    Args:
      defaults: for what a stage does not say.
    Raises: FileNotFoundError; ValueError naming the stage and what is wrong with it. The data is not looked at.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {str(path)!r}; give a .toml file with a [[stage]] for each stage")
    try:
        found = tomllib.loads(path.read_text())
    except ValueError as error:  # TOMLDecodeError, or bytes that are no text
        raise ValueError(f"{path} is not TOML: {error}") from None
    rows = found.get("stage")
    if set(found) != {"stage"} or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} must hold a [[stage]] for each stage and nothing else")
    stages = []
    for number, row in enumerate(rows, 1):
        try:
            stages.append(Stage(**{**defaults, **_settings(row), "data": _data(row.get("data"), path.parent)}))
        except ValueError as error:
            raise ValueError(f"{path}, stage {number}: {error}") from None
    return tuple(stages)


def ends(stages: tuple[Stage, ...]) -> list[int]:
    """Updates of the run that are done when each of its stages is."""
    return [sum(stage.steps for stage in stages[: i + 1]) for i in range(len(stages))]


def _settings(row: Mapping[str, Any]) -> dict[str, Any]:
    """All but the data, each of its kind."""
    unknown = row.keys() - KINDS.keys() - {"data"}
    if unknown:
        raise ValueError(f"there is no setting {min(unknown)!r}; the known ones are data, {', '.join(KINDS)}")
    settings = {}
    for name, value in row.items():
        if name == "data":
            continue
        kind = KINDS[name]
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ValueError(f"{name} must be {'a' if kind is not int else 'an'} {kind.__name__}, got {value!r}")
        settings[name] = kind(value)
    return settings


def _data(value: Any, base: Path) -> tuple[tuple[StoragePath, int], ...]:
    weights = {value: 1} if isinstance(value, str) else value
    if not isinstance(weights, dict) or not weights:
        raise ValueError("data must be a folder of `cogvx encode`, or a table of such folders and their weights")
    places = (
        (storage_path(folder) if "://" in folder else base / folder, weight) for folder, weight in weights.items()
    )
    return tuple(places)
