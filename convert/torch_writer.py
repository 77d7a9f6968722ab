"""Writing a `.pt` file without torch, tensor by tensor; torch opens it with `weights_only=True`, mapped too.

A file is a zip whose entries are stored as they are and begin at multiples of 64 bytes: a pickle that says what lies
where, and the numbers of each tensor. Equal tensors make files that are equal to the byte.

Source: `torch/serialization.py`, `caffe2/serialize/inline_container.cc`; for the opcodes, Python's `pickletools`.
"""

import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cogvx_jax.convert.safetensors import Tensor
from cogvx_jax.convert.torch_pickle import DTYPES, STORAGES

ALIGNMENT = 64
LOCAL_HEADER = 30  # bytes before an entry's name
ZIP64 = 2**30  # bytes from which an entry gets long sizes; 2**32 needs them
KINDS = {DTYPES[name]: storage for storage, name in STORAGES.items()}  # dtype -> torch's class of its storage


def write_torch(path: Path, tensors: Sequence[Tensor], wrapper: str) -> None:
    """Writes {wrapper: {key: tensor}}.

    Raises: ValueError for a tensor of a type that torch has no storage for, or with numbers that are not finite.
    """
    for tensor in tensors:
        if tensor.dtype not in KINDS:
            known = ", ".join(map(str, KINDS))
            raise ValueError(f"{tensor.key} is of type {tensor.dtype}; what a .pt file can hold is {known}")
    prefix = path.stem
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, f"{prefix}/data.pkl", pickle_of(tensors, wrapper))
        for name, text in ((".format_version", b"1"), (".storage_alignment", b"64"), ("byteorder", b"little")):
            _add(archive, f"{prefix}/{name}", text)
        for number, tensor in enumerate(tensors):
            _add(archive, f"{prefix}/data/{number}", tensor.array().reshape(-1).view(np.uint8).data)
        _add(archive, f"{prefix}/version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """Adds an entry whose bytes begin at a multiple of `ALIGNMENT`."""
    info = zipfile.ZipInfo(name)  # of 1980, so that equal files are equal
    info.file_size = len(data)
    long = len(data) >= ZIP64
    info.extra = padded(archive.start_dir + LOCAL_HEADER + len(name.encode()) + (20 if long else 0))
    with archive.open(info, "w", force_zip64=long) as entry:
        entry.write(data)


def padded(start: int) -> bytes:
    """torch's extra field of an entry, after which its numbers, else at byte `start`, begin at an aligned one."""
    count = -(start + 4) % ALIGNMENT
    return struct.pack("<2sH", b"FB", count) + b"Z" * count


def pickle_of(tensors: Sequence[Tensor], wrapper: str) -> bytes:
    """The opcodes that build {wrapper: {key: tensor}}, of protocol 2 as torch's own."""
    inner = b"".join(_text(t.key) + _tensor(t, str(number)) for number, t in enumerate(tensors))
    # EMPTY_DICT, wrapper, EMPTY_DICT, MARK, items, SETITEMS, SETITEM, STOP
    return b"\x80\x02}" + _text(wrapper) + b"}(" + inner + b"us."


def _tensor(tensor: Tensor, key: str) -> bytes:
    """_rebuild_tensor_v2(storage, 0, shape, stride, False, OrderedDict())."""
    numbers, strides = 1, list[int]()
    for n in reversed(tensor.shape):
        strides.insert(0, numbers)
        numbers *= max(n, 1)
    count = tensor.bytes // tensor.dtype.itemsize
    storage = b"(" + _text("storage") + _global("torch", KINDS[tensor.dtype]) + _text(key) + _text("cpu")
    return b"".join(
        (
            _global("torch._utils", "_rebuild_tensor_v2"),
            b"(" + storage + _integer(count) + b"tQ",  # MARK ... TUPLE, BINPERSID
            _integer(0) + _sizes(tensor.shape) + _sizes(strides) + b"\x89",  # NEWFALSE
            _global("collections", "OrderedDict") + b")R",  # EMPTY_TUPLE, REDUCE
            b"tR",  # TUPLE, REDUCE
        )
    )


def _sizes(numbers: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(_integer, numbers)) + b"t"


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _integer(number: int) -> bytes:
    if number < 2**31:
        return b"J" + struct.pack("<i", number)
    data = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data
