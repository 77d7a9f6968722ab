"""What measures are made with: a video, what it is compared with, and the networks and programs that are there."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from cogvx_jax.evaluation.encoders import Encoders


@dataclasses.dataclass(frozen=True)
class Judged:
    """A video that is scored.

    Attributes:
      name: below the folder of all videos.
      prompt: that it shows; CLIPScore is of it.
      dimensions: of the board that it counts for; None is all, of a folder that is no board's.
      index: of it among those of its prompt.
      reference: the file of the same name in the folder that this one is compared with.
    """

    name: str
    path: Path
    prompt: str
    dimensions: tuple[str, ...] | None = None
    index: int = 0
    reference: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """What scores are made with.

    Attributes:
      references: files of the other folder by their names; empty without one.
      lpips: a file of weights, as `cogvx_jax.convert.read_lpips` takes it.
      static: names of the videos that VBench's own static filter kept; None without its file.
    """

    encoders: Encoders = Encoders()
    references: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    lpips: Path | None = None
    static: frozenset[str] | None = None
