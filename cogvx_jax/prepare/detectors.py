"""Detectors of scene cuts: each is shown all frames in turn, and says which frames are the first of a shot.

TransNetV2 marks the last frame of a shot; here all say the first of the next.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from cogvx_jax.data.scene_scores import Change
from cogvx_jax.prepare.settings import Shots

SCDET, CONTENT, ADAPTIVE, MANY = 10.0, 27.0, 3.0, 0.5  # thresholds of their makers


class CutFinder(Protocol):
    """Shown frames; asked for cuts at the end. `colours` tells whether it looks at them, or goes by changes alone."""

    @property
    def colours(self) -> bool: ...

    def see(self, frame: Any, change: Change) -> None:
        """The next frame (H, W, 3) uint8, None without colours, and what `scdet` says of it."""

    def cuts(self) -> dict[int, float]:
        """First frames of shots but the first, in order, each with its score."""


class Scdet:
    """FFmpeg's detector."""

    colours = False

    def __init__(self, settings: Shots):
        self._threshold, self._count = settings.threshold or SCDET, 0
        self._found: dict[int, float] = {}

    def see(self, frame: None, change: Change) -> None:
        if self._count and change.score >= self._threshold:
            self._found[self._count] = change.score
        self._count += 1

    def cuts(self) -> dict[int, float]:
        return self._found


class PySceneDetect:
    """A detector of the package scenedetect, on frames that are small already. Scores are those of `scdet`."""

    colours = True

    def __init__(self, settings: Shots):
        try:
            import scenedetect
        except ImportError:
            raise ValueError(
                f"the detector {settings.detector} is of a package that is not installed: "
                "pip install 'cogvx_jax[prepare]'"
            ) from None
        if settings.detector == "content":
            self._detector: Any = scenedetect.ContentDetector(settings.threshold or CONTENT, min_scene_len=1)
        else:
            self._detector = scenedetect.AdaptiveDetector(settings.threshold or ADAPTIVE, min_scene_len=1)
        self._moment = lambda n: scenedetect.FrameTimecode(n, fps=25.0)  # frames alone count
        self._count, self._found = 0, dict[int, float]()
        self._recent: dict[int, float] = {}  # scores of the last frames, as cuts are told a little later

    def see(self, frame: np.ndarray, change: Change) -> None:
        self._recent = {n: score for n, score in self._recent.items() if n > self._count - 64}
        self._recent[self._count] = change.score
        self._note(self._detector.process_frame(self._moment(self._count), np.ascontiguousarray(frame[..., ::-1])))
        self._count += 1

    def cuts(self) -> dict[int, float]:
        if self._count:
            self._note(self._detector.post_process(self._moment(self._count - 1)))
        return dict(sorted(self._found.items()))

    def _note(self, found: Any) -> None:
        for moment in found:
            if 0 < moment.frame_num < self._count + 1:
                self._found[moment.frame_num] = self._recent.get(moment.frame_num, 0.0)


class TransNet:
    """The network TransNetV2, in windows of 100 frames of which it says the middle 50."""

    colours = True

    def __init__(self, settings: Shots):
        from cogvx_jax.prepare.transnet import Windows

        self._windows, self._threshold = Windows(settings.weights), settings.threshold or MANY
        self._found: dict[int, float] = {}
        self._before, self._count = False, 0  # whether the last frame was marked

    def see(self, frame: np.ndarray, change: Change) -> None:
        self._take(self._windows.add(frame))

    def cuts(self) -> dict[int, float]:
        self._take(self._windows.end())
        return self._found

    def _take(self, probabilities: np.ndarray) -> None:
        for probability in probabilities.tolist():
            marked = probability > self._threshold
            if self._before and not marked:
                self._found[self._count] = self._last
            self._last = max(probability, self._last) if self._before and marked else probability
            self._before, self._count = marked, self._count + 1

    _last = 0.0


DETECTORS: Mapping[str, Callable[[Shots], CutFinder]] = {
    "scdet": Scdet,
    "content": PySceneDetect,
    "adaptive": PySceneDetect,
    "transnetv2": TransNet,
}
