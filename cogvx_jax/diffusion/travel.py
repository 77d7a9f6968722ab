"""Prompts that follow each other: over the windows of a clip, or over the steps of sampling.

Between the places of two prompts their text states are mixed in proportion; after the last place they are its own.
`Travel` says what is asked for, `lay_out` how much of each prompt each window of each step has.

K prompts, the first of which is the video's own; N steps, W windows of a step.
"""

import dataclasses
import decimal
import fractions
from typing import Any

import numpy as np

from cogvx_jax.diffusion.windows import Laid

MAX_PROMPTS = 64
MAX_FRAME = 2**14
MAX_TEXT = 400  # of a place: the smallest share has about 340 digits


@dataclasses.dataclass(frozen=True)
class Travel:
    """Prompts behind the video's own, in the order of their places.

    Args:
      over: "frames", of the clip, or "steps".
      places: of each, above 0: a frame, or the share of the steps that are taken before, at most 1.
      prompts: as many.
    Raises: ValueError, one sentence.
    """

    over: str
    places: tuple[float, ...]
    prompts: tuple[str, ...]

    def __post_init__(self):
        if self.over not in ("frames", "steps"):
            raise ValueError(f"travel is over frames or steps, got {str(self.over)[:40]!r}")
        most = MAX_FRAME if self.over == "frames" else 1
        if not 1 <= len(self.prompts) <= MAX_PROMPTS or len(self.places) != len(self.prompts):
            raise ValueError(f"travel has 1 to {MAX_PROMPTS} prompts, each with its place, got {len(self.prompts)}")
        if not all(isinstance(prompt, str) for prompt in self.prompts):
            raise ValueError("the prompts of travel must be text")
        if not all(0 < place <= most for place in self.places):
            raise ValueError("places of travel are frames or shares of the steps after the first: the prompt is at 0")
        if self.over == "frames" and not all(float(place).is_integer() for place in self.places):
            raise ValueError(f"frames of travel must be whole numbers, got {str(self.places)[:60]}")
        if any(a >= b for a, b in zip(self.places[:-1], self.places[1:], strict=True)):
            raise ValueError("travel has two prompts for one place; give one")


def parse_travel(pairs: list[tuple[Any, Any]]) -> Travel:
    """Prompts by place, in any order: a frame, such as 24 or "24", or a share of the steps, such as "50%".

    Raises: ValueError, one sentence.
    """
    read = sorted(((*_place(place), prompt) for place, prompt in pairs), key=lambda one: one[:2])
    kinds = {over for over, _, _ in read}
    if len(kinds) != 1:
        raise ValueError("travel is over frames, such as 24, or over steps, such as 50%: give places of one kind")
    return Travel(kinds.pop(), tuple(place for _, place, _ in read), tuple(prompt for _, _, prompt in read))


def _place(place: Any) -> tuple[str, float]:
    text = str(place).strip()
    number = text.removesuffix("%")
    plain = number.isascii() and number.replace(".", "", 1).isdecimal()
    if isinstance(place, bool) or not plain or len(number.partition(".")[0]) > 8 or len(text) > MAX_TEXT:
        raise ValueError(
            f"a place of travel is a frame, such as 24, or a share of the steps, such as 50%, got {text[:40]!r}"
        )
    if text.endswith("%"):
        return "steps", float(fractions.Fraction(number) / 100)  # rounded once, so that text keeps any share
    if not number.isdecimal():
        raise ValueError(f"a frame of travel must be a whole number, got {text!r}; a share of the steps ends with %")
    return "frames", float(number)


def format_travel(travel: Travel) -> dict[str, str]:
    """Prompts by place, as `parse_travel` reads the same value back."""
    form = _percent if travel.over == "steps" else "{:.0f}".format
    return {form(place): prompt for place, prompt in zip(travel.places, travel.prompts, strict=True)}


def _percent(share: float) -> str:
    """All digits of a share, a hundredfold: 0.5 is "50%"."""
    return f"{(100 * decimal.Decimal(repr(float(share)))).normalize():f}%"


def lay_out(travel: Travel, windows: Laid, *, per_latent: int, padding: int = 0) -> np.ndarray:
    """How much of each prompt each window has, (N, W, K) float32, whose sums are 1.

    Args:
      windows: of N steps. Over frames a window has the place of its middle, between those of its latents.
      per_latent: frames of a latent.
      padding: latents in front of the clip.
    """
    steps, width = windows.latents.shape[0], windows.latents.shape[2]
    if travel.over == "steps":
        at = np.arange(steps)[:, None] / max(steps - 1, 1) * np.ones((1, windows.latents.shape[1]))
    else:
        before, behind = windows.latents[..., (width - 1) // 2], windows.latents[..., width // 2]
        middle = np.where(behind >= before, (before + behind) / 2, behind)  # some run over the end to the beginning
        at = (middle - padding) * per_latent
    places, each = np.array([0.0, *travel.places]), np.eye(len(travel.places) + 1)
    return np.stack([np.interp(at, places, own) for own in each], axis=-1).astype(np.float32)
