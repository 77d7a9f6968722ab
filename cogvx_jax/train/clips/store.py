"""Arrays by name in few files, however many there are: tensorstore's OCDBT, in a folder or a bucket.

Several processes may add to one store at a time, and others read it meanwhile. Each entry holds a checksum of its
names, types, shapes and bytes, which is compared on reading.
"""

import time
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import safetensors.numpy
import tensorstore as ts

from cogvx_jax.storage import StoragePath, kvstore

COMMIT_BYTES = 64 * 2**20  # of what is added, written in one go: a file
COMMIT_SECONDS = 60  # after which less is written, too
CHECKSUM = "checksum"  # the array of an entry with the CRC-32 of the others; entries of older stores have none
CONTEXT = {"cache_pool": {"total_bytes_limit": 2**26}}  # for the index, not the arrays


class Store:
    """Entries of a few named arrays each, which can be added but do not change.

    Args:
      folder: where it lies; nothing needs to be there yet.
    """

    def __init__(self, folder: StoragePath):
        self._folder = folder
        spec = {"driver": "ocdbt", "base": kvstore(folder)}
        self._entries = ts.KvStore.open(spec, context=ts.Context(CONTEXT)).result()
        self._opened = time.time()
        self._adding: ts.Transaction | None = None
        self._bytes, self._since = 0, 0.0

    def names(self) -> set[str]:
        """Of all entries that are written. Raises: ValueError where the store is damaged."""
        return {name.decode() for name in self._entries.list().result()}

    def add(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Adds an entry, which others see after `commit` at the latest. Raises: OSError where it cannot be written."""
        data = encode_entry(arrays)
        if self._adding is None:
            self._adding, self._bytes, self._since = ts.Transaction(), 0, time.monotonic()
        self._entries.with_transaction(self._adding)[name] = data
        self._bytes += len(data)
        if self._bytes >= COMMIT_BYTES or time.monotonic() - self._since >= COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Writes what was added: all of it, or nothing. Raises: OSError where it cannot."""
        adding, self._adding = self._adding, None
        if adding is None:
            return
        try:
            adding.commit_sync()
        except ValueError as error:  # of tensorstore, whatever the reason
            raise OSError(f"cannot write {self._folder}: {str(error).splitlines()[0]}") from None

    def read(self, names: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """Entries, all fetched at once.

        Raises: KeyError for one that is not there; ValueError for one that is damaged, as its checksum says.
        """
        return [arrays for arrays, _ in self.read_checked(names)]

    def read_checked(self, names: Sequence[str]) -> list[tuple[dict[str, np.ndarray], bool]]:
        """As `read`, and whether each entry has a checksum."""
        # Entries do not change: what the index said when it was first read need not be asked for again.
        reading = [self._entries.read(name, staleness_bound=self._opened) for name in names]
        found = []
        for name, read in zip(names, reading, strict=True):
            result = read.result()
            if result.state == "missing":  # unless it was added since
                result = self._entries.read(name).result()
            if result.state != "value":
                raise KeyError(f"{self._folder} has no entry {name}")
            try:
                found.append(decode_entry(result.value))
            except ValueError as error:
                raise ValueError(f"{self._folder}: the entry {name} is damaged, {error}") from None
        return found


def encode_entry(arrays: Mapping[str, np.ndarray]) -> bytes:
    whole = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
    return safetensors.numpy.save(whole | {CHECKSUM: checksum(whole)})


def decode_entry(data: bytes) -> tuple[dict[str, np.ndarray], bool]:
    """The arrays of an entry, and whether it has a checksum. Raises: ValueError where that does not hold."""
    try:
        arrays = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:  # of NumPy, for types and sizes
        raise ValueError(str(error)) from None
    written = arrays.pop(CHECKSUM, None)
    if written is not None and not np.array_equal(written, checksum(arrays)):
        raise ValueError("it is not what was written; encode to a new folder")
    return arrays, written is not None


def checksum(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """CRC-32 of arrays with their names, types and shapes, (1,) uint32."""
    found = 0
    for name in sorted(arrays):
        array = arrays[name]
        found = zlib.crc32(f"{name} {array.dtype.str} {array.shape}\n".encode(), found)
        found = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, found)
    return np.array([found], np.uint32)
