"""Torch files made by hand: any opcodes in a zip as torch lays it out. Shared by the tests of readers."""

import struct
import zipfile

import numpy as np

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "uint8": "ByteStorage",
}


class Raw(bytes):
    """Opcodes that leave one thing on the stack."""


def text(value):
    data = value.encode("utf-8", "surrogatepass")
    return Raw(b"X" + struct.pack("<I", len(data)) + data)


def name(module, attribute):
    return Raw(f"c{module}\n{attribute}\n".encode())


def call(function, *arguments):
    return Raw(function + pickled(tuple(arguments)) + b"R")


def storage(kind, key, count):
    return Raw(pickled(("storage", name("torch", kind), str(key), "cpu", count)) + b"Q")


def rebuilt(stored, offset, shape, stride, function="_rebuild_tensor_v2", *more):
    ordered = call(name("collections", "OrderedDict"))
    return call(name("torch._utils", function), stored, offset, tuple(shape), tuple(stride), False, ordered, *more)


def pickled(value):
    """The opcodes that build a value of dicts, lists, tuples, scalars and `Raw`, without the end."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, str):
        return text(value)
    if value is None or isinstance(value, bool):
        return Raw({None: b"N", True: b"\x88", False: b"\x89"}[value])
    if isinstance(value, int):
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return Raw(b"\x8a" + bytes([len(data)]) + data)
    if isinstance(value, float):
        return Raw(b"G" + struct.pack(">d", value))
    if isinstance(value, dict):
        return Raw(b"}(" + b"".join(pickled(k) + pickled(v) for k, v in value.items()) + b"u")
    inner = b"".join(map(pickled, value))
    return Raw(b"](" + inner + b"e" if isinstance(value, list) else b"(" + inner + b"t")


class TorchFile:
    """A file to write: `tensor` gives the opcodes of an array, whose numbers are kept."""

    def __init__(self):
        self.data = []

    def store(self, array):
        self.data.append(np.ascontiguousarray(array).tobytes())
        return storage(STORAGES[str(array.dtype)], len(self.data) - 1, array.size)

    def tensor(self, array):
        strides = [step // array.itemsize for step in array.strides]  # as they are, also of a transposed one
        return rebuilt(self.store(array.ravel("K")), 0, array.shape, strides)

    def tree(self, value):
        """A value whose arrays have become tensors."""
        if isinstance(value, np.ndarray):
            return self.tensor(value)
        if isinstance(value, dict):
            return {key: self.tree(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.tree(inner) for inner in value]
        return value

    def write(self, path, value, **options):
        """Writes a value, of arrays or of opcodes; returns the path."""
        return write(path, b"\x80\x02" + pickled(self.tree(value)) + b".", self.data, **options)


def write(path, pickle, data=(), *, prefix="archive", byteorder=b"little", compression=zipfile.ZIP_STORED, more=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{prefix}/data.pkl", pickle)
        archive.writestr(f"{prefix}/byteorder", byteorder)
        for number, numbers in enumerate(data):
            archive.writestr(f"{prefix}/data/{number}", numbers)
        for entry, content in more:
            archive.writestr(entry, content)
    return path


def save(path, value, **options):
    """Writes nested dicts and lists of arrays."""
    return TorchFile().write(path, value, **options)
