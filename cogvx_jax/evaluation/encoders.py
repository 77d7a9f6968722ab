"""Features that the user brings: functions of frames, videos or prompts, named as MODULE:FUNCTION.

No weights come with this package. A function of one's own computes features by any network:

    def image_features(frames):  # (F, H, W, 3) uint8 RGB -> (F, d)
    def video_features(frames):  # the same -> (d,)
    def text_features(prompts):  # a list of texts -> (n, d)

It is code that the user names, and it runs as such.
"""

import dataclasses
import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

FRAMES = 16  # that an image function is given at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoders:
    """Functions that compute features, each as MODULE:FUNCTION; the module may lie in the working folder.

    Args:
      subject_features: of frames, for subject consistency; VBench's are of DINO ViT-B/16.
      background_features: of frames, for background consistency; VBench's are of CLIP ViT-B/32.
      clip_features: of frames, for CLIPScore.
      text_features: of prompts, for CLIPScore.
      video_features: of a whole video, for the Fréchet distance (FVD where they are of I3D) and MMD.
      video_frames: from the beginning of each video that these see.
      board_features: the functions for consistency are the board's networks, so that `eval total` takes their scores.
    """

    subject_features: str | None = None
    background_features: str | None = None
    clip_features: str | None = None
    text_features: str | None = None
    video_features: str | None = None
    video_frames: int = 16
    board_features: bool = False

    def __post_init__(self) -> None:
        if self.video_frames < 1:
            raise ValueError(f"video_frames must be at least 1, got {self.video_frames}")
        if (self.clip_features is None) != (self.text_features is None):
            raise ValueError("CLIPScore is of frames and prompts; give both clip_features and text_features")

    def check(self) -> None:
        """Raises: ValueError for a name that stands for no function."""
        for field in dataclasses.fields(self):
            if field.name.endswith("_features") and isinstance(name := getattr(self, field.name), str):
                find_function(name)


@functools.lru_cache
def find_function(name: str) -> Callable[[Any], Any]:
    """The function of MODULE:FUNCTION. Raises: ValueError, one sentence, where there is none."""
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ValueError(f"a function of features is named as MODULE:FUNCTION, got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"there is no function {name}: {error}") from None
    if not callable(found):
        raise ValueError(f"{name} is {type(found).__name__}, not a function")
    return found


def frame_features(name: str, frames: Iterable[np.ndarray]) -> np.ndarray:
    """Features (F, d) of frames, a few of which are held at a time. Raises: ValueError for what are no features."""
    found = [_checked(name, find_function(name)(some), (len(some), None)) for some in _several(frames)]
    return np.concatenate(found) if found else np.zeros((0, 1))


def video_features(name: str, frames: np.ndarray) -> np.ndarray:
    """Features (d,) of a video (F, H, W, 3). Raises: ValueError for what are no features."""
    return _checked(name, np.reshape(find_function(name)(frames), (1, -1)), (1, None))[0]


def text_features(name: str, prompts: list[str]) -> np.ndarray:
    """Features (n, d) of prompts. Raises: ValueError for what are no features."""
    return _checked(name, find_function(name)(prompts), (len(prompts), None))


def _several(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    some = list[np.ndarray]()
    for frame in frames:
        some.append(frame)
        if len(some) == FRAMES:
            yield np.stack(some)
            some = []
    if some:
        yield np.stack(some)


def _checked(name: str, found: Any, shape: tuple[int, None]) -> np.ndarray:
    array = np.asarray(found)
    if array.ndim != 2 or len(array) != shape[0] or not np.issubdtype(array.dtype, np.number):
        raise ValueError(f"{name} must give features ({shape[0]}, d), got {array.dtype} {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} gave features that are not finite")
    return array.astype(np.float64)
