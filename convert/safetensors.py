"""Headers of safetensors files: what they hold and where, without reading any numbers."""

import dataclasses
import json
import math

import ml_dtypes
import numpy as np

from cogvx_jax.storage import Files

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
MAX_HEADER = 100_000_000  # bytes; the format's own limit


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype
    file: str
    start: int  # bytes from the start of the file

    @property
    def span(self) -> tuple[str, int, int]:
        """File, first byte and count of bytes."""
        return self.file, self.start, math.prod(self.shape) * self.dtype.itemsize


def read_header(files: Files, name: str) -> dict[str, Stored]:
    """What a safetensors file holds.

    The library would do, but tells neither how much of a file is missing nor which tensor is odd.

    Raises: ValueError if the file is missing, truncated or corrupt, or holds an unsupported type.
    Source: https://github.com/huggingface/safetensors#format
    """
    if not files.exists(name):
        raise ValueError("missing")
    size = files.size(name)
    length = int.from_bytes(files.read((name, 0, 8)).tobytes(), "little") if size >= 8 else 0
    if size < 8 or length > MAX_HEADER:
        raise ValueError(f"corrupt header; {size} bytes that do not begin as safetensors do")
    if 8 + length > size:
        raise ValueError(f"truncated: {size} bytes, of which the header alone would take {8 + length}")
    try:
        header = json.loads(files.read((name, 8, length)).tobytes())
        header.pop("__metadata__", None)
        spans = {key: (*map(int, value["data_offsets"]),) for key, value in header.items()}
        shapes = {key: (*map(int, value["shape"]),) for key, value in header.items()}
        types = {key: str(value["dtype"]) for key, value in header.items()}
        end = 8 + length + max((stop for _, stop in spans.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"corrupt header: {error!r}") from None
    if size < end:
        raise ValueError(f"truncated: {size} of {end} bytes")
    if size > end:
        raise ValueError(f"corrupt: {size} bytes where the header says {end}")
    stored = {}
    for key, (start, stop) in spans.items():
        if types[key] not in DTYPES:
            raise ValueError(f"{key} is of type {types[key]}, not one of {', '.join(DTYPES)}")
        dtype = np.dtype(DTYPES[types[key]])
        if start < 0 or stop - start != math.prod(shapes[key]) * dtype.itemsize:
            raise ValueError(f"corrupt header: {key} {types[key]} {shapes[key]} does not take {stop - start} bytes")
        stored[key] = Stored(shapes[key], dtype, name, 8 + length + start)
    return stored
