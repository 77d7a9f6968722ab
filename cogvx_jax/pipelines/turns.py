"""Components of a model that take turns: one at a time lies on the devices, read from the checkpoint when it is needed.

Nothing is kept on the host: what comes back is read again, as a file that the system still holds in its memory is.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cogvx_jax.configs import Compute, ModelSpec
from cogvx_jax.convert import load_params
from cogvx_jax.convert.sources import Source
from cogvx_jax.models.lora import LoRA
from cogvx_jax.models.lora_blocks import Added
from cogvx_jax.pipelines.weights import abstract_weights, device_bytes, load_component
from cogvx_jax.quantization import Quantization


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Component:
    """A component in a checkpoint, with what is added to it while it is read."""

    files: Source
    spec: ModelSpec
    name: str
    compute: Compute
    mesh: Mesh | None
    quantize: Quantization | None = None  # while it is read; a folder that is quantised is read as it is
    added: Added = ()

    @property
    def dtype(self) -> str:
        return self.compute.parameter_dtype(self.name)

    def check(self) -> None:
        """Raises ConversionError where the files do not hold the component; reads their headers alone."""
        load_params(self.files, self.spec, self.name, self.dtype, put=lambda *_: None)

    def load(self) -> dict[str, Any]:
        """The parameters on their devices."""
        streamed = self.compute.of(self.name).streamed
        return load_component(
            self.files,
            self.spec,
            self.name,
            self.dtype,
            self.mesh,
            streamed=streamed,
            quantize=self.quantize,
            added=self.added,
        )

    def abstract(self) -> dict[str, Any]:
        """Their shapes and places."""
        return abstract_weights(self.spec, self.compute, self.name, self.mesh)


class Turns(Mapping[str, Any]):
    """Component -> its parameters. Asking for one frees the one that was there before.

    Mappings that `adapted` derives share the place: of all of them, one component is held at a time.
    """

    def __init__(self, components: Mapping[str, Component], held: dict[Component, Any] | None = None):
        self._components, self._held = dict(components), {} if held is None else held

    def __getitem__(self, name: str) -> Any:
        component = self._components[name]
        if component not in self._held:
            self._held.clear()  # before the next is read: both might not fit
            self._held[component] = self.read(component)
        return self._held[component]

    def __iter__(self) -> Iterator[str]:
        return iter(self._components)

    def __len__(self) -> int:
        return len(self._components)

    @staticmethod
    def read(component: Component) -> Any:
        return component.load()

    def check(self) -> None:
        """Raises ConversionError where the files do not hold a component; reads their headers alone."""
        for component in self._components.values():
            component.check()

    def component(self, name: str) -> Component:
        return self._components[name]

    def abstract(self, name: str) -> Any:
        """Shapes and places; nothing is read."""
        return self._components[name].abstract()

    def held_bytes(self) -> int:
        """What a device holds now."""
        return sum(device_bytes(params) for params in self._held.values())

    def free(self) -> None:
        """Gives the devices' memory back; what is asked for next is read again."""
        self._held.clear()

    def adapted(self, name: str, lora: LoRA, weight: float) -> "Turns":
        """The same components, but one with a LoRA added."""
        component = self._components[name]
        on_host = dataclasses.replace(lora, adapters=jax.tree.map(np.asarray, lora.adapters))
        changed = dataclasses.replace(component, added=(*component.added, (on_host, weight)))
        return Turns(self._components | {name: changed}, self._held)
