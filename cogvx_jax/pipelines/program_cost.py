"""Memory and time of a compiled program on each device, read from the compiler's own analysis; nothing runs.

Time is an estimate, and an optimistic one. XLA's TPU compiler writes `estimated_cycles` on each of its
operations; a loop's body counts as often as it runs. Of kernels it knows nothing: those of `nn.flash` are
counted from the bundles of their inner step. Transfers between chips, and waiting for memory, are left out.
"""

import dataclasses
import math
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from cogvx_jax.chips import Chip
from cogvx_jax.nn.attention import BACKENDS

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
BITS = {"pred": 8, "bf16": 16} | {f"{kind}{bits}": bits for kind in "sufc" for bits in (2, 4, 8, 16, 32, 64, 128)}
UNKNOWN = 2**63 - 1  # the compiler has no estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """One program on one device. Bytes, unless a field says otherwise."""

    arguments: int
    temporaries: int
    outputs: int  # those that are not an argument's memory used again
    cycles: int  # as the compiler estimates them, loops unrolled; 0 on platforms where it does not
    kernel_cycles: int  # of `nn.flash` or of JAX's forward kernels, beside those
    collectives: Mapping[str, tuple[int, int]]  # by kind, loops unrolled: how many, and bytes of their results
    seconds: float  # it took to compile
    # At the fullest moment, arguments included, as a TPU's compiler counts it, which refuses programs by that. Its
    # temporaries may hold room that is never full at the same time.
    fullest: int | None = None

    @property
    def peak(self) -> int:
        taken = self.arguments + self.temporaries + self.outputs
        return taken if self.fullest is None else min(taken, self.fullest)


def compile_cost(lowered: Any, *, chip: Chip | None = None, computed: float | None = None) -> Cost:
    """Compiles a lowered program (`jax.jit(f).lower(...)`) and reads its cost.

    Args:
      chip: that it is compiled for. The cycles of its kernels are counted, and a TPU's own peak is read; None does
        neither.
      computed: of its conditionals, the share of runs that take the branch of true, as the steps of a schedule; None
        counts the branch that takes the most cycles.
    Raises: MemoryError where the compiler finds that it does not fit.
    """
    began = time.monotonic()
    compiled = compile_fitting(lowered)
    return read_cost(compiled, chip=chip, seconds=time.monotonic() - began, computed=computed)


def compile_fitting(lowered: Any) -> Any:
    """The program, compiled. Raises: MemoryError where the compiler finds that it does not fit."""
    try:
        return lowered.compile()
    except Exception as error:  # XlaRuntimeError, and those that jax raises from it
        if "RESOURCE_EXHAUSTED" in str(error):
            raise MemoryError(_first_line(error)) from error
        raise


def read_cost(compiled: Any, *, chip: Chip | None = None, seconds: float = 0.0, computed: float | None = None) -> Cost:
    """The cost of a compiled program; arguments as for `compile_cost`, and the seconds that it took to compile."""
    memory, program = compiled.memory_analysis(), ProgramText(compiled.as_text(), computed)
    return Cost(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        cycles=program.cycles(),
        kernel_cycles=0 if chip is None else kernel_cycles(program, chip),
        collectives=program.collectives(),
        seconds=seconds,
        fullest=memory.peak_memory_in_bytes if chip is not None and chip.generation is not None else None,
    )


def beside_weights(costs: list[Cost], weights: float) -> float:
    """Bytes that a component's programs take at their fullest beside its `weights`, which lie there anyway.

    Not all of the weights need be arguments, the decoder takes a part of the VAE's: those that are, are known from the
    program with the fewest arguments, the first one, which has no cache yet.
    """
    taken = min(weights, min(cost.arguments for cost in costs))
    return max(cost.peak for cost in costs) - taken


def kernel_cycles(program: "ProgramText", chip: Chip) -> int:
    """Cycles of the attention kernels that the chip's row counts; its cores share a kernel's grid."""
    found = sum(program.scores(name) * cycles for name, cycles in chip.kernel_cycles.items())
    return round(found / 1000 / chip.cores)


class ProgramText:
    """The text of a compiled program, as computations: each a list of operations."""

    def __init__(self, text: str, computed: float | None = None):
        """`computed` as for `compile_cost`."""
        self._computed = computed
        self.operations: dict[str, list[str]] = {}
        self._entry = name = ""
        for line in text.splitlines():
            if found := re.match(r"(ENTRY )?%?([\w.\-]+) \(", line):
                name = found[2]
                self.operations[name] = []
                self._entry = name if found[1] else self._entry
            elif line.rstrip() == "}":
                name = ""
            elif name and line.startswith("  "):
                self.operations[name].append(line)
            elif name and self.operations[name]:  # the attributes of a kernel may have line ends
                self.operations[name][-1] += line

    def cycles(self) -> int:
        """Of all operations that have an estimate."""
        return round(self._cycles(self._entry))

    def _cycles(self, name: str) -> float:
        total = 0.0
        for times, line in self.walk(name):
            for found in re.findall(r'"estimated_cycles":"(\d+)"', line):
                total += times * int(found) if int(found) < UNKNOWN else 0
        return total

    def scores(self, backend: str = "pallas") -> int:
        """Pairs of a query and a key, times heads, that the kernels of a backend of `nn.attention` go through."""
        kernel, total = BACKENDS[backend].kernel, 0.0
        assert kernel is not None, f"{backend} has no kernel"
        for times, line in self.walk(self._entry):
            if "tpu_custom_call" in line and kernel.name in line:
                q, k = _shapes(line.partition("operand_layout_constraints=")[2], kernel.kinds)[:2]
                total += times * math.prod(q[:-2]) * q[kernel.token_axis] * k[kernel.token_axis]
        return round(total)

    def collectives(self) -> dict[str, tuple[int, int]]:
        """By kind, how many there are and the bytes of their results; asynchronous ones count once."""
        found: dict[str, tuple[float, float]] = {}
        for times, line in self.walk(self._entry):
            if operation := re.search(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(", line):
                result, kind, start = operation.groups()
                parts = _sizes(result)
                size = max(parts) if start else sum(parts)  # the start of one has its operand beside the result
                count, total = found.get(kind, (0, 0))
                found[kind] = count + times, total + times * size
        return {kind: (round(count), round(size)) for kind, (count, size) in found.items()}

    def walk(self, name: str, times: float = 1) -> Iterator[tuple[float, str]]:
        """Operations with how often they run; those inside a fusion belong to it.

        Of a conditional's branches the one that takes the most cycles counts, or each by its share of the runs.
        """
        for line in self.operations[name]:
            yield times, line
            if branches := _branches(line):
                if self._computed is None or len(branches) != 2:
                    yield from self.walk(max(branches, key=self._cycles), times)
                else:
                    for branch, share in zip(branches, (1 - self._computed, self._computed), strict=True):
                        yield from self.walk(branch, times * share)
            elif loop := re.search(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line):
                yield from self.walk(loop[2], times * self._count(loop[1]))
            elif call := re.search(r" (?:call|async-start)\(.*(?:to_apply|calls)=%?([\w.\-]+)", line):
                yield from self.walk(call[1], times)

    def _count(self, condition: str) -> int:
        """How often a loop runs: the constant that its counter, from 0 in steps of 1, is compared with."""
        constants = [int(n) for line in self.operations[condition] for n in re.findall(r"constant\((\d+)\)", line)]
        return max(constants, default=1)


def _branches(line: str) -> list[str]:
    """The computations of a conditional, that of false first; none of another operation."""
    if " conditional(" not in line:
        return []
    if several := re.search(r"branch_computations=\{([^}]*)\}", line):
        return [name.strip().lstrip("%") for name in several[1].split(",")]
    return re.findall(r"false_computation=%?([\w.\-]+)", line) + re.findall(r"true_computation=%?([\w.\-]+)", line)


def _shapes(text: str, kinds: str) -> list[tuple[int, ...]]:
    return [tuple(map(int, dims.split(","))) for dims in re.findall(rf"\b(?:{kinds})\[([\d,]+)\]", text)]


def _sizes(result: str) -> list[int]:
    """Bytes of each array of a result such as "(bf16[2,3]{1,0}, f32[])"."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", result)
    return [-(-bits(kind) * math.prod(int(n) for n in dims.split(",") if n) // 8) for kind, dims in found]


def bits(kind: str) -> int:
    """Of a number: "f8e4m3fn" is of 8 bits, "f4e2m1fn" of 4."""
    return BITS.get(re.sub(r"^(f\d+)e\d.*", r"\1", kind), 32)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
