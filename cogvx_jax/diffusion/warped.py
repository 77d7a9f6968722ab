"""What a user says of noise that moves: where it or its flow comes from, and how it becomes that of latents.

Go-with-the-Flow's LoRAs start from such noise; sampling itself is as ever. `diffusion.noise_warp` computes it.
"""

import dataclasses
import math
import numbers
import os
import re
from typing import Any

from cogvx_jax.diffusion.noise_warp import WAYS

MAX_CELL = 64


@dataclasses.dataclass(frozen=True)
class WarpedNoise:
    """Noise, or the flow that it is made of.

    Args:
      source: a .npy file, or an array.
      degradation: from 0 to 1, how much new noise is mixed in: 0 holds the motion tightly, 1 leaves nothing of it.
      frames: how the noise of frames becomes that of latents: "nearest", "blend" or "blend_norm".
      cell: of a flow, points of noise along the side of a latent. Time and memory grow with its square.
    Raises: ValueError, one sentence, for a value of another kind or out of its range.
    """

    source: Any
    degradation: float = 0.5
    frames: str = "nearest"
    cell: int = 32

    def __post_init__(self):
        if not isinstance(self.source, str | os.PathLike) and not hasattr(self.source, "__array__"):
            raise ValueError(f"noise and flow must be a path or an array, got {str(self.source)[:40]!r}")
        if isinstance(self.source, str | os.PathLike) and (not os.fspath(self.source) or "\0" in str(self.source)):
            raise ValueError(f"this is no path of a .npy file: {str(self.source)!r}")
        a = self.degradation
        if isinstance(a, bool) or not isinstance(a, numbers.Real) or not (math.isfinite(a) and 0 <= a <= 1):
            raise ValueError(f"degradation must be from 0 to 1, got {str(a)[:40]}")
        if self.frames not in WAYS:
            raise ValueError(f"frames of noise must be one of {', '.join(WAYS)}, got {str(self.frames)[:40]!r}")
        if type(self.cell) is not int or not 1 <= self.cell <= MAX_CELL:
            raise ValueError(f"cell must be a whole number from 1 to {MAX_CELL}, got {str(self.cell)[:40]}")


KEYS = tuple(field.name for field in dataclasses.fields(WarpedNoise))[1:]


def parse_warped(text: str) -> WarpedNoise:
    """The value of "noises.npy" or "flow.npy:degradation=0.3,frames=blend,cell=16".

    A colon without such pairs after it belongs to the path. Raises: ValueError, one sentence.
    """
    path, _, rest = text.rpartition(":")
    if not path or not re.fullmatch(r"\w+=[^,=/]*(,\w+=[^,=/]*)*", rest):
        return WarpedNoise(text)
    given: dict[str, Any] = {}
    for key, _, value in (word.partition("=") for word in rest.split(",")):
        if key not in KEYS or key in given:
            raise ValueError(f"noise: {key[:40]!r} is no option, or stands twice; the known ones are {', '.join(KEYS)}")
        given[key] = value if key == "frames" else _number(key, value)
    return WarpedNoise(path, **given)


def format_warped(warped: WarpedNoise) -> str | None:
    """Text that `parse_warped` reads as the same value; None where the numbers are in memory."""
    if not isinstance(warped.source, str | os.PathLike):
        return None
    values = {"degradation": repr(float(warped.degradation)), "frames": warped.frames, "cell": warped.cell}
    return f"{os.fspath(warped.source)}:{','.join(f'{key}={value}' for key, value in values.items())}"


def _number(key: str, text: str) -> float | int:
    try:
        return int(text) if key == "cell" and text.isdecimal() and len(text) < 10 else float(text)
    except ValueError:
        raise ValueError(f"{key} must be a number, got {text[:40]!r}") from None
