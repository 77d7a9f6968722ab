"""Facts about accelerators, one row a chip: a new generation is a row of this table and nothing else.

A row describes a device as jax counts them: a chip, and of TPU7x each of its two halves.
"""

import dataclasses
from collections.abc import Mapping

FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")  # a single chip is part of a host of four
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of device. Fields after `peak` are known of TPUs only."""

    kinds: tuple[str, ...]  # first words of its `device_kind`; of several chips that fit, the longest match counts
    peak: float  # 1e12 operations a second, products in bfloat16 without sparsity, from the vendor's pages
    generation: str | None = None  # the name in topologies, as libtpu has it
    shapes: tuple[str, ...] = ()  # of its slices, the smallest first
    memory: float | None = None  # GiB that programs may use
    clock: float | None = None  # GHz, nominal: reads the compiler's cycles as time
    cores: int = 1  # that share a kernel's grid
    # Cycles of one core for a thousand scores of an attention kernel, forward, by its name in `nn.attention`:
    # "pallas" without a running maximum at `blocks`, "pallas_int8", which v4 cannot, at `int8_blocks`, JAX's kernels
    # with segment ids at their best blocks. `scripts/attention_blocks.py` counts them, and finds `blocks`.
    kernel_cycles: Mapping[str, float] = dataclasses.field(default_factory=dict)
    blocks: tuple[int, int, int] | None = None  # of `nn.flash` without a running maximum: queries, keys, keys at a time
    int8_blocks: tuple[int, int, int] | None = None  # the same with scores of integers; None: `blocks`


CHIPS = (
    Chip(
        kinds=("TPU v4",),
        peak=275.0,
        generation="v4",
        shapes=CUBES,
        memory=15.75,
        clock=1.05,
        kernel_cycles={"pallas": 3.04, "splash": 5.92, "jax_flash": 7.17},
        blocks=(768, 4096, 2048),
    ),
    Chip(
        kinds=("TPU v5 lite", "TPU v5e"),
        peak=197.0,
        generation="v5e",
        shapes=FLAT,
        memory=15.75,
        clock=1.5,
        kernel_cycles={"pallas": 2.54, "pallas_int8": 1.92, "splash": 4.29, "jax_flash": 4.71},
        blocks=(768, 4096, 2048),
        int8_blocks=(1024, 2048, 1024),
    ),
    Chip(
        kinds=("TPU v5",),  # v5p
        peak=459.0,
        generation="v5p",
        shapes=CUBES,
        memory=95.0,
        clock=1.75,
        cores=2,
        kernel_cycles={"pallas": 2.46, "pallas_int8": 1.94, "splash": 4.27, "jax_flash": 4.66},
        blocks=(1024, 2048, 1024),
    ),
    Chip(
        kinds=("TPU v6 lite", "TPU v6e"),
        peak=918.0,
        generation="v6e",
        shapes=FLAT,
        memory=31.25,
        clock=1.75,
        kernel_cycles={"pallas": 1.43, "pallas_int8": 1.54, "splash": 2.87, "jax_flash": 2.94},
        blocks=(1536, 2048, 512),
    ),
    Chip(
        kinds=("TPU7x",),
        peak=1153.5,
        generation="tpu7x",
        shapes=CUBES,
        memory=94.75,
        clock=2.2,
        kernel_cycles={"pallas": 1.32, "pallas_int8": 1.89, "splash": 2.92, "jax_flash": 3.38},
        blocks=(1536, 2048, 512),
    ),
    Chip(kinds=("NVIDIA A100",), peak=312.0),
    Chip(kinds=("NVIDIA H100", "NVIDIA H200"), peak=989.0),
    Chip(kinds=("NVIDIA H100 PCIe",), peak=756.0),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip of jax's `device_kind`; None where the table has none."""
    found = [(kind, chip) for chip in CHIPS for kind in chip.kinds if device_kind.startswith(kind)]
    return max(found, key=lambda pair: len(pair[0]))[1] if found else None


def generations() -> dict[str, Chip]:
    """TPUs by the names of their generations, which libtpu compiles for."""
    return {chip.generation: chip for chip in CHIPS if chip.generation is not None}
