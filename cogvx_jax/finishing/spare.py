"""The video as it was before it is finished, written beside while its frames go by: kept where finishing fails."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from cogvx_jax.data.writer import FORMATS, VideoWriter
from cogvx_jax.pipelines.record import parse_record


def spare_place(out: Path) -> Path:
    """NAME-unfinished beside a video, of a kind that every player knows."""
    suffix = out.suffix if out.suffix.lower() in FORMATS else ".mp4"
    return out.with_name(f"{out.stem}-unfinished{suffix}")


def unfinished(record: str | None) -> str | None:
    """The record of a video that is to be finished, as it was before that."""
    if record is None:
        return None
    found = parse_record(record)
    return dataclasses.replace(found, options={**found.options, "finish": None}, finished=()).text


class Spared(Exception):
    """Finishing failed; its cause says why. The video as it was before is whole, at `place`."""

    def __init__(self, place: Path):
        super().__init__(f"the video as it was before finishing is {place}")
        self.place = place


def with_spare(
    finish: Callable[[Iterator[np.ndarray]], Any],
    frames: Iterator[np.ndarray],
    out: Path,
    fps: Fraction,
    comment: str | None,
    tags: Mapping[str, str] | None = None,
) -> Any:
    """What `finish` gives of the frames, which it takes one after the other.

    Args:
      comment, tags: of the video as it was.
    Raises: Spared where `finish` fails and all frames could be made and written; else what it raised.
    """
    place = spare_place(out)
    passing = _Passing(frames, VideoWriter(place, fps, comment, tags=tags))
    try:
        found = finish(passing)
    except Exception as error:
        if passing.end():
            raise Spared(place) from error
        raise
    finally:
        passing.drop()
    return found


class _Passing:
    """An iterator of frames that are written as they pass. It is no generator, so whoever takes them leaves it open."""

    def __init__(self, frames: Iterator[np.ndarray], writer: VideoWriter):
        self._frames, self._writer, self._open = frames, writer, True
        self._failed = False  # of the frames themselves
        writer.__enter__()

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        try:
            frames = next(self._frames)
        except StopIteration:
            raise
        except BaseException:
            self._failed = True
            raise
        if self._open:
            try:
                self._writer.write(frames)
            except (OSError, ValueError):  # as on a full disk: what is asked for may still fit
                self.drop()
        return frames

    def end(self) -> bool:
        """Writes what has not passed yet; whether the file is whole."""
        if self._failed or not self._open:
            return False
        with contextlib.suppress(Exception):
            for _ in self:
                pass
        if self._failed or not self._open:
            return False
        self._open = False
        try:
            self._writer.__exit__(None, None, None)
        except (OSError, ValueError):
            return False
        return True

    def drop(self) -> None:
        """Leaves nothing of a file that is not whole."""
        if self._open:
            self._open = False
            self._writer.__exit__(Spared, None, None)
