"""Clips of codes, and which of their frames each update sees: a function of the update alone.

A clip is 4 seconds. Its frames, 5, 9, 17 or 33, are as far apart as those of a video that is made. The first stage sees
the five key frames of all of it. The second sees five neighbours at one of the distances between frames that there are.

Shapes: B clips, F frames or slots, n codes of a frame, L text tokens.
"""

import dataclasses
import functools
import hashlib
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from cogvx_jax.json_files import quoted
from cogvx_jax.models.cogvideo2022.configs import CogVideo2022Config
from cogvx_jax.pipelines.cogvideo2022.generate import KEY_FRAMES_SECONDS
from cogvx_jax.pipelines.cogvideo2022.text import GUIDE, TextTokenizer, batch_of, first_frame_text, frames_text
from cogvx_jax.train.cogvideo2022.settings import CodesObjective


class Clips(Protocol):
    """Captioned clips of codes."""

    @property
    def prompts(self) -> Sequence[str]: ...

    @property
    def frames(self) -> int:
        """Of each clip."""
        ...

    @property
    def keys(self) -> Sequence[str] | None:
        """A name for the video of each clip; None: all are different ones."""
        ...

    @property
    def digest(self) -> str:
        """Of all the clips."""
        ...

    @property
    def where(self) -> str:
        """A folder, or what the clips are."""
        ...

    def codes(self, numbers: Sequence[int]) -> np.ndarray:
        """Those of some clips, (B, frames, n)."""
        ...


@dataclasses.dataclass(frozen=True)
class InMemory:
    """Clips whose codes (clips, frames, n) are in memory."""

    array: np.ndarray
    prompts: Sequence[str]
    where: str = "memory"
    keys: Sequence[str] | None = None

    @functools.cached_property
    def digest(self) -> str:
        found = hashlib.sha256("\n".join(self.prompts).encode())
        found.update(np.ascontiguousarray(self.array).data)
        return found.hexdigest()[:16]

    @property
    def frames(self) -> int:
        return int(self.array.shape[1])

    def codes(self, numbers: Sequence[int]) -> np.ndarray:
        return self.array[np.asarray(numbers)]


class Cut(NamedTuple):
    """Frames of a clip: the first of them, how far they are apart, and the seconds that all of them take."""

    first: int
    stride: int
    seconds: float


def cuts(cfg: CogVideo2022Config, frames: int) -> list[list[Cut]]:
    """The cuts of a clip that a stage learns from, by their distance between frames.

    Raises: ValueError for a number of frames that no video has, or that leaves none to put between others.
    """
    steps = cfg.frames - 1
    depth = ((frames - 1) // steps).bit_length() - 1
    if frames - 1 != steps << max(depth, 0):
        some = ", ".join(str((steps << d) + 1) for d in range(4))
        raise ValueError(f"clips of {frames} frames are not of those that a video has: {some}")
    if cfg.stage == "sequential":
        return [[Cut(0, 1 << depth, KEY_FRAMES_SECONDS)]]
    if depth < 1:
        raise ValueError(f"clips of {frames} frames have none between key frames; take {2 * steps + 1} at least")
    # As in `between` of the pipeline, of which each level halves the distance.
    found = []
    for level in range(1, depth + 1):
        stride = 1 << (depth - level)
        starts = range(0, frames - steps * stride, steps * stride)
        found.append([Cut(start, stride, KEY_FRAMES_SECONDS / 2**level) for start in starts])
    return found


def warn_of_long(tokenizer: TextTokenizer, prompts: Sequence[str], length: int) -> None:
    """Warns of captions that have more tokens than a text, with what is put around them: they lose their end."""

    def is_long(prompt: str) -> bool:
        return len(frames_text(tokenizer, f"{prompt} {GUIDE}", KEY_FRAMES_SECONDS)) > length

    if long := [prompt for prompt in dict.fromkeys(prompts) if is_long(prompt)]:
        warnings.warn(
            f"{len(long)} captions have more than {length} tokens with what is put around them, and lose their end; "
            f"the first is {quoted(long[0])}",
            stacklevel=3,
        )


class Batches:
    """`batches(step)`: ids and codes of the clips of an update, counted from the stage's first.

    Args:
      numbers: of the clips to train on. Each epoch shows all of them, in another order.
    """

    def __init__(
        self,
        cfg: CogVideo2022Config,
        tokenizer: TextTokenizer,
        clips: Clips,
        objective: CodesObjective,
        numbers: Sequence[int],
        size: int,
        seed: int,
    ):
        self._cfg, self._tokenizer, self._clips, self._objective = cfg, tokenizer, clips, objective
        self._numbers, self._size, self._seed = tuple(numbers), size, seed
        self._cuts = cuts(cfg, clips.frames)

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self._seed, 1, step))
        places = range(step * self._size, (step + 1) * self._size)
        return self._rows([self._number(place) for place in places], rng, self._objective)

    def all_of(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """Rows of these clips with their captions as they are, the same at every call."""
        rng = np.random.default_rng((self._seed, 2, *numbers))
        return self._rows(numbers, rng, dataclasses.replace(self._objective, text_dropout=0.0, named=0.0))

    def _number(self, place: int) -> int:
        epoch, at = divmod(place, len(self._numbers))
        return self._numbers[_order(len(self._numbers), (self._seed, 0, epoch))[at]]

    def _rows(
        self, numbers: Sequence[int], rng: np.random.Generator, objective: CodesObjective
    ) -> dict[str, np.ndarray]:
        codes, texts, pictures = [], [], []
        for number, clip in zip(numbers, self._clips.codes(numbers), strict=True):
            level = self._cuts[rng.integers(len(self._cuts))]
            cut = level[rng.integers(len(level))]
            prompt = self._clips.prompts[number]
            codes.append(clip[[cut.first + cut.stride * frame for frame in self._cfg.order]])
            texts.append(frames_text(self._tokenizer, _said(prompt, rng, objective), cut.seconds))
            pictures.append(first_frame_text(self._tokenizer, prompt))
        found: dict[str, np.ndarray] = {"codes": np.stack(codes).astype(np.int32)}
        if objective.later:
            found |= self._text("", texts)
        if objective.first:
            found |= self._text("first_", pictures)
        return found

    def _text(self, name: str, texts: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
        length = self._cfg.text_length
        # A longer text loses its end.
        text: Any = batch_of(self._tokenizer, [ids[:length] for ids in texts], length)
        return {f"{name}ids": text.ids, f"{name}real": text.real}


def _said(prompt: str, rng: np.random.Generator, objective: CodesObjective) -> str:
    """The caption as it is given to the channel."""
    left_out, named = rng.random(2)  # drawn either way, so that one does not move what is drawn after it
    if left_out < objective.text_dropout:
        return GUIDE
    return f"{prompt} {GUIDE}" if named < objective.named else prompt


@functools.lru_cache(maxsize=4)
def _order(count: int, seed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)
