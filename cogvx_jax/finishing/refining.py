"""What may be asked of refining, checked before any work; listed once: keywords, flags and the record follow."""

import dataclasses
import math
from typing import Annotated, Any

import tyro

MAX_OVERLAP = 0.75  # of a window


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refining:
    """How a video is redrawn by a model of videos, after it is enlarged.

    Args:
      refine: a text-to-video model, as `cogvx generate --model` takes it; None leaves the pictures as they are.
      strength: how much of them is redrawn, above 0 and at most 1.
      prompt: what the video shows; None is the prompt of its record.
      steps: sampling steps, of which `strength` are taken; None is the model's own.
      guidance_scale: weight of the prompt; None is the model's own. Guided, each window gets all that the prompt
        names, though it sees a part of the picture.
      seed: of the noise.
      overlap: part of a window, of the model's native size, that neighbours share, 0 to 0.75.
      frames: that are redrawn together; None is the model's own number. Longer videos fade from part to part.
      dtype: that the model computes in.
      quantize: keep its kernels as integers, as for `cogvx generate`.
      memory: its memory mode, as for `cogvx generate`.
    Raises: ValueError, one sentence, for what cannot be.
    """

    refine: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    strength: float = 0.3
    prompt: str | None = None
    steps: int | None = None
    guidance_scale: float | None = 1.0
    seed: int = 0
    overlap: float = 0.25
    frames: int | None = None
    dtype: str | None = None
    quantize: str | None = None
    memory: str | None = None

    def __post_init__(self):
        if not (isinstance(self.strength, int | float) and 0 < self.strength <= 1):
            raise ValueError(f"strength must be above 0 and at most 1, got {self.strength!r}")
        if not (math.isfinite(self.overlap) and 0 <= self.overlap <= MAX_OVERLAP):
            raise ValueError(f"overlap must be from 0 to {MAX_OVERLAP:g} of a window, got {self.overlap!r}")
        if self.refine is None and (said := self._said()):
            raise ValueError(f"{said[0]} is of refining; name the model with refine, or leave it out")

    def _said(self) -> list[str]:
        return [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]

    @property
    def as_json(self) -> dict[str, Any]:
        """What is not as it is by default, but for the model and the prompt."""
        return {name: getattr(self, name) for name in self._said() if name not in ("refine", "prompt")} | {
            "strength": self.strength
        }

    def fade_frames(self, frames: int) -> int:
        """How many frames neighbouring segments share: an eighth of them."""
        return frames // 8
