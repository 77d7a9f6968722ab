"""Bytes that a compiled program moves to and from a device's main memory, read off its text; nothing runs.

Each operation reads its operands and writes its results, so far as they lie there: what the compiler has put into
faster memory, "S(1)" in a shape, is not counted. Of an operand that is cut, the cut counts, and of an array that is
updated in place, the update. XLA's own count of "bytes accessed" has a loop's body once, and traffic of fast memory.
"""

import math
import re
from typing import NamedTuple

from cogvx_jax.pipelines.program_cost import ProgramText, bits

SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{[^{}]*?(S\(\d+\))?\})?")
OPERATION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
FREE = {  # operations that move nothing, or whose parts are counted where they are
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"),
    *("partition-id", "replica-id", "iota", "opt-barrier"),
}
CUTS = {"dynamic-slice", "slice", "gather"}


class Operation(NamedTuple):
    """A line of a program."""

    name: str
    kind: str
    result: str
    operands: tuple[str, ...]
    inside: str  # the brackets, such as a parameter's number
    rest: str  # after them
    root: bool

    @classmethod
    def of(cls, line: str) -> "Operation | None":
        found = OPERATION.match(line)
        if found is None:
            return None
        root, name, result, kind, rest = found.groups()
        operands, _, after = rest.partition(")")
        names = tuple(re.findall(r"%([\w.\-]+)", operands))
        return cls(name, kind, result, names, operands, after, bool(root))


def moved_bytes(text: str) -> int:
    """Of a program's text, as `compiled.as_text()` gives it, loops unrolled, on one device."""
    return round(_Program(text).moved())


class _Program(ProgramText):
    def moved(self) -> float:
        return self._of(self._entry, 1.0)

    def _of(self, name: str, times: float) -> float:
        """A computation's operations and those of the loops in it."""
        total, known = 0.0, self._known(name)
        for repeats, line in self.walk(name, times):
            operation = Operation.of(line)
            if operation is None:
                continue
            if operation.name not in known:  # of a loop's body, which has names of its own
                known |= self._known_of(operation.name)
            total += repeats * self._moved(operation, known)
        return total

    def _known(self, name: str) -> dict[str, Operation]:
        found = (Operation.of(line) for line in self.operations[name])
        return {operation.name: operation for operation in found if operation is not None}

    def _known_of(self, name: str) -> dict[str, Operation]:
        return next((known for own in self.operations if name in (known := self._known(own))), {})

    def _moved(self, operation: Operation, known: dict[str, Operation]) -> float:
        if operation.kind in FREE or operation.kind.endswith("-done"):
            return 0
        if operation.kind.endswith("-start"):  # a copy on its way: its result holds the source and what it becomes
            parts = _parts(operation.result)
            size = min((size for size, _ in parts if size > 4), default=0)
            return sum(size for _, near in parts[:2] if not near)
        inner = self._fused(operation)
        if inner is None:
            return self._plain(operation, known)
        total = _written(operation.result, inner)
        for place, name in enumerate(operation.operands):
            total += min(self._read_of(place, inner), _far_operand(name, known))
        return total

    def _read_of(self, place: int, inner: dict[str, Operation]) -> float:
        """What a fusion reads of one of its parameters: what it cuts from it, or all, which is infinite here."""
        own = next(one for one in inner.values() if one.kind == "parameter" and int(one.inside) == place)
        return sum(self._read_by(use, own.name, inner) for use in inner.values() if own.name in use.operands)

    def _read_by(self, use: Operation, name: str, inner: dict[str, Operation]) -> float:
        if use.kind == "bitcast":
            return sum(self._read_by(one, use.name, inner) for one in inner.values() if use.name in one.operands)
        if use.kind in CUTS and use.operands[0] == name:
            return sum(size for size, _ in _parts(use.result))
        nested = self._fused(use)
        if nested is not None:
            return sum(self._read_of(place, nested) for place, one in enumerate(use.operands) if one == name)
        in_place = use.kind == "dynamic-update-slice" and use.operands[0] == name
        return 0.0 if in_place else math.inf

    def _fused(self, operation: Operation) -> dict[str, Operation] | None:
        called = re.search(r"calls=%?([\w.\-]+)", operation.rest) if operation.kind == "fusion" else None
        return None if called is None else self._known(called[1])

    def _plain(self, operation: Operation, known: dict[str, Operation]) -> float:
        if operation.kind in CUTS:
            size = sum(size for size, _ in _parts(operation.result))
            return size * (_far_operand(operation.operands[0], known) > 0) + _far(operation.result)
        if operation.kind == "dynamic-update-slice":
            return 2 * _whole_operand(operation.operands[1], known)
        return _far(operation.result) + sum(_far_operand(name, known) for name in operation.operands)


def _written(result: str, inner: dict[str, Operation]) -> float:
    """What a fusion writes: its results, or in place of a whole array the update."""
    root, parts = next((one for one in inner.values() if one.root), None), _parts(result)
    if root is None:
        return _far(result)
    ends = [inner[name] for name in root.operands] if root.kind == "tuple" else [root]
    if len(ends) != len(parts):  # such as of one operation with several results
        return _far(result)
    return sum(_update(end, inner, size) for end, (size, near) in zip(ends, parts, strict=True) if not near)


def _update(end: Operation, inner: dict[str, Operation], size: float) -> float:
    """Bytes of the update where an array of `size` is written in place, else all of it."""
    while end.kind == "bitcast" and end.operands and end.operands[0] in inner:
        end = inner[end.operands[0]]
    return _whole_operand(end.operands[1], inner) if end.kind == "dynamic-update-slice" else size


def _parts(result: str) -> list[tuple[float, bool]]:
    """Bytes of each array of a result, and whether it lies in fast memory."""
    found = SHAPE.findall(result)
    return [
        (bits(kind) * math.prod(int(n) for n in dims.split(",") if n) / 8, bool(near)) for kind, dims, near in found
    ]


def _far(result: str) -> float:
    return sum(size for size, near in _parts(result) if not near)


def _far_operand(name: str, known: dict[str, Operation]) -> float:
    return _far(known[name].result) if name in known and known[name].kind != "constant" else 0


def _whole_operand(name: str, known: dict[str, Operation]) -> float:
    return sum(size for size, _ in _parts(known[name].result)) if name in known else 0
