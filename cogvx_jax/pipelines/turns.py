"""Components of a model that take turns: one at a time lies on the devices, read from the checkpoint when it is needed.

Nothing is kept on the host: what comes back is read again, as a file that the system still holds in its memory is.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cogvx_jax.configs import Compute, ModelSpec
from cogvx_jax.convert import load_params
from cogvx_jax.models.lora import Adapters, merge
from cogvx_jax.pipelines.weights import abstract_weights, device_bytes, load_component

Added = tuple[tuple[Adapters, float], ...]  # adapters and their factors


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A component in a checkpoint, with what is added to it while it is read."""

    folder: str | Path
    spec: ModelSpec
    component: str
    compute: Compute
    mesh: Mesh | None
    added: Added = ()

    @property
    def dtype(self) -> str:
        return self.compute.parameter_dtype(self.component)

    def check(self) -> None:
        """Raises ConversionError where the files do not hold the component; reads their headers alone."""
        load_params(self.folder, self.spec, self.component, self.dtype, put=lambda *_: None)

    def load(self) -> dict[str, Any]:
        """The parameters on their devices."""
        streamed = self.compute.of(self.component).streamed
        change = functools.partial(add_to_block, self.added) if self.added else None
        return load_component(
            self.folder, self.spec, self.component, self.dtype, self.mesh, streamed=streamed, change=change
        )

    def abstract(self) -> dict[str, Any]:
        """Their shapes and places."""
        return abstract_weights(self.spec, self.compute, self.component, self.mesh)


class Turns(Mapping[str, Any]):
    """Component -> its parameters. Asking for one frees the one that was there before.

    Mappings that `adapted` derives share the place: of all of them, one component is held at a time.
    """

    def __init__(self, sources: Mapping[str, Source], held: dict[Source, Any] | None = None):
        self._sources, self._held = dict(sources), {} if held is None else held

    def __getitem__(self, component: str) -> Any:
        source = self._sources[component]
        if source not in self._held:
            self._held.clear()  # before the next is read: both might not fit
            self._held[source] = source.load()
        return self._held[source]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def source(self, component: str) -> Source:
        return self._sources[component]

    def abstract(self, component: str) -> Any:
        """Shapes and places; nothing is read."""
        return self._sources[component].abstract()

    def held_bytes(self) -> int:
        """What a device holds now."""
        return sum(device_bytes(params) for params in self._held.values())

    def free(self) -> None:
        """Gives the devices' memory back; what is asked for next is read again."""
        self._held.clear()

    def adapted(self, component: str, adapters: Adapters, factor: float) -> "Turns":
        """The same components, but one with adapters added."""
        source = self._sources[component]
        on_host = jax.tree.map(np.asarray, adapters)
        changed = dataclasses.replace(source, added=(*source.added, (on_host, factor)))
        return Turns(self._sources | {component: changed}, self._held)


def add_to_block(added: Added, path: str, index: tuple[slice, ...], block: np.ndarray) -> np.ndarray:
    """A block of a parameter with adapters added as `models.lora.merge` adds them, layer by layer.

    Args:
      path: of the parameter.
      index: where in it the block lies, (layers, in, out).
      block: its numbers; is changed.
    """
    for adapters, factor in added:
        if path not in adapters:
            continue
        layers, inner, outer = index
        a, b = (np.asarray(adapters[path][name]) for name in "ab")
        for slot, a_of, b_of in zip(block, a[layers, inner], b[layers, :, outer], strict=True):
            slot[...] = merge({"kernel": slot}, {"kernel": {"a": a_of, "b": b_of}}, factor)["kernel"]
    return block
