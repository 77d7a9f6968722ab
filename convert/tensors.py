"""What files hold, by name and unread: what a reader of a container gives, and a dialect takes and gives.

An `Entry` knows its shape, its type and the byte ranges it needs; `Tensors` are entries of files in one place. Only
`read` touches numbers, so a model is checked whole before any of it is read.
"""

import collections.abc
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import ml_dtypes
import numpy as np

from cogvx_jax.storage import Files, Span

# Beside those of numpy.
FLOATS = [np.dtype(kind) for kind in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)]


def is_floating(dtype: np.dtype) -> bool:
    """Whether weights may be of it: floating-point, not integers, truth values or complex numbers."""
    return dtype.kind == "f" or dtype in FLOATS


MAX_AXES, MAX_SIZE = 8, 2**48  # of a tensor, and of any size of it


def is_shape(sizes: Sequence[int]) -> bool:
    """Whether a tensor may have these sizes, which are not negative; one that is 0 allows the others no more."""
    return len(sizes) <= MAX_AXES and math.prod(max(n, 1) for n in sizes) <= MAX_SIZE


def unwarned() -> np.errstate:
    """Inside, NumPy does not warn of numbers that a type cannot hold: whoever writes them, or computes, names them."""
    return np.errstate(over="ignore", invalid="ignore", divide="ignore")


class Entry(Protocol):
    """An array that files hold, maybe in parts or in another form."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype:
        """Of what `read` gives."""

    @property
    def spans(self) -> tuple[Span, ...]:
        """The byte ranges that `read` reads."""

    def read(self, files: Files) -> np.ndarray:
        """The array, read-only; of a local file it is mapped where it can be, not copied."""

    def rows(self, start: int, stop: int) -> "Entry":
        """A range of its first axis; of the files no more than that is read, where the form allows it."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """An entry that lies in one piece, in C order."""

    shape: tuple[int, ...]
    dtype: np.dtype
    file: str
    start: int  # bytes from the start of the file

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def span(self) -> Span:
        """File, first byte and count of bytes."""
        return self.file, self.start, self.bytes

    @property
    def spans(self) -> tuple[Span, ...]:
        return (self.span,)

    def read(self, files: Files) -> np.ndarray:
        return files.read(self.span).view(self.dtype).reshape(self.shape)

    def rows(self, start: int, stop: int) -> "Stored":
        count, *inner = self.shape
        start, stop, _ = slice(start, stop).indices(count)
        begin = self.start + start * math.prod(inner) * self.dtype.itemsize
        return Stored((max(stop - start, 0), *inner), self.dtype, self.file, begin)


@dataclasses.dataclass(frozen=True)
class Joined:
    """Entries of one type, one after the other along the first axis."""

    parts: tuple[Entry, ...]

    @classmethod
    def of(cls, parts: Sequence[Entry]) -> Entry:
        return parts[0] if len(parts) == 1 else cls(tuple(parts))

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return self.parts[0].dtype

    @property
    def spans(self) -> tuple[Span, ...]:
        return tuple(span for part in self.parts for span in part.spans)

    def read(self, files: Files) -> np.ndarray:
        return np.concatenate([part.read(files) for part in self.parts])

    def rows(self, start: int, stop: int) -> Entry:
        found, end = [], 0
        for part in self.parts:
            begin, end = end, end + part.shape[0]
            low, high = max(start, begin), min(stop, end)
            if low < high:
                found.append(part.rows(low - begin, high - begin))
        return Joined.of(found or [self.parts[0].rows(0, 0)])


@dataclasses.dataclass(frozen=True)
class Reshaped:
    """The numbers of a flat entry, in C order."""

    flat: Entry
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.flat.dtype

    @property
    def spans(self) -> tuple[Span, ...]:
        return self.flat.spans

    def read(self, files: Files) -> np.ndarray:
        return self.flat.read(files).reshape(self.shape)

    def rows(self, start: int, stop: int) -> "Reshaped":
        count, *inner = self.shape
        start, stop, _ = slice(start, stop).indices(count)
        size = math.prod(inner)
        return Reshaped(self.flat.rows(start * size, stop * size), (max(stop - start, 0), *inner))


@dataclasses.dataclass(frozen=True)
class Computed:
    """An entry that is made of others when it is read, such as numbers times their scale.

    make: gets what the parts hold, in order, and gives the array of `shape` and `dtype`.
    stored: how its numbers are stored, for people; "" is by their type.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: tuple[Entry, ...]
    make: Callable[..., np.ndarray]
    stored: str = ""

    @property
    def spans(self) -> tuple[Span, ...]:
        return tuple(span for part in self.parts for span in part.spans)

    def read(self, files: Files) -> np.ndarray:
        return self.make(*(part.read(files) for part in self.parts))

    def rows(self, start: int, stop: int) -> "Computed":
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        shape = (max(stop - start, 0), *self.shape[1:])
        return Computed(shape, self.dtype, self.parts, lambda *arrays: self.make(*arrays)[start:stop])


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """An entry that stands in a file and cannot be read; `problem` says why."""

    problem: str
    shape: tuple[int, ...] = ()
    dtype: np.dtype = np.dtype(np.uint8)
    spans: tuple[Span, ...] = ()

    def read(self, files: Files) -> np.ndarray:
        raise ValueError(self.problem)

    def rows(self, start: int, stop: int) -> "Unreadable":
        return self


@dataclasses.dataclass(frozen=True)
class Elsewhere:
    """An entry of other files than those of the tensors that it stands among."""

    entry: Entry
    files: Files

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    @property
    def dtype(self) -> np.dtype:
        return self.entry.dtype

    @property
    def spans(self) -> tuple[Span, ...]:
        return ()  # none in those files

    def read(self, files: Files) -> np.ndarray:
        return self.entry.read(self.files)

    def rows(self, start: int, stop: int) -> "Elsewhere":
        return Elsewhere(self.entry.rows(start, stop), self.files)


def stored_as(entry: Entry) -> str:
    """The type of an entry's numbers in its file, for people."""
    if isinstance(entry, Unreadable):
        return "unreadable"
    return entry.stored if isinstance(entry, Computed) and entry.stored else str(entry.dtype)


class Renamed(dict[str, Entry]):
    """Entries under new names. Where two tensors would get the same name, it is `Unreadable`, which names both."""

    def __init__(self) -> None:
        super().__init__()
        self._theirs: dict[str, str] = {}

    def add(self, name: str, entry: Entry, theirs: str) -> None:
        """Adds an entry that its file calls `theirs`."""
        first = self._theirs.setdefault(name, theirs)
        self[name] = entry if first == theirs else Unreadable(f"it is stored twice, as {first} and as {theirs}")


class Tensors(collections.abc.Mapping[str, Entry]):
    """Entries by name.

    Args:
      files: in which they lie.
      where: for messages; None is the place of the files.
      metadata: what the file says beside them, as text.
    """

    def __init__(
        self,
        files: Files,
        entries: Mapping[str, Entry],
        where: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ):
        self.files = files
        self.where = files.where if where is None else where
        self.metadata = metadata or {}
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def of(self, entries: Mapping[str, Entry]) -> "Tensors":
        """Others in the same files: what a dialect gives."""
        return Tensors(self.files, entries, self.where, self.metadata)

    def prefetch(self, names: Sequence[str]) -> None:
        """Says which will be read next."""
        self.files.prefetch([span for name in names for span in self._entries[name].spans])

    def read(self, name: str) -> np.ndarray:
        """See `Entry.read`. Raises: ValueError, with its name, for one that is `Unreadable`."""
        entry = self._entries[name]
        if isinstance(entry, Unreadable):
            raise ValueError(f"{name} cannot be read: {entry.problem}")
        with unwarned():
            return entry.read(self.files)

    def release(self) -> None:
        """Gives back the memory of what was read so far; arrays remain valid."""
        self.files.release()
