"""What a model's parameters are of: its files, and the LoRAs that were added to them."""

import dataclasses
import functools
import hashlib
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from cogvx_jax.convert.fingerprints import part_fingerprints
from cogvx_jax.convert.sources import open_source
from cogvx_jax.given import Given
from cogvx_jax.models.lora import LoRA, UsedLoRA
from cogvx_jax.sharding import params_digest


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Origin:
    """Where the parameters of a model were read from.

    source: as `load` was given it; `place` is the folder or file that it stands for.
    given: what was said of the model beside its files.
    quantize: how it was quantised while it was read; None: as it is stored.
    loras: in its transformer, in the order in which they were added.
    """

    source: str
    place: str | Path
    given: Given
    quantize: str | None
    loras: tuple[UsedLoRA, ...] = ()
    _leaves: tuple[weakref.ref, ...] = ()  # which a model's parameters are for as long as this is true of them

    def of(self, params: Any, *loras: UsedLoRA) -> "Origin":
        """The origin of these parameters: the files, and more LoRAs."""
        leaves = tuple(map(weakref.ref, _leaves(params)))
        return dataclasses.replace(self, loras=(*self.loras, *loras), _leaves=leaves)

    def is_of(self, params: Any) -> bool:
        """Whether a model's parameters are still those, and none was put in another's place, as by training."""
        leaves = _leaves(params)
        return len(leaves) == len(self._leaves) and all(
            found() is leaf for found, leaf in zip(self._leaves, leaves, strict=True)
        )

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of each part; taken from the files when first asked for. Raises: OSError."""
        return part_fingerprints(open_source(self.place, self.given))


def _leaves(params: Any) -> list[Any]:
    """Arrays of parameters. Where components take turns they are read again and again: the mapping stands for them."""
    return jax.tree.leaves(params) if isinstance(params, dict) else [params]


def used_loras(weighted: Sequence[tuple[LoRA, float]]) -> tuple[UsedLoRA, ...]:
    """What is noted of LoRAs with their weights. Hashes all of their numbers, about a gigabyte a second."""
    found = []
    for lora, weight in weighted:
        parts = lora.parts or (UsedLoRA(lora.source, 1.0, lora_digest(lora)),)
        found += [part._replace(weight=float(part.weight * weight)) for part in parts]
    return tuple(found)


def lora_digest(lora: LoRA) -> str:
    """A hash of all that a LoRA adds."""
    found = hashlib.sha256(f"{params_digest(lora.adapters)} {lora.scale!r}".encode())
    for one in lora.differences:
        found.update(f"{one.path} {one.blocks} {params_digest({'values': one.values})}".encode())
    return found.hexdigest()[:16]
