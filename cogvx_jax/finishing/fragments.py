"""A finished video in fragments, each whole under its name once it is made, so that a run that is killed goes on.

A fragment holds what is shown from one of the source's frames until another, and depends on these alone: encoders begin
anew with it. So a video is the same whether its run was killed or not.
"""

import contextlib
import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
import PIL.Image

from cogvx_jax.data.comments import png_info
from cogvx_jax.data.delivery import DeliveryWriter, PacketWriter, Preset
from cogvx_jax.data.sound import Track
from cogvx_jax.data.writer import VideoWriter
from cogvx_jax.finishing.colour import planes_program
from cogvx_jax.finishing.stream import as_bytes

SECONDS = 2  # of the source in a fragment of an encoder: what is lost at most, and how often players can begin

Write = Callable[[Any], None]
Ending = Callable[[], tuple[Track | None, str | None]]  # the sound and the text of a file whose pictures are there


@dataclasses.dataclass(frozen=True)
class Cutting:
    """Where fragments begin.

    span: frames of the source that one stands for.
    """

    fps: Fraction
    rate: Fraction
    span: int

    def first(self, fragment: int) -> int:
        """The number of the first frame in a fragment."""
        return math.ceil(fragment * self.span * self.rate / self.fps)


class Fragments(Protocol):
    """The fragments of a video, in a folder of their own."""

    cutting: Cutting

    def whole(self) -> int:
        """How many are there, from the first one on."""

    def prepare(self, picture: jax.Array) -> Any:
        """A picture (H, W, 3) in [0, 1] as it is written."""

    def fragment(self, number: int) -> contextlib.AbstractContextManager[Write]:
        """Writes a fragment, which is there when the block has ended well."""

    def join(self, count: int) -> None:
        """Makes the video of all fragments, which have so many frames."""


def write_fragments(
    fragments: Fragments, pictures: Iterator[jax.Array], begun: Callable[[], None], on_frame: Callable[[], None]
) -> int:
    """Writes those that are missing.

    Args:
      pictures: from the first frame of the first missing fragment on.
      begun: is called when a fragment is whole.
    Returns: how many frames all fragments have.
    """
    first = fragments.whole()
    total = fragments.cutting.first(first)
    for number in itertools.count(first):
        size = fragments.cutting.first(number + 1) - fragments.cutting.first(number)
        some = itertools.islice(pictures, size)
        head = next(some, None)
        if head is None:
            return total
        with fragments.fragment(number) as write:
            for picture in itertools.chain([head], some):
                write(picture)
                total += 1
                on_frame()
        begun()
    raise AssertionError("unreachable")


class EncodedFragments:
    """Files of packets for a preset's file, and its sound."""

    def __init__(
        self,
        folder: Path,
        out: str | os.PathLike,
        preset: Preset,
        size: tuple[int, int],
        rates: tuple[Fraction, Fraction],
        ending: Ending,
        tags: Mapping[str, str] | None = None,
    ):
        self._folder, self._out, self._preset, self._size = folder, Path(out), preset, size
        self._ending, self._tags = ending, tags
        self._program = planes_program(preset.bits, preset.shrink)
        self.cutting = Cutting(*rates, max(round(SECONDS * rates[0]), 1))

    def whole(self) -> int:
        return next(number for number in itertools.count() if not self._file(number).is_file())

    def prepare(self, picture: jax.Array) -> list[np.ndarray]:
        return [np.asarray(plane) for plane in self._program(picture)]

    @contextlib.contextmanager
    def fragment(self, number: int) -> Iterator[Write]:
        with PacketWriter(self._file(number), self._preset, self.cutting.rate, self._size) as writer:
            yield writer.write

    def join(self, count: int) -> None:
        track, comment = self._ending()
        about: dict[str, Any] = {"track": track, "comment": comment, "tags": self._tags}
        with DeliveryWriter(self._out, self._preset, self.cutting.rate, self._size, **about) as writer:
            for number in range(self.whole()):
                writer.append(self._file(number))

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:06d}.packets"


class PictureFragments:
    """PNGs: of each of the source's frames, what is shown until the next. They become a folder, a .gif or a .webp."""

    def __init__(
        self,
        folder: Path,
        out: str | os.PathLike,
        final: Path,
        rates: tuple[Fraction, Fraction],
        comment: str | None,
        tags: Mapping[str, str] | None = None,
    ):
        self._folder, self._out, self._final, self._comment = folder / "pictures", Path(out), final, comment
        self._tags = tags
        self.cutting = Cutting(*rates, 1)

    def whole(self) -> int:
        there = next(number for number in itertools.count() if not self._file(number).is_file())
        return next(number for number in itertools.count() if self.cutting.first(number + 1) > there)

    def prepare(self, picture: jax.Array) -> np.ndarray:
        return as_bytes(picture)

    @contextlib.contextmanager
    def fragment(self, number: int) -> Iterator[Write]:
        self._folder.mkdir(exist_ok=True)
        files = map(self._file, itertools.count(self.cutting.first(number)))
        yield lambda frame: self._save(next(files), frame)

    def join(self, count: int) -> None:
        if not self._out.suffix:
            self._folder.replace(self._final)
            return
        with VideoWriter(self._out, self.cutting.rate, self._comment, tags=self._tags) as writer:
            for number in range(count):
                with PIL.Image.open(self._file(number)) as picture:
                    writer.write(np.asarray(picture)[None])

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:05d}.png"

    def _save(self, file: Path, frame: np.ndarray) -> None:
        text = None if self._comment is None or int(file.stem) else png_info(self._comment)
        part = file.with_suffix(".part")
        with part.open("wb") as opened:
            PIL.Image.fromarray(frame).save(opened, format="PNG", pnginfo=text)
            opened.flush()
            os.fsync(opened.fileno())
        part.replace(file)
