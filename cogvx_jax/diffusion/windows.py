"""Windows over clips longer than trained: a step predicts each window by itself, and latents of several take the mean.

`Windows` says what is asked for, `lay_out` which windows each step has. The model sees the latents of a window as if
they were a clip, so memory and the cost of attention are those of a window. A new policy is a function and a row of
POLICIES.

T latents of a clip, S of a window, W windows of a step, N steps.
Source: AnimateDiff-Evolved's context windows, as ComfyUI-CogVideoXWrapper fdb8abd has them; FreeNoise is Qiu et al.
2023, arXiv:2310.15169.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

MAX_FRAMES = 2**14
MAX_STRIDES = 8


@dataclasses.dataclass(frozen=True)
class Windows:
    """What windows are asked for.

    Args:
      frames: pixel frames of a window.
      overlap: pixel frames that neighbours share.
      policy: "static": the same windows in all steps. "uniform": they move from step to step, so that seams do not stay
        in one place. "looped": they also run over the end to the beginning, for clips that loop.
      strides: how many distances of latents in a window, 1, 2, 4 and so on, each with windows of its own; not static.
      noise: "free": later windows start from the noise of the first one, shuffled, which is meant to keep a scene.
        "plain": each latent has its own.
    Raises: ValueError, one sentence, for a value of another kind or out of its range.
    """

    frames: int
    overlap: int = 8
    policy: str = "uniform"
    strides: int = 1
    noise: str = "free"

    def __post_init__(self):
        for name, low, high in (("frames", 1, MAX_FRAMES), ("overlap", 0, MAX_FRAMES), ("strides", 1, MAX_STRIDES)):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"windows: {name} must be a whole number from {low} to {high}, got {str(value)[:40]}")
        for name, known in (("policy", tuple(POLICIES)), ("noise", ("free", "plain"))):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"windows: {name} must be one of {', '.join(known)}, got {str(value)[:40]}")
        if self.overlap >= self.frames:
            raise ValueError(
                f"windows of {self.frames} frames are not larger than their overlap of {self.overlap}; lower the "
                "overlap, or use larger windows"
            )
        if self.policy == "static" and self.strides > 1:
            raise ValueError("windows: strides are of the policies uniform and looped; static windows have none")

    def __str__(self) -> str:
        names = ("policy", "strides", "noise")
        return f"{self.frames}:{self.overlap}," + ",".join(f"{name}={getattr(self, name)}" for name in names)

    def latents(self, per_latent: int, patch: int = 1) -> tuple[int, int]:
        """Latents of a window and of its overlap.

        Args:
          per_latent: pixel frames of a latent; a frame more makes one more, as at the beginning of a clip.
          patch: latents of a token.
        Raises: ValueError, one sentence, for frames that are not of whole latents or tokens.
        """
        if self.frames % per_latent > 1 or self.overlap % per_latent:
            raise ValueError(
                f"windows must be of {per_latent}N or {per_latent}N+1 frames, their overlap of {per_latent}N, got "
                f"{self.frames} and {self.overlap}"
            )
        size, overlap = -(-self.frames // per_latent), self.overlap // per_latent
        if size % patch:
            raise ValueError(
                f"windows of {self.frames} frames are {size} latents, and this model's tokens are of {patch}; use "
                f"windows of {(size + 1) * per_latent} frames"
            )
        return size, overlap


class Laid(NamedTuple):
    """The windows of a step; laid out for N steps, with a leading axis of N."""

    latents: Any  # (W, S) int32, the latents of each window; only the first `count` rows are windows
    count: Any  # () int32
    times: Any  # (T,) float32, how many windows have a latent
    first: Any  # () bool: all windows have the condition of latent 0 at their beginning
    prompts: Any = None  # (W, K) float32, how much of each of K prompts a window has; None: all have the only one


def lay_out(windows: Windows, latents: int, count: int, *, size: int, overlap: int, first: bool = False) -> Laid:
    """The windows of `count` steps over T `latents`.

    Args:
      size, overlap: of `Windows.latents`. Windows as long as the clip are the clip.
      first: as in `Laid`.
    """
    each = [[list(range(latents))]] * count
    if size < latents:
        each = [POLICIES[windows.policy](step, latents, size, overlap, windows.strides) for step in range(count)]
    most = max(len(step) for step in each)
    padded = [step + [step[0]] * (most - len(step)) for step in each]
    times = [np.bincount(np.concatenate(step), minlength=latents) for step in each]
    assert np.min(times) > 0, f"{windows} leave latents out"
    return Laid(
        latents=np.asarray(padded, np.int32),
        count=np.asarray([len(step) for step in each], np.int32),
        times=np.asarray(times, np.float32),
        first=np.full(count, first),
    )


def static(step: int, latents: int, size: int, overlap: int, strides: int = 1) -> list[list[int]]:
    """From the first latent on; the last window is pulled back to end with the clip."""
    starts = [*range(0, latents - size, size - overlap), latents - size]
    return [list(range(start, start + size)) for start in starts]


def looped(step: int, latents: int, size: int, overlap: int, strides: int = 1) -> list[list[int]]:
    """Windows whose beginning moves with the step, and that run over the end to the beginning."""
    return [
        window for stride in _strides(latents, size, strides) for window in _ring(step, latents, size, overlap, stride)
    ]


def uniform(step: int, latents: int, size: int, overlap: int, strides: int = 1) -> list[list[int]]:
    """As `looped`, but a window that would run over the end is moved to end there, and one at the beginning added.

    Each stride by itself: where the source looks for the one at the beginning among windows of the next stride, some
    lengths leave latents out.
    """
    found = []
    for stride in _strides(latents, size, strides):
        found += _within(_ring(step, latents, size, overlap, stride), latents)
    return [window for at, window in enumerate(found) if window not in found[:at]]


def _ring(step: int, latents: int, size: int, overlap: int, stride: int) -> list[list[int]]:
    """Windows of latents that are `stride` apart; the last latent is followed by the first."""
    offset = _reversed_bits(step)
    shift = round(latents * offset)
    starts = range(int(offset * stride) + shift, latents + shift, size * stride - overlap)
    return [[i % latents for i in range(start, start + size * stride, stride)] for start in starts]


def _within(ring: list[list[int]], latents: int) -> list[list[int]]:
    """The windows of a ring, none of which runs over the end."""
    found, i = list(ring), 0
    while i < len(found):
        window = found[i]
        begins = next((now for before, now in itertools.pairwise(window) if now < before), None)
        if begins is not None:
            steps = [(at - window[0]) % latents for at in window]
            found[i] = [at + latents - 1 - steps[-1] for at in steps]
            if begins not in found[(i + 1) % len(found)]:
                found.insert(i + 1, list(range(begins, begins + len(window))))
        i += 1
    return found


POLICIES: Mapping[str, Callable[[int, int, int, int, int], list[list[int]]]] = {
    "static": static,
    "uniform": uniform,
    "looped": looped,
}


def shuffled(keys: np.ndarray, size: int, overlap: int) -> np.ndarray:
    """Which latent's noise each latent gets by FreeNoise: (B, T) integers.

    The first window keeps its own. Behind it a window's new latents have those of the one before, in another order.

    Args:
      keys: (B, T) random numbers, whose order is that of the shuffle.
    """
    videos, latents = keys.shape
    found, new = np.tile(np.arange(latents), (videos, 1)), size - overlap
    for start in range(0, latents - size, new):
        order = start + np.argsort(keys[:, start : start + new], axis=1)
        place = start + size
        found[:, place : place + new] = np.take_along_axis(found, order, axis=1)[:, : latents - place]
    return found


def parse_windows(text: str) -> Windows:
    """The value of "48", "48:8" or "48:8,policy=looped,strides=2,noise=plain". Raises: ValueError, one sentence."""
    frames, _, rest = text.partition(":")
    given: dict[str, Any] = {"frames": _whole("frames", frames)}
    for word in rest.split(",") if rest else ():
        key, equals, value = word.partition("=")
        key, value = (key, value) if equals else ("overlap", key)
        if key not in FIELDS or key in given:
            raise ValueError(f"windows: {key[:40]!r} is no option, or stands twice; the known ones are {KNOWN}")
        given[key] = _whole(key, value) if key in ("overlap", "strides") else value
    return Windows(**given)


FIELDS = tuple(field.name for field in dataclasses.fields(Windows))
KNOWN = ", ".join(FIELDS[1:])


def _whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ValueError(f"windows: {name} must be a whole number, such as 48:8, got {text[:40]!r}")
    return int(text)


def _strides(latents: int, size: int, most: int) -> list[int]:
    """Distances of latents in a window; a window of the largest fits the clip, which the source does not see to."""
    levels = min(most, math.ceil(math.log2(latents / size)) + 1)
    return [2**level for level in range(levels) if (size - 1) * 2**level < latents]


def _reversed_bits(step: int) -> float:
    """The step's 64 bits in reverse order behind the point: 0, 1/2, 1/4, 3/4, ..."""
    return int(f"{step:064b}"[::-1], 2) / 2**64
