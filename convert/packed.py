"""Weights that files of other makers hold quantised: which tensors belong together, and what numbers they stand for.

A packing is one row of `PACKINGS`. Its tensors become the layer's `.weight`, float32, which is computed when it is
read. How our own quantised models are stored is `convert.quantized_layout`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np

from cogvx_jax.convert.blocks import BLOCKS, decoded
from cogvx_jax.convert.tensors import Computed, Entry, Renamed, Tensors, Unreadable
from cogvx_jax.json_files import parse_json, quoted
from cogvx_jax.storage import Files

FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
MARKERS = ("scaled_fp8",)  # tensors that only say how a file is made
MAX_STATE = 2**16  # bytes of JSON beside a tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packing:
    """A way in which a layer's weight is stored. Names of tensors are a layer's, and one of these endings.

    mark: the ending by which it is known.
    parts: endings of the tensors that it is made of, its numbers first.
    may: further ones that a file need not have.
    unread: of tensors that tell nothing of the weight.
    types: of its numbers.
    shared: whether other files have the mark, too, with numbers of other types.
    make: the weight of its parts in this order, None for what may be missing; raises ValueError where they do not fit.
    """

    name: str
    mark: str
    parts: tuple[str, ...]
    may: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    types: tuple[str, ...]
    shared: bool = False
    make: Callable[..., Entry]


def _scaled(files: Files, numbers: Entry, scale: Entry, zero: Entry | None = None) -> Entry:
    """Numbers (out, ...) less a zero point, times a scale: of all of them, or one for each output."""
    _check_scale(numbers, scale)
    parts = [numbers, scale]
    if zero is not None:
        _check_scale(numbers, zero)
        parts.append(zero)
    return Computed(numbers.shape, np.dtype(np.float32), tuple(parts), _scale_rows)


def _check_scale(numbers: Entry, scale: Entry) -> None:
    count = math.prod(scale.shape)
    if not numbers.shape or count != 1 and (scale.shape[0], count) != (numbers.shape[0],) * 2:
        raise ValueError(f"its numbers are {numbers.shape}, its scale {scale.shape}: not one, nor one for each output")


def _scale_rows(numbers: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
    rows, out = (-1, *(1,) * (numbers.ndim - 1)), numbers.astype(np.float32)
    if zero is not None:
        out -= zero.astype(np.float32).reshape(rows)
    out *= scale.astype(np.float32).reshape(rows)
    return out


def _scaled_int8(files: Files, numbers: Entry, largest: Entry) -> Entry:
    """Of bitsandbytes: 127 stands for the largest number of an output."""
    _check_scale(numbers, largest)
    return Computed(
        numbers.shape,
        np.dtype(np.float32),
        (numbers, largest),
        lambda n, s: _scale_rows(n, s.astype(np.float32) / np.float32(127)),
    )


@dataclasses.dataclass(frozen=True)
class _Nf4:
    """What bitsandbytes says of a tensor of 4-bit numbers. They lie in order, the first of two in a byte's upper half.

    Source: bitsandbytes, `functional.py`, `QuantState`.
    """

    shape: tuple[int, ...]
    block: int  # numbers that share a scale
    nested_block: int = 0  # scales that share a scale, where they are quantised, too
    offset: float = 0.0  # of such scales

    @classmethod
    def of(cls, state: bytes) -> "_Nf4":
        found = parse_json(state)
        shape, names = found.get("shape"), ["blocksize", *(["nested_blocksize"] if "nested_blocksize" in found else [])]
        if found.get("quant_type") != "nf4":
            raise ValueError(f"its quant_type is {quoted(found.get('quant_type'))}, where nf4 is read")
        if not isinstance(shape, list) or not all(type(n) is int and 0 < n < 2**32 for n in shape) or len(shape) > 8:
            raise ValueError(f"its shape is {quoted(shape)}")
        for name in names:
            if type(found.get(name)) is not int or not 0 < found[name] < 2**32:
                raise ValueError(f"its {name} is {quoted(found.get(name))}")
        offset = found.get("nested_offset", 0.0)
        if not isinstance(offset, int | float) or not math.isfinite(offset):
            raise ValueError(f"its nested_offset is {quoted(offset)}")
        return cls(tuple(shape), found["blocksize"], found.get("nested_blocksize", 0), float(offset))

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def check(self, *parts: Entry) -> None:
        """Raises ValueError unless the parts are of the sizes that they need."""
        blocks = -(-self.count // self.block)
        wanted = [(self.count + 1) // 2, blocks, 16]
        wanted += [-(-blocks // self.nested_block), 256] if self.nested_block else []
        found = [math.prod(part.shape) for part in parts]
        if found != wanted:
            raise ValueError(f"its parts have {found} numbers, where its shape {self.shape} takes {wanted}")

    def decode(self, packed: np.ndarray, scales: np.ndarray, values: np.ndarray, *nested: np.ndarray) -> np.ndarray:
        packed, scales = packed.reshape(-1).view(np.uint8), scales.reshape(-1)
        if nested:
            outer, levels = (part.reshape(-1).astype(np.float32) for part in nested)
            scales = levels[scales] * _repeated(outer, self.nested_block, len(scales)) + np.float32(self.offset)
        codes = np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)[: self.count]
        out = values.reshape(-1).astype(np.float32)[codes]
        out *= _repeated(scales.astype(np.float32), self.block, self.count)
        return out.reshape(self.shape)


def _repeated(scales: np.ndarray, block: int, count: int) -> np.ndarray:
    """Each scale for the numbers of its block."""
    return scales[0] if len(scales) == 1 else np.repeat(scales, block)[:count]


def _nf4(files: Files, numbers: Entry, scales: Entry, values: Entry, state: Entry, *nested: Entry | None) -> Entry:
    if math.prod(state.shape) > MAX_STATE or state.dtype != np.uint8:
        raise ValueError(f"its quant_state is {state.dtype} {state.shape}, where at most {MAX_STATE} bytes are read")
    said = _Nf4.of(state.read(files).tobytes())
    given = [part for part in nested if part is not None]
    if bool(said.nested_block) != (len(given) == 2) or scales.dtype != (np.uint8 if given else np.float32):
        raise ValueError(f"its absmax is {scales.dtype}, and it has {len(given)} of two tensors for quantised scales")
    parts = (numbers, scales, values, *given)
    said.check(*parts)
    return Computed(said.shape, np.dtype(np.float32), parts, said.decode)


def _blocks(name: str) -> Packing:
    """Safetensors that are called GGUF, of MinusZone and kijai."""
    end = f".{name}_qweight"
    return Packing(
        name=f"{name} blocks",
        mark=end,
        parts=(end,),
        types=("uint8",),
        make=lambda files, numbers: decoded(numbers, BLOCKS[name]),
    )


NF4 = ".weight.quant_state.bitsandbytes__nf4"
PACKINGS = (
    Packing(
        name="fp8 with scales",
        mark=".scale_weight",
        parts=(".weight", ".scale_weight"),
        unread=(".scale_input",),
        types=FLOAT8,
        make=_scaled,
    ),
    Packing(
        name="fp8 with scales",
        mark=".weight_scale",
        parts=(".weight", ".weight_scale"),
        unread=(".input_scale", ".comfy_quant"),
        types=FLOAT8,
        shared=True,  # with our own quantised models
        make=_scaled,
    ),
    *map(_blocks, BLOCKS),
    Packing(
        name="quanto",
        mark=".weight._data",
        parts=(".weight._data", ".weight._scale"),
        unread=(".input_scale", ".output_scale"),
        types=("int8", *FLOAT8),
        make=_scaled,
    ),
    Packing(
        name="torchao",
        mark="._weight_qdata",
        parts=("._weight_qdata", "._weight_scale"),
        may=("._weight_zero_point",),
        types=("int8", *FLOAT8),
        make=_scaled,
    ),
    Packing(
        name="bitsandbytes int8",
        mark=".SCB",
        parts=(".weight", ".SCB"),
        unread=(".weight_format",),
        types=("int8",),
        make=_scaled_int8,
    ),
    Packing(
        name="bitsandbytes nf4",
        mark=NF4,
        parts=(".weight", ".weight.absmax", ".weight.quant_map", NF4),
        may=(".weight.nested_absmax", ".weight.nested_quant_map"),
        types=("uint8",),
        make=_nf4,
    ),
)


def packed_layers(tensors: Tensors) -> Iterator[tuple[str, Packing]]:
    """Each layer whose weight is packed, and how."""
    for name in tensors:
        for packing in PACKINGS:
            if name.endswith(packing.mark):
                layer = name.removesuffix(packing.mark)
                numbers = tensors.get(layer + packing.parts[0])
                if not packing.shared or (numbers is not None and str(numbers.dtype) in packing.types):
                    yield layer, packing


def unpacked(tensors: Tensors) -> Tensors:
    """The same tensors, those of packed layers as their weights; what is float8 without a scale becomes bfloat16.

    No numbers are read but what nf4 says of a tensor's shape. A weight that cannot be read is `Unreadable`.
    """
    layers = list(packed_layers(tensors))
    tensors.prefetch([layer + NF4 for layer, packing in layers if packing.mark == NF4])
    parts = {layer + end for layer, packing in layers for end in (*packing.parts, *packing.may, *packing.unread)}
    found = Renamed()
    for name in tensors:
        if name not in parts and not _is_marker(name):
            found.add(name, _widened(tensors[name]), name)
    for layer, packing in layers:
        found.add(f"{layer}.weight", _weight(tensors, layer, packing), layer + packing.mark)
    return tensors.of(found)


def _is_marker(name: str) -> bool:
    return name.rpartition(".")[2] in MARKERS


def _weight(tensors: Tensors, layer: str, packing: Packing) -> Entry:
    if lacking := [layer + end for end in packing.parts if layer + end not in tensors]:
        return Unreadable(f"it is stored as {packing.name}, and {lacking[0]} is missing")
    parts = [tensors.get(layer + end) for end in (*packing.parts, *packing.may)]
    numbers = tensors[layer + packing.parts[0]]
    if str(numbers.dtype) not in packing.types:
        return Unreadable(f"its numbers are {numbers.dtype}, where {packing.name} has {' or '.join(packing.types)}")
    try:
        _check_type(tensors, layer)
        return packing.make(tensors.files, *parts)
    except ValueError as error:
        return Unreadable(f"it is stored as {packing.name}, but {error}")


TORCHAO = ("Int8Tensor", "Float8Tensor")


def _check_type(tensors: Tensors, layer: str) -> None:
    """Raises ValueError where torchao says that a weight is of a class with another layout."""
    said = tensors.metadata.get(f"{layer}.weight")
    if said is not None:
        try:
            kind = parse_json(said.encode()).get("_type")
        except ValueError:
            raise ValueError(f"the file's metadata say {quoted(said)} of it") from None
        if kind not in TORCHAO:
            raise ValueError(f"it is of the type {quoted(kind)}, not {' or '.join(TORCHAO)}")


def _widened(entry: Entry) -> Entry:
    """float8 as bfloat16, which holds all its numbers."""
    if str(entry.dtype) not in FLOAT8:
        return entry
    kind = np.dtype(ml_dtypes.bfloat16)
    return Computed(entry.shape, kind, (entry,), lambda array: array.astype(kind))
