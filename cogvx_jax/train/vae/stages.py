"""The stages of a VAE's run, one after the other: on which videos, how large and long, how fast.

A file of them, where paths are relative to it:

    [[stage]]
    steps = 2000  # of 17 frames of 256x256, as the flags or their defaults say

    [[stage]]
    data = "long.jsonl"  # for `train-vae`; what a stage does not say is as the flags say
    steps = 500
    frames = 49
"""

import dataclasses
from pathlib import Path

from cogvx_jax.train.fields import check_known, read_fields, read_toml_rows
from cogvx_jax.train.vae.settings import VAEStageSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEStage(VAEStageSettings):
    """A part of a run. Raises: ValueError for numbers that cannot be."""

    data: Path  # of videos, for `layouts.read_sources`


def vae_stage(data: Path, settings: VAEStageSettings) -> VAEStage:
    return VAEStage(data=data, **dataclasses.asdict(settings))


def read_vae_stages(path: Path, defaults: VAEStageSettings, data: Path | None) -> tuple[VAEStage, ...]:
    """The stages of a TOML file.

    Args:
      defaults, data: for what a stage does not say.
    Raises: FileNotFoundError; ValueError naming the stage and what is wrong with it. The data is not looked at.
    """
    stages = []
    for number, row in enumerate(read_toml_rows(path, "stage"), 1):
        try:
            check_known(row, ("data", *(field.name for field in dataclasses.fields(VAEStageSettings))))
            own = row.get("data")
            if own is None and data is None or own is not None and not isinstance(own, str):
                raise ValueError("data must be a file or folder of videos, unless --data names one for all stages")
            settings = dataclasses.replace(defaults, **read_fields(VAEStageSettings, row))
            stages.append(vae_stage(data if own is None and data is not None else path.parent / str(own), settings))
        except ValueError as error:
            raise ValueError(f"{path}, stage {number}: {error}") from None
    return tuple(stages)
