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
    """Called with each frame of a video in turn: (H, W, 3) uint8, or planes as `decode.Frame` has them."""

    def __init__(self) -> None:
        self._graph: Any = None
        self._count = 0

    def __call__(self, frame: Any) -> Change:
        pushed = av.VideoFrame.from_ndarray(frame, "rgb24") if isinstance(frame, np.ndarray) else frame
        graph = self._graph = self._graph or _graph(pushed)
        pushed.pts, pushed.time_base = self._count, UNIT
        self._count += 1
        graph.push(pushed)
        found = graph.pull().metadata
        return Change(float(found.get("lavfi.scd.mafd", 0)), float(found.get("lavfi.scd.score", 0)))


def _graph(frame: Any) -> Any:
    graph: Any = av.filter.Graph()
    last = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format.name, time_base=UNIT)
    for name, arguments in (("format", "yuv420p"), ("scdet", "threshold=10"), ("buffersink", None)):
        following = graph.add(name, arguments)
        last.link_to(following)
        last = following
    graph.configure()
    return graph
