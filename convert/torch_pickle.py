"""The pickle inside a torch file, read without torch and without running anything.

A small machine obeys the opcodes that torch writes and knows no others. Nothing is ever imported: a global is only a
name. Those of `REBUILDS` give records of where numbers lie; whatever else a pickle asks for becomes a `Foreign` thing,
which does nothing. No opcode copies or hashes more than a few numbers or the text that stands in it, so that time and
memory grow with the file and no faster.

Source: Python's `pickletools`, which takes the opcodes apart; `torch/_utils.py` and `torch/serialization.py`.
"""

import dataclasses
import io
import pickletools
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from cogvx_jax.convert.tensors import MAX_AXES, MAX_SIZE, is_shape
from cogvx_jax.json_files import quoted

MAX_OPCODES = 2_000_000  # one of the larger files has 100,000

# torch's name of a type -> what numpy calls it; a storage class is named after it.
DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int16": np.dtype(np.int16),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


@dataclasses.dataclass(frozen=True)
class Global:
    """A name that a pickle asks for; it is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        text = f"{self.module}.{self.name}"[:80]
        return text if text.isprintable() else repr(text)


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A thing that a pickle makes of a global that is not in the table; it does nothing."""

    made_by: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """Numbers in a row: the archive's entry `data/<key>`; `dtype` is None where the type is not known here."""

    key: str
    dtype: np.dtype | None
    kind: str  # name of the class, for messages
    count: int


@dataclasses.dataclass(frozen=True)
class View:
    """A tensor: `shape` numbers of a storage, from `offset` on, at distances of `stride` numbers."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        size = 1
        for n, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if n != 1 and step != size:
                return False
            size *= n
        return True

    @property
    def extent(self) -> int:
        """Numbers from the first to the last, both counted."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))


class OrderedDict(dict):
    """What a pickle builds as `collections.OrderedDict`."""


def read_pickle(data: bytes) -> Any:
    """What a pickle holds: dicts, lists, tuples, scalars, `View`, `Global` and `Foreign`.

    Sets become lists. Raises: ValueError, one sentence, for a pickle that is damaged, or none of torch's.
    """
    return read_pickles(data, 1)[0][0]


def read_pickles(data: bytes, count: int) -> tuple[list[Any], int]:
    """What so many pickles in a row hold, and the byte after the last. Raises: as `read_pickle`."""
    stream = io.BytesIO(data)
    try:
        return [_Machine().run(stream) for _ in range(count)], stream.tell()
    except ValueError:
        raise
    except Exception as error:  # of whatever kind a damaged stack leads to: that it is damaged is all there is to say
        raise ValueError(f"its pickle is damaged: {type(error).__name__}") from None


def _opcodes(data: io.BytesIO) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]:
    try:
        yield from pickletools.genops(data)
    except ValueError as error:
        raise ValueError(f"its pickle is damaged: {' '.join(str(error)[:100].split())}") from None


class _Mark:
    """Where a run of items begins on the stack."""


class _Machine:
    """The stack, and what is remembered of it."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: io.BytesIO) -> Any:
        for number, (opcode, argument, _) in enumerate(_opcodes(data)):
            if number > MAX_OPCODES:
                raise ValueError(f"its pickle has more than {MAX_OPCODES} opcodes")
            if opcode.name == "STOP":
                return self.stack.pop()
            act = OPCODES.get(opcode.name)
            if act is None:
                raise ValueError(f"its pickle has the opcode {opcode.name}, which torch does not write for tensors")
            act(self, argument)
        raise ValueError("its pickle ends too early")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def after_mark(self) -> list[Any]:
        """Takes what stands after the last mark off the stack, and the mark."""
        for place in range(len(self.stack) - 1, -1, -1):
            if isinstance(self.stack[place], _Mark):
                found = self.stack[place + 1 :]
                del self.stack[place:]
                return found
        raise ValueError("its pickle is damaged: an end without its beginning")

    def take(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise ValueError("its pickle is damaged: it takes more than there is")
        found = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return found


def _set_items(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, Foreign):
        return
    if not isinstance(target, dict) or len(items) % 2:
        raise ValueError("its pickle is damaged: items of what is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if isinstance(key, str) or (isinstance(key, int) and key.bit_length() <= 64):  # others name no tensor
            target[key] = value


def _append(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, Foreign):
        return
    if not isinstance(target, list):
        raise ValueError("its pickle is damaged: items of what is no list")
    target += items


def _global(machine: _Machine, module: Any, name: Any) -> None:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("its pickle is damaged: a global without a name")
    machine.push(Global(module, name))


def _reduce(machine: _Machine) -> None:
    function, arguments = machine.take(2)
    if not isinstance(arguments, tuple):
        raise ValueError("its pickle is damaged: arguments that are no tuple")
    rebuild = REBUILDS.get((function.module, function.name)) if isinstance(function, Global) else None
    machine.push(Foreign(_name(function)) if rebuild is None else rebuild(*arguments))


def _new(machine: _Machine) -> None:
    kind, _ = machine.take(2)
    machine.push(Foreign(_name(kind)))


def _build(machine: _Machine) -> None:
    """State is never set: of an OrderedDict it is `_metadata`, of a foreign thing it is no matter."""
    target, _ = machine.take(2)
    if not isinstance(target, OrderedDict | Foreign):
        raise ValueError(f"its pickle sets the state of a {type(target).__name__}")
    machine.push(target)


def _name(function: Any) -> str:
    return str(function) if isinstance(function, Global) else getattr(function, "made_by", type(function).__name__)


def _persistent(machine: _Machine) -> None:
    [said] = machine.take(1)
    if isinstance(said, tuple) and len(said) == 6 and said[5] is None:  # before torch 1.6: no part of another storage
        said = said[:5]
    if not (isinstance(said, tuple) and len(said) == 5 and said[0] == "storage"):
        raise ValueError(f"its pickle refers to {quoted(said) if isinstance(said, str) else 'what is no storage'}")
    _, kind, key, _, count = said
    if not isinstance(kind, Global) or not isinstance(key, str) or not _is_size(count):
        raise ValueError("its pickle is damaged: a storage that is none")
    untyped = (kind.module, kind.name) == ("torch.storage", "UntypedStorage")
    known = STORAGES.get(kind.name) if kind.module == "torch" else None
    dtype = np.dtype(np.uint8) if untyped else None if known is None else DTYPES[known]
    machine.push(Storage(key, dtype, str(kind), count))


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_SIZE


def _are_sizes(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= MAX_AXES and all(map(_is_size, value))


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> View | Foreign:
    """Of a storage with a type of its own."""
    if isinstance(storage, Storage) and storage.dtype is None:
        return Foreign(storage.kind)
    return _view(storage, getattr(storage, "dtype", None), offset, shape, stride)


def _rebuild_typed(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> View | Foreign:
    """Of bytes, whose type stands beside them."""
    known = DTYPES.get(dtype.name) if isinstance(dtype, Global) and dtype.module == "torch" else None
    if known is None or not isinstance(storage, Storage) or storage.dtype is None:
        return Foreign(_name(dtype))
    size = storage.count * storage.dtype.itemsize
    return _view(dataclasses.replace(storage, dtype=known, count=size // known.itemsize), known, offset, shape, stride)


def _view(storage: Any, dtype: Any, offset: Any, shape: Any, stride: Any) -> View:
    """Raises ValueError where it would lie outside of its storage, or repeat numbers."""
    sizes = _are_sizes(shape) and _are_sizes(stride) and is_shape(shape)
    if not (isinstance(storage, Storage) and _is_size(offset) and sizes):
        raise ValueError("its pickle is damaged: a tensor that is none")
    if len(shape) != len(stride):
        raise ValueError(f"its pickle has a tensor of {len(shape)} axes and {len(stride)} strides")
    view, numbers = View(storage, dtype, offset, shape, stride), 1
    for n in shape:
        numbers *= n
    if offset + view.extent > storage.count or numbers > storage.count:
        raise ValueError(f"its pickle has a tensor {quoted(shape)} beyond its storage of {storage.count} numbers")
    return view


def _ordered(*arguments: Any) -> OrderedDict | Foreign:
    return Foreign("OrderedDict of a list") if arguments else OrderedDict()


def _size(found: Any = (), *_: Any) -> tuple[int, ...]:
    if isinstance(found, list) and len(found) <= MAX_AXES:
        found = tuple(found)
    if not _are_sizes(found) or not is_shape(found):
        raise ValueError("its pickle is damaged: a torch.Size that is none")
    return found


def _first(value: Any = (), *_: Any) -> Any:
    return value


REBUILDS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _ordered,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_typed,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch", "Size"): _size,
    ("__builtin__", "set"): _first,  # as the list that it is made of
    ("builtins", "set"): _first,
}

Act = Callable[[_Machine, Any], None]


def _constant(value: Any) -> Act:
    return lambda machine, _: machine.push(value)


def _tuple(count: int) -> Act:
    return lambda machine, _: machine.push(tuple(machine.take(count)))


def _remember(machine: _Machine, place: int) -> None:
    machine.memo[place] = machine.stack[-1]


def _recall(machine: _Machine, place: int) -> None:
    if place not in machine.memo:
        raise ValueError("its pickle is damaged: it recalls what it never had")
    machine.push(machine.memo[place])


LITERALS = (
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
)
OPCODES: dict[str, Act] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(LITERALS, lambda machine, value: machine.push(value)),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "MARK": lambda machine, _: machine.push(_Mark()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_SET": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": _constant(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.after_mark())),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "SETITEM": lambda machine, _: _set_items(machine, machine.take(2)),
    "SETITEMS": lambda machine, _: _set_items(machine, machine.after_mark()),
    "APPEND": lambda machine, _: _append(machine, machine.take(1)),
    "APPENDS": lambda machine, _: _append(machine, machine.after_mark()),
    "ADDITEMS": lambda machine, _: _append(machine, machine.after_mark()),
    "BINPUT": _remember,
    "LONG_BINPUT": _remember,
    "MEMOIZE": lambda machine, _: _remember(machine, len(machine.memo)),
    "BINGET": _recall,
    "LONG_BINGET": _recall,
    "GLOBAL": lambda machine, names: _global(machine, *names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: _global(machine, *machine.take(2)),
    "REDUCE": lambda machine, _: _reduce(machine),
    "NEWOBJ": lambda machine, _: _new(machine),
    "BUILD": lambda machine, _: _build(machine),
    "BINPERSID": lambda machine, _: _persistent(machine),
}
