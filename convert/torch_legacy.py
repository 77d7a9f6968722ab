"""Torch files from before version 1.6 (2020): five pickles in a row, then the numbers of every storage in turn.

Such a file is what RIFE's `flownet.pkl` is. The pickles are read by `convert.torch_pickle`, which runs nothing.

Source: `torch/serialization.py`, `_legacy_save`.
"""

from typing import Any, NamedTuple

import numpy as np

from cogvx_jax.convert.torch_pickle import Storage, View, read_pickles
from cogvx_jax.json_files import quoted
from cogvx_jax.storage import Files

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
COUNT = np.dtype("<i8")  # of a storage's numbers, before them


class LegacyFile(NamedTuple):
    """What a file holds, and where the numbers of each storage begin, by its key."""

    found: Any
    starts: dict[str, int]


def read_legacy(files: Files, name: str, limit: int) -> LegacyFile:
    """A file's tensors, unread.

    Args:
      limit: bytes that its pickles may take.
    Raises: ValueError, which does not name the file, for one that is damaged or truncated.
    """
    size = files.size(name)
    head = files.read((name, 0, min(size, limit))).tobytes()
    (magic, protocol, system, found, keys), end = read_pickles(head, 5)
    if magic != MAGIC or protocol != PROTOCOL:
        raise ValueError("a pickle, but none that torch wrote")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("its numbers are not little-endian")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("its pickle is damaged: no list of storages")
    storages = _storages(found)
    starts = {}
    for key in dict.fromkeys(keys):
        if (storage := storages.get(key)) is None or storage.dtype is None:
            raise ValueError(f"its storage {quoted(key)} is of no known type")
        begin, end = end + COUNT.itemsize, end + COUNT.itemsize + storage.count * storage.dtype.itemsize
        if end > size:
            raise ValueError(f"truncated: storage {quoted(key)} ends at byte {end} of {size}")
        count = int(files.read((name, begin - COUNT.itemsize, COUNT.itemsize)).view(COUNT)[0])
        if count != storage.count:
            raise ValueError(f"damaged: storage {quoted(key)} has {count} numbers, its pickle says {storage.count}")
        starts[key] = begin
    if missing := sorted(storages.keys() - starts.keys()):
        raise ValueError(f"it lacks the storage {quoted(missing[0])}, where a tensor should be")
    return LegacyFile(found, starts)


def _storages(found: Any) -> dict[str, Storage]:
    """Those of all tensors below nested dicts, and lists and tuples in them; each thing is looked at once."""
    left, seen, storages = [found], set[int](), dict[str, Storage]()
    while left:
        value = left.pop()
        if isinstance(value, View):
            storages[value.storage.key] = value.storage
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            left += value.values() if isinstance(value, dict) else value
    return storages
