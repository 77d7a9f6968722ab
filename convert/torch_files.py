"""Torch's `.pt`, `.pth` and `.bin` files: a zip whose entries are stored as they are, so a tensor is a byte range.

The pickle among them tells which; see `convert.torch_pickle`. No entry is ever unpacked. `convert.torch_legacy` reads
what torch wrote before the zip.

Source: `torch/serialization.py`, `caffe2/serialize/inline_container.cc`.
"""

import dataclasses
import io
import struct
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from cogvx_jax.convert.tensors import Entry, Stored, Tensors, Unreadable
from cogvx_jax.convert.torch_legacy import read_legacy
from cogvx_jax.convert.torch_pickle import Foreign, View, read_pickle
from cogvx_jax.json_files import quoted
from cogvx_jax.storage import Files, Span

ZIP = b"PK\x03\x04"
PICKLE = b"\x80"  # of the format before the zip
MAX_PICKLE = 16 * 2**20  # bytes; of a 5B model it takes half a MiB
MAX_DIRECTORY = 8 * 2**20  # bytes of the list of entries
MAX_TENSORS = 100_000
MAX_NAME = 400  # characters
WRAPPERS = ("model", "module", "state_dict")  # one in the other, each of them if it is there: the weights' place
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of an entry: signature, lengths of its name and of its extra field


def read_torch(files: Files, name: str) -> Tensors:
    """The tensors of a file: those of `model`, `module` or `state_dict` in it, where it has them.

    Raises: ValueError, which does not name the file, for one that is damaged.
    """
    if files.size(name) and files.read((name, 0, 1)).tobytes() == PICKLE:
        return Tensors(files, _legacy_entries(files, name))
    archive = TorchArchive(files, name)
    return Tensors(files, archive.entries(weights(archive.load())))


def weights(found: Any) -> Any:
    """What lies in the wrappers of a file."""
    for wrapper in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    return found


class TorchArchive:
    """A file's entries. Raises: as `read_torch`."""

    def __init__(self, files: Files, name: str):
        self._files, self._name = files, name
        self._size = files.size(name)
        self._entries = {info.filename: info for info in _directory(files, name, self._size)}
        pickles = [entry for entry in self._entries if entry.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError(f"a zip with {len(pickles)} files data.pkl in it, where torch writes one")
        self._prefix = pickles[0].removesuffix("data.pkl")
        order = self._entries.get(f"{self._prefix}byteorder")
        if order is not None and order.file_size < 16 and self._bytes(order.filename) != b"little":
            raise ValueError("its numbers are not little-endian")

    def load(self) -> Any:
        """What the pickle holds; see `read_pickle`."""
        name = f"{self._prefix}data.pkl"
        if self._entries[name].file_size > MAX_PICKLE:
            size = self._entries[name].file_size
            raise ValueError(f"its pickle takes {size} bytes, where at most {MAX_PICKLE} are read")
        return read_pickle(self._bytes(name))

    def entries(self, found: Any) -> dict[str, Entry]:
        """The tensors below what was loaded, by their names, those of a dict in a dict joined by dots."""
        views = _views(found)
        keys = {view.storage.key for view in views.values() if isinstance(view, View)}
        self._files.prefetch([self._header(f"{self._prefix}data/{key}") for key in keys])
        starts = {key: self._start(f"{self._prefix}data/{key}") for key in keys}
        return {name: self._entry(name, view, starts) for name, view in views.items()}

    def _entry(self, name: str, view: View | Foreign, starts: Mapping[str, int]) -> Entry:
        if isinstance(view, Foreign):
            return _unreadable(view)
        key, item = view.storage.key, view.dtype.itemsize
        held = self._entries[f"{self._prefix}data/{key}"].file_size
        if view.storage.count * item > held:
            raise ValueError(
                f"{name} lies in a storage of {view.storage.count * item} bytes, of which {held} are there"
            )
        return _placed(view, self._name, starts[key])

    def _bytes(self, entry: str) -> bytes:
        return self._files.read((self._name, self._start(entry), self._entries[entry].file_size)).tobytes()

    def _header(self, entry: str) -> Span:
        if entry not in self._entries:
            raise ValueError(f"it lacks {quoted(entry)}, where a tensor should be")
        return self._name, self._entries[entry].header_offset, LOCAL_HEADER.size

    def _start(self, entry: str) -> int:
        """The first byte of an entry. Its own header tells; the list of entries lacks the padding."""
        span, info = self._header(entry), self._entries[entry]
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            raise ValueError(f"{quoted(entry)} in it is compressed, which torch does not do; save it again with torch")
        if not 0 <= span[1] <= self._size - LOCAL_HEADER.size:
            raise ValueError("its zip is damaged: an entry beyond its end")
        signature, name, extra = LOCAL_HEADER.unpack(self._files.read(span).tobytes())
        start = span[1] + LOCAL_HEADER.size + name + extra
        if signature != ZIP or start + info.file_size > self._size:
            raise ValueError(
                f"truncated or damaged: {quoted(entry)} ends at byte {start + info.file_size} of {self._size}"
            )
        return start


@dataclasses.dataclass(frozen=True)
class Strided:
    """An entry whose numbers lie at other distances than in C order, such as a transposed tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype
    file: str
    start: int
    steps: tuple[int, ...]  # bytes from one number to the next along each axis

    @property
    def spans(self) -> tuple[Span, ...]:
        between = sum((n - 1) * step for n, step in zip(self.shape, self.steps, strict=True))
        return ((self.file, self.start, 0 if 0 in self.shape else between + self.dtype.itemsize),)

    def read(self, files: Files) -> np.ndarray:
        numbers = files.read(self.spans[0]).view(np.uint8)
        return np.ndarray(self.shape, self.dtype, numbers.data, strides=self.steps)

    def rows(self, start: int, stop: int) -> "Strided":
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        shape = (max(stop - start, 0), *self.shape[1:])
        return Strided(shape, self.dtype, self.file, self.start + start * self.steps[0], self.steps)


def _legacy_entries(files: Files, name: str) -> dict[str, Entry]:
    found, starts = read_legacy(files, name, MAX_PICKLE)
    return {
        key: _unreadable(view) if isinstance(view, Foreign) else _placed(view, name, starts[view.storage.key])
        for key, view in _views(weights(found)).items()
    }


def _placed(view: View, file: str, start: int) -> Entry:
    """A tensor whose storage begins at a byte of a file."""
    item = view.dtype.itemsize
    start += view.offset * item
    if view.is_contiguous:
        return Stored(view.shape, view.dtype, file, start)
    return Strided(view.shape, view.dtype, file, start, tuple(step * item for step in view.stride))


def _unreadable(view: Foreign) -> Unreadable:
    return Unreadable(f"it is made by {view.made_by}, which is not read")


def _views(found: Any) -> dict[str, View | Foreign]:
    """The tensors below nested dicts by their names, joined by dots. Raises: ValueError for one that stands twice."""
    views: dict[str, View | Foreign] = {}
    for name, view in _tensors(found):
        if name in views:  # a dict in a dict, and a name with a dot in it
            raise ValueError(f"it holds {name} twice")
        views[name] = view
    return views


def _tensors(found: Any) -> Iterator[tuple[str, View | Foreign]]:
    """Every tensor, and every foreign thing that may stand for one, below nested dicts.

    Raises: ValueError for more than `MAX_TENSORS`, as where a dict holds itself.
    """
    left, count = [("", found)], 0
    while left:
        prefix, value = left.pop()
        if isinstance(value, View | Foreign):
            if len(prefix) > MAX_NAME or not prefix.isprintable() or not prefix:
                raise ValueError(f"{quoted(prefix)} is no name of a tensor")
            yield prefix, value
        elif isinstance(value, dict) and len(prefix) <= MAX_NAME:
            count += len(value)
            if count > MAX_TENSORS:
                raise ValueError(f"it holds more than {MAX_TENSORS} things")
            inner = [(f"{prefix}.{key}" if prefix else str(key), below) for key, below in value.items()]
            left += reversed(inner)


def _directory(files: Files, name: str, size: int) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(io.BufferedReader(_Ranges(files, name, size), 2**16)) as archive:
            return archive.infolist()
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        ValueError,
        EOFError,
        OSError,
        struct.error,
        IndexError,
        MemoryError,
    ) as error:
        said = " ".join(str(error)[:100].split())
        raise ValueError(f"truncated, or no zip of torch: {said or type(error).__name__}") from None


class _Ranges(io.RawIOBase):
    """A file that is read in ranges, as `zipfile` wants it; what it asks for at once is bounded."""

    def __init__(self, files: Files, name: str, size: int):
        self._files, self._name, self._size, self._at = files, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        if self._at < 0:
            raise ValueError("a place before its beginning")
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._at))
        if count > MAX_DIRECTORY:
            raise ValueError(f"its list of entries takes {count} bytes, where at most {MAX_DIRECTORY} are read")
        buffer[:count] = self._files.read((self._name, self._at, count)).tobytes() if count else b""
        self._at += count
        return count
