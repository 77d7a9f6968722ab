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
    where = "motion_mean > 4"  # of the clips those whose scores make it true; see `clips.cache.chosen`
    pack = 20000  # rows of so many video tokens, which hold clips of any size and length; see `clips.pack`

Without `pack` each batch is of one folder of its data.
"""

import dataclasses
from pathlib import Path
from typing import Any

from cogvx_jax.storage import StoragePath, storage_path
from cogvx_jax.train.fields import check_known, read_fields, read_toml_rows
from cogvx_jax.train.transformer.settings import StageSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage(StageSettings):
    """A part of a run. Raises: ValueError for numbers that cannot be."""

    data: tuple[tuple[StoragePath, int], ...]  # folders of `cogvx encode`, and in which proportion they are drawn from

    def __post_init__(self):
        if not self.data:
            raise ValueError("a stage needs data")
        if any(type(weight) is not int or weight < 1 for _, weight in self.data):
            raise ValueError("weights of data are whole numbers from 1 on, such as 7 and 3")
        super().__post_init__()


def read_stages(path: Path, defaults: StageSettings) -> tuple[Stage, ...]:
    """The stages of a TOML file.

    Args:
      defaults: for what a stage does not say.
    Raises: FileNotFoundError; ValueError naming the stage and what is wrong with it. The data is not looked at.
    """
    stages, others = [], {field.name: getattr(defaults, field.name) for field in dataclasses.fields(StageSettings)}
    for number, row in enumerate(read_toml_rows(path, "stage"), 1):
        try:
            check_known(row, ("data", *others))
            data = _data(row.get("data"), path.parent)
            stages.append(Stage(**others | read_fields(StageSettings, row), data=data))
        except ValueError as error:
            raise ValueError(f"{path}, stage {number}: {error}") from None
    return tuple(stages)


def _data(value: Any, base: Path) -> tuple[tuple[StoragePath, int], ...]:
    weights = {value: 1} if isinstance(value, str) else value
    if not isinstance(weights, dict) or not weights:
        raise ValueError("data must be a folder of `cogvx encode`, or a table of such folders and their weights")
    places = (
        (storage_path(folder) if "://" in folder else base / folder, weight) for folder, weight in weights.items()
    )
    return tuple(places)
