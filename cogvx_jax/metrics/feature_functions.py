"""Features that the user brings: functions named as MODULE:FUNCTION, or the folder of a CLIP.

A function of one's own computes features by any network:

    def image_features(frames):  # (F, H, W, 3) uint8 RGB -> (F, d)
    def video_features(frames):  # the same -> (d,)
    def text_features(prompts):  # a list of texts -> (n, d)

It is code that the user names, and it runs as such.
"""

import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cogvx_jax.metrics.clip_folder import read_clip

FRAMES = 16  # that an image function is given at once


@functools.lru_cache
def find_function(name: str) -> Callable[[Any], Any]:
    """The function of MODULE:FUNCTION. Raises: ValueError, one sentence, where there is none."""
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ValueError(f"a function is named as MODULE:FUNCTION, got {name!r}, which is no folder of a CLIP either")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"there is no function {name}: {error}") from None
    if not callable(found):
        raise ValueError(f"{name} is {type(found).__name__}, not a function")
    return found


def is_folder(name: str) -> bool:
    """Whether a name is that of a folder, not of a function."""
    return Path(name).is_dir()


def of_frames(name: str) -> Callable[[np.ndarray], Any]:
    """What makes features (F, d) of frames (F, H, W, 3) uint8. Raises: ValueError, one sentence, for neither."""
    return read_clip(name).frames if is_folder(name) else find_function(name)


def of_texts(name: str) -> Callable[[list[str]], Any]:
    """What makes features (n, d) of n texts. Raises: ValueError, one sentence, for neither."""
    return read_clip(name).texts if is_folder(name) else find_function(name)


def frame_features(name: str, frames: Iterable[np.ndarray]) -> np.ndarray:
    """Features (F, d) of frames, a few of which are held at a time. Raises: ValueError for what are no features."""
    found = [_checked(name, of_frames(name)(some), (len(some), None)) for some in _several(frames)]
    return np.concatenate(found) if found else np.zeros((0, 1))


def video_features(name: str, frames: np.ndarray) -> np.ndarray:
    """Features (d,) of a video (F, H, W, 3); of a CLIP the mean of its frames. Raises: ValueError for what are none."""
    if is_folder(name):
        return frame_features(name, frames).mean(axis=0)
    return _checked(name, np.reshape(find_function(name)(frames), (1, -1)), (1, None))[0]


def text_features(name: str, prompts: list[str]) -> np.ndarray:
    """Features (n, d) of prompts. Raises: ValueError for what are no features."""
    return _checked(name, of_texts(name)(prompts), (len(prompts), None))


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
