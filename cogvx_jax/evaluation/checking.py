"""Whether all videos of a board are there, whole and alike: what is missing, extra, unreadable or of another shape."""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from cogvx_jax.data.decode import stream_video
from cogvx_jax.evaluation.folders import composed, find_videos
from cogvx_jax.evaluation.frames import MAX_FRAMES
from cogvx_jax.evaluation.samples import Sample

ODD = ("frames", "fps", "size")


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a video is, by decoding all of it."""

    frames: int
    fps: Fraction | None
    size: tuple[int, int]  # height and width


@dataclasses.dataclass(frozen=True)
class Expected:
    """What every video should be; None takes what most are.

    Args:
      frames: of each video.
      fps: frames per second.
    """

    frames: int | None = None
    fps: float | None = None


@dataclasses.dataclass(frozen=True)
class Checked:
    """What a folder holds of the videos that are asked for.

    Attributes:
      asked: how many those are.
      whole: those that are there and can be read to the end.
      missing, extra: names.
      unreadable, odd: names, each with what is wrong.
    """

    asked: int
    whole: int
    missing: list[str]
    extra: list[str]
    unreadable: dict[str, str]
    odd: dict[str, str]

    @property
    def complete(self) -> bool:
        """Whether all that is asked for is there, whole and alike; extra videos do no harm."""
        return not (self.missing or self.unreadable or self.odd)

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self) | {"complete": self.complete}


def check_folder(
    folder: Path,
    samples: Sequence[Sample],
    expected: Expected = Expected(),  # noqa: B008
    on_video: Callable[[], object] = lambda: None,
) -> Checked:
    """Looks for the videos of a board in a folder, and decodes each to its end.

    Raises: OSError for a folder that cannot be read; ValueError where it holds none of the videos.
    """
    there = find_videos(folder)
    names = dict.fromkeys(composed(sample.name) for sample in samples)
    found = [name for name in names if name in there]
    facts, unreadable = dict[str, Facts](), dict[str, str]()
    for name in found:
        try:
            facts[name] = read_facts(there[name])
        except (ValueError, OSError) as error:
            unreadable[name] = str(error)
        on_video()
    return Checked(
        asked=len(names),
        whole=len(facts),
        missing=[name for name in names if name not in there],
        extra=[name for name in there if name not in names],
        unreadable=unreadable,
        odd=_odd(facts, expected),
    )


def read_facts(path: Path) -> Facts:
    """Decodes a video to its end, without making colours of it. Raises: as `stream_video`; ValueError without frames.

    A file that breaks off has the frames before that.
    """
    with stream_video(path, strict=True) as stream:
        for _ in stream.at([MAX_FRAMES]):
            raise ValueError(f"{str(path)!r} has more than {MAX_FRAMES} frames; no board's video is that long")
        if not stream.passed:
            raise ValueError(f"{str(path)!r} holds no video frames")
        if stream.interlaced:  # OpenCV 5.0 reads one frame of such a file again and again
            raise ValueError(f"{str(path)!r} is interlaced, as no model makes videos; its scores would be wrong")
        return Facts(stream.passed, stream.fps, (stream.height, stream.width))


def _odd(facts: Mapping[str, Facts], expected: Expected) -> dict[str, str]:
    """The videos that are not as they should be."""
    should: dict[str, Any] = {}
    for field in ODD:
        count = collections.Counter(getattr(one, field) for one in facts.values())
        should[field] = count.most_common(1)[0][0] if count else None
    if expected.frames is not None:
        should["frames"] = expected.frames
    if expected.fps is not None:
        should["fps"] = expected.fps
    wrong = dict[str, str]()
    for name, one in facts.items():
        said = [
            f"{_word(field, getattr(one, field))}, not {_word(field, should[field])}"
            for field in ODD
            if not _alike(field, getattr(one, field), should[field])
        ]
        if said:
            wrong[name] = "; ".join(said)
    return wrong


def _alike(field: str, own: Any, should: Any) -> bool:
    if field != "fps" or own is None or should is None:
        return own == should
    return abs(float(own) - float(should)) < 0.005  # 29.97 is 30000/1001


def _word(field: str, value: Any) -> str:
    if value is None:
        return f"no {field}"
    if field == "size":
        return f"{value[0]}x{value[1]}"
    return f"{float(value):g} {field}"
