"""Ways to make a video in less memory: a row each, first those with the same result, then those that are slower, then
those whose result differs. Nothing here needs jax, whose import takes seconds.

A row is all that a way needs: `load` places components by it, programs are compiled with its fields of `Compute`, and
`plan` tries the rows in this order.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from cogvx_jax.configs import Compute

AUTO = "auto"  # the first row that fits the devices that are here
STRIPS = (1, 16, 32, 64)  # of rows that the VAE works through frames in; 1 is whole frames
TILE_STRIPS = (1, 4, 8)  # of tiles, which have 240 rows
MLP_TOKENS = 4096  # of 17776 tokens of 5B, whose hidden activations then take 0.1 GiB and not 0.4


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryMode:
    """One way. `changes` and `costs` end the sentences "it ..." for people."""

    name: str
    changes: str
    costs: str
    exact: bool = True  # the video is that of `resident`: on a CPU to the bit, elsewhere but for rounding
    turns: bool = True  # components are on the devices one after the other
    tiling: bool = False  # the VAE runs in tiles
    strips: tuple[int, ...] = STRIPS  # those of the VAE, the first that fit are taken: slower, the same video
    compute: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # fields of `Compute`

    def of(self, compute: Compute) -> Compute:
        """How to compute in this mode."""
        return dataclasses.replace(compute, **self.compute)

    def __hash__(self) -> int:
        return hash(self.name)


_ROWS: dict[str, Any] = {"rows_apart": True}
_CHUNKS: dict[str, Any] = _ROWS | {"mlp_tokens": MLP_TOKENS}
_EXACT = (
    MemoryMode(
        name="resident",
        turns=False,
        changes="keeps text encoder, transformer and VAE on the devices",
        costs="nothing",
    ),
    MemoryMode(
        name="turns",
        changes="holds text encoder, transformer and VAE on the devices one after the other",
        costs="reading each from the disk again when its turn comes; texts that were encoded before need no encoder",
    ),
    MemoryMode(
        name="rows",
        changes="takes turns, and computes the branches of guidance, and videos, one after the other",
        costs="reading components again, and smaller products",
        compute=_ROWS,
    ),
    MemoryMode(
        name="chunks",
        changes=f"takes turns, one branch at a time, and at most {MLP_TOKENS} tokens in an MLP at a time",
        costs="reading components again, and smaller products",
        compute=_CHUNKS,
    ),
    MemoryMode(
        name="offload",
        changes="does as chunks, and keeps the kernels of all blocks in the host's memory",
        costs="bringing the transformer from the host to the device in every step, beside the computation",
        compute=_CHUNKS | {"streamed": True},
    ),
)


def _in_tiles(mode: MemoryMode) -> MemoryMode:
    return dataclasses.replace(
        mode,
        name=f"{mode.name}+tiles",
        changes=f"{mode.changes}, and runs the VAE in tiles",
        costs=f"{mode.costs}; tiles are lossy: the video differs slightly, and seams can show",
        exact=False,
        tiling=True,
        strips=TILE_STRIPS,
    )


MODES = (*_EXACT, *(_in_tiles(mode) for mode in _EXACT if mode.turns))
BY_NAME: Mapping[str, MemoryMode] = MappingProxyType({mode.name: mode for mode in MODES})
RESIDENT, TURNS = BY_NAME["resident"], BY_NAME["turns"]


def find_mode(name: str | MemoryMode) -> MemoryMode:
    """The mode of that name. Raises: ValueError that lists the known ones."""
    if isinstance(name, MemoryMode):
        return name
    if name not in BY_NAME:
        raise ValueError(f"unknown memory mode {name!r}; the known ones are {', '.join(BY_NAME)}")
    return BY_NAME[name]


def check_slices(mode: MemoryMode, compute: Compute, platform: str) -> None:
    """Raises: ValueError where a device cannot fetch a layer alone of such kernels from its host's memory."""
    if platform == "tpu" and compute.quantize is not None and mode.compute.get("streamed"):
        raise ValueError(
            f"memory mode {mode.name} is not for {compute.quantize} on TPUs, which would bring all layers of a kernel "
            "for each one; use --memory chunks, or leave out --quantize"
        )


def strips_note(strips: int) -> str:
    """That the VAE decodes in so many strips and what that costs, for people."""
    return f"It decodes in {strips} strips of rows, which takes longer and gives the same video."


def modes_of(compute: Compute) -> str:
    """The exact modes that compute so, in words; their programs are the same."""
    fields = {name for mode in _EXACT for name in mode.compute}
    plain = dataclasses.replace(compute, **{name: getattr(Compute(), name) for name in fields})
    return " or ".join(mode.name for mode in _EXACT if mode.of(plain) == compute)
