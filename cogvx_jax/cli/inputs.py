"""The pixels that many requests hold until their videos are made: equal ones once, and not all of them in memory."""

import dataclasses
import hashlib
import tempfile
from typing import Any

import numpy as np

from cogvx_jax.pipelines.request import Request

IN_MEMORY = 2**30  # bytes; further inputs wait in files without a name, which end with the process


class Inputs:
    """Takes over the pictures, videos and masks of requests."""

    def __init__(self, in_memory: int = IN_MEMORY):
        self._room = in_memory
        self._held: dict[tuple, np.ndarray] = {}  # by shape and hash

    def hold(self, request: Request) -> Request:
        """The same request with pixels that are shared with earlier ones, or lie in a file. Raises: OSError."""
        names = ("video", "mask", "control", "prefix", "extend")
        clips: dict[str, Any] = {name: getattr(request, name) for name in names}
        held: dict[str, Any] = {name: self._hold(clip) for name, clip in clips.items() if clip is not None}
        if request.controls is not None:
            held["controls"] = tuple(use._replace(clip=self._hold(use.clip)) for use in request.controls)
        if request.warped is not None:
            arrays: dict[str, Any] = {name: getattr(request.warped, name) for name in ("noises", "flow")}
            own: dict[str, Any] = {name: self._hold(array) for name, array in arrays.items() if array is not None}
            held["warped"] = request.warped._replace(**own)
        if request.stills is not None:
            held["stills"] = tuple(
                still._replace(pictures=tuple(map(self._hold, still.pictures))) for still in request.stills
            )
        return dataclasses.replace(request, **held)

    def _hold(self, pixels: np.ndarray) -> np.ndarray:
        pixels = np.ascontiguousarray(pixels)
        key = pixels.shape, pixels.dtype.str, hashlib.sha256(pixels.data).digest()
        if key not in self._held:
            self._held[key] = pixels if pixels.nbytes <= self._room else _in_a_file(pixels)
            self._room -= self._held[key].nbytes if self._held[key] is pixels else 0
        return self._held[key]


def _in_a_file(pixels: np.ndarray) -> np.ndarray:
    with tempfile.TemporaryFile() as file:
        file.write(pixels.data)
        file.flush()
        return np.memmap(file, pixels.dtype, "r", shape=pixels.shape)
