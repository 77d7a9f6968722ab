"""Where a component's parameters lie, by a model's spec and how it computes; and reading them to there."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cogvx_jax import sharding
from cogvx_jax.configs import Compute, ModelSpec
from cogvx_jax.convert import load_params
from cogvx_jax.convert.sources import Place, Source
from cogvx_jax.models.abstract import Abstract, abstract_params
from cogvx_jax.nn.stacked import HOST, waits_on_host

COMPONENTS = ("transformer", "vae", "text_encoder")
Places = dict[str, NamedSharding | None]
Change = Callable[[str, tuple[slice, ...], np.ndarray], np.ndarray]


def places(parameters: Mapping[str, Abstract], component: str, mesh: Mesh | None, *, streamed: bool = False) -> Places:
    """Where each parameter goes; None is the default device.

    The text encoder, used once a video, is stored over all devices of the mesh, whatever the rules. Kernels of
    `streamed` blocks are spread likewise, in the memory of the hosts.
    """
    where = sharding.shardings(parameters, mesh, store_spread=component == "text_encoder")
    if not streamed:
        return where
    one = NamedSharding(Mesh(np.array(jax.devices()[:1]), "one"), PartitionSpec()) if mesh is None else None
    return {path: _on_host(place or one) if waits_on_host(path) else place for path, place in where.items()}


def _on_host(place: NamedSharding | None) -> NamedSharding:
    assert place is not None
    return place.with_memory_kind(HOST)


def check_streams(device: Any) -> None:
    """Raises ValueError where a device cannot fetch kernels from its host's memory by itself."""
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST not in kinds:
        raise ValueError(
            f"kernels cannot wait in the host's memory: {device.device_kind} has no {HOST} memory, only "
            f"{', '.join(kinds)}; use --memory chunks"
        )


def abstract_weights(spec: ModelSpec, compute: Compute, component: str, mesh: Mesh | None) -> dict[str, Any]:
    """A component's parameters as `load` places them on the mesh, without their numbers."""
    parameters = abstract_params(getattr(spec, component))
    where = places(parameters, component, mesh, streamed=compute.of(component).streamed)
    dtype = np.dtype(compute.parameter_dtype(component))
    flat = {path: jax.ShapeDtypeStruct(p.shape, dtype, sharding=where[path]) for path, p in parameters.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def weight_bytes(spec: ModelSpec, compute: Compute, mesh: Mesh | None) -> dict[str, int]:
    """Bytes of each component's parameters on a device, without those that wait on the host."""
    return {c: device_bytes(abstract_weights(spec, compute, c, mesh)) for c in COMPONENTS}


def host_bytes(spec: ModelSpec, compute: Compute, mesh: Mesh | None) -> dict[str, int]:
    """Bytes of each component's parameters that wait in the host's memory, for each device."""
    found = {}
    for component in COMPONENTS:
        leaves = jax.tree.leaves(abstract_weights(spec, compute, component, mesh))
        found[component] = sum(_part_bytes(leaf) for leaf in leaves if on_host(leaf))
    return found


def device_bytes(params: Any) -> int:
    """Of arrays, or of their shapes and places: what a device holds."""
    return sum(_part_bytes(leaf) for leaf in jax.tree.leaves(params) if not on_host(leaf))


def on_host(leaf: Any) -> bool:
    """Whether an array, or its shape and place, is one that waits on the host."""
    return getattr(getattr(leaf, "sharding", None), "memory_kind", None) == HOST


def _part_bytes(leaf: Any) -> int:
    part = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    return math.prod(part) * leaf.dtype.itemsize


def load_component(
    files: Place | Source,
    spec: ModelSpec,
    component: str,
    dtype: str,
    mesh: Mesh | None,
    *,
    streamed: bool = False,
    change: Change | None = None,
) -> dict[str, Any]:
    """Parameters of one component in `dtype`, from the file to the devices that hold them; see `places`.

    Args:
      change: (path, index, block) -> the block to keep, of every block that is read.
    """
    parameters = abstract_params(getattr(spec, component))
    where = places(parameters, component, mesh, streamed=streamed)

    def put(path, shape, dtype, part):
        def read(index):
            return part(index) if change is None else change(path, index, part(index))

        # On the host a parameter is made whole: it has room for one of them twice.
        stacked = "layers" in parameters[path].names and not (streamed and waits_on_host(path))
        return sharding.put(read, shape, dtype, where[path], stacked=stacked)

    return load_params(files, spec, component, dtype, put=put)
