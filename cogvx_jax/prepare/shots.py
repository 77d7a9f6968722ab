"""Step `shots`: a film becomes clips of one shot each."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from cogvx_jax.data.scene_scores import Change
from cogvx_jax.prepare.detectors import DETECTORS
from cogvx_jax.prepare.films import ask
from cogvx_jax.prepare.rows import Row
from cogvx_jax.prepare.settings import Settings
from cogvx_jax.prepare.settings import Shots as ShotSettings

SIDE = 256  # pixels of the longer side of frames that detectors see
FLASH = 5  # frames that a flash may last
ALIKE = 12.0  # levels by which the frames around a flash may differ
BLACK, FLAT = 20.0, 5.0  # mean and deviation of the luma of a frame that shows nothing
BLACKEST, LEVELS = 16, 219  # luma of a video: what is black, and from there to white
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def shots(film: Row, settings: Settings) -> list[Row]:
    """The clips of a film, in order.

    Args:
      film: `source`, `fps`, `duration` and `digest` of the step probe.
    Returns: of each clip `clip_id`; `start` and `end`, seconds, and `start_frame` and `end_frame`, slots of 1/fps
      seconds, the end excluded; `shot`, its number in the film; `cut_scores` of the cuts at both ends of the shot, None
      at an end of the film; `frames_seen` of the film.
    Raises: as `films.ask`; ValueError for a detector whose package or weights are missing.
    """
    seen = Seen(settings.shots)
    about = {"side": SIDE, "colours": seen.colours}
    with ask("small", Path(film["source"]), settings.limit_of(film["duration"]), **about) as answers:
        for header, thumbnails in answers:
            assert thumbnails is not None
            frames = next(answers)[1] if seen.colours else None
            for n, change in enumerate(header["changes"]):
                seen.add(thumbnails[n], Change(*change), None if frames is None else frames[n])
    fps, found = film["fps"] or 25.0, []
    for number, (first, stop, scores) in enumerate(seen.shots()):
        for begin, end in parts(first, stop, scores, fps, settings.shots):
            found.append(
                {
                    "clip_id": f"{film['digest'][:16]}-{begin:07d}-{end:07d}",
                    "start": begin / fps,
                    "end": end / fps,
                    "start_frame": begin,
                    "end_frame": end,
                    "shot": number,
                    "cut_scores": list(scores),
                    "frames_seen": seen.count,
                }
            )
    return found


class Seen:
    """A film as it is looked at: its cuts, and which of its frames are black.

    Attributes:
      colours: whether its detector sees frames; otherwise it goes by their changes alone.
    """

    def __init__(self, settings: ShotSettings):
        self._finder, self.count = DETECTORS[settings.detector](settings), 0
        self.colours = self._finder.colours
        self._black = bytearray()
        self._recent: dict[int, np.ndarray] = {}  # thumbnails, to tell flashes
        self._flashes: set[int] = set()  # frames that look like some before, with others in between
        self._changes: list[int] = []  # of the last frames, those that differ much from the one before

    def add(self, luma: np.ndarray, change: Change, frame: np.ndarray | None = None) -> None:
        """The next frame: a thumbnail of its luma (h, w) uint8, 16 to 235, and with colours (H, W, 3) uint8."""
        thumbnail = (luma.astype(np.float32) - BLACKEST) * (255 / LEVELS)
        self._black.append(bool(thumbnail.mean() < BLACK and thumbnail.std() < FLAT))
        self._finder.see(frame, change)
        self._changes = [n for n in self._changes if n > self.count - FLASH]
        for begin in self._changes:  # is the picture before the change back?
            before = self._recent.get(begin - 1)
            if before is not None and before.shape == thumbnail.shape and np.abs(before - thumbnail).mean() < ALIKE:
                self._flashes |= set(range(begin, self.count + 1))
        if change.difference > ALIKE / 255 * 100:
            self._changes.append(self.count)
        self._recent[self.count] = thumbnail
        self._recent.pop(self.count - FLASH - 1, None)
        self.count += 1

    def shots(self) -> Iterator[tuple[int, int, tuple[float | None, float | None]]]:
        """First frame, end and scores of each shot, without black frames at its ends."""
        cuts: Mapping[int, float] = {n: x for n, x in self._finder.cuts().items() if n not in self._flashes}
        bounds = [0, *cuts, self.count]
        for first, stop in zip(bounds, bounds[1:], strict=False):
            scores = cuts.get(first), cuts.get(stop)
            while first < stop and self._black[first]:
                first += 1
            while first < stop and self._black[stop - 1]:
                stop -= 1
            if first < stop:
                yield first, stop, scores


def parts(
    first: int, stop: int, scores: tuple[float | None, float | None], fps: float, settings: ShotSettings
) -> list[tuple[int, int]]:
    """The clips of a shot: its cuts are trimmed, and what is longer than a clip may be is divided evenly."""
    trim = math.ceil(settings.trim * fps)
    first, stop = first + trim * (scores[0] is not None), stop - trim * (scores[1] is not None)
    length = stop - first
    if length < settings.shortest * fps:
        return []
    count = math.ceil(length / (settings.longest * fps))
    bounds = [first + length * i // count for i in range(count + 1)]
    return list(zip(bounds, bounds[1:], strict=False))
