"""Encoded pictures in a file of their own, until a video is made of several such files.

A file holds what the encoder says of the whole stream, then a record for each packet: its size, times in frames,
whether a decoder can begin there, and its bytes. It is read by the process that wrote it or by a later one of the same
host, never from strangers.
"""

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

MAGIC = b"cogvx packets 1\n"
RECORD = struct.Struct("<qqq?")  # bytes, pts and dts in frames, keyframe
HEADER = struct.Struct("<q")


class Encoded(NamedTuple):
    """A packet. Times count frames from the first one of its file."""

    data: bytes
    shown: int
    decoded: int
    key: bool


def begin_packets(file: BinaryIO, about: bytes) -> None:
    """Writes the beginning of a file: what a decoder needs once, such as sizes and profiles."""
    file.write(MAGIC + HEADER.pack(len(about)) + about)


def write_packet(file: BinaryIO, packet: Encoded) -> None:
    file.write(RECORD.pack(len(packet.data), packet.shown, packet.decoded, packet.key) + packet.data)


def end_packets(file: BinaryIO) -> None:
    """Waits until the disk has it, so that a file that gets its name after this is whole whatever happens."""
    file.flush()
    os.fsync(file.fileno())


class Packets:
    """A file of packets while it is read.

    Attributes:
      about: see `begin_packets`.
    Raises: ValueError, naming the file, where it is damaged.
    """

    def __init__(self, path: Path, file: BinaryIO):
        self._path, self._file = path, file
        self._end = os.fstat(file.fileno()).st_size
        if self._read(len(MAGIC)) != MAGIC:
            raise self._damaged()
        self.about = self._read(HEADER.unpack(self._read(HEADER.size))[0])

    def __iter__(self) -> Iterator[Encoded]:
        """All packets, in the order in which they are decoded; one is in memory at a time."""
        while self._file.tell() < self._end:
            size, *rest = RECORD.unpack(self._read(RECORD.size))
            yield Encoded(self._read(size), *rest)

    def _read(self, count: int) -> bytes:
        if not 0 <= count <= self._end - self._file.tell():
            raise self._damaged()
        return self._file.read(count)

    def _damaged(self) -> ValueError:
        return ValueError(f"{str(self._path)!r} is damaged; remove its folder, and the same command begins anew")


@contextlib.contextmanager
def open_packets(path: Path) -> Iterator[Packets]:
    with path.open("rb") as file:
        yield Packets(path, file)
