"""FFmpeg's detector of scene cuts, `scdet`, on frames that are decoded already."""

import fractions
from typing import Any, NamedTuple

import av
import av.filter
import numpy as np

UNIT = fractions.Fraction(1, 1000)


class Change(NamedTuple):
    """How a frame differs from the one before, in percent of the range of luma.

    difference: the mean absolute difference.
    score: the lesser of that and how it changed; a cut is from 10 on.
    """

    difference: float
    score: float


class SceneScores:
    """Called with each frame (H, W, 3) uint8 of a video in turn."""

    def __init__(self) -> None:
        self._graph: Any = None
        self._count = 0

    def __call__(self, frame: np.ndarray) -> Change:
        graph = self._graph = self._graph or _graph(*frame.shape[:2])
        pushed = av.VideoFrame.from_ndarray(frame, "rgb24")
        pushed.pts, pushed.time_base = self._count, UNIT
        self._count += 1
        graph.push(pushed)
        found = graph.pull().metadata
        return Change(float(found.get("lavfi.scd.mafd", 0)), float(found.get("lavfi.scd.score", 0)))


def _graph(height: int, width: int) -> Any:
    graph: Any = av.filter.Graph()
    last = graph.add_buffer(width=width, height=height, format="rgb24", time_base=UNIT)
    for name, arguments in (("format", "yuv420p"), ("scdet", "threshold=10"), ("buffersink", None)):
        following = graph.add(name, arguments)
        last.link_to(following)
        last = following
    graph.configure()
    return graph
