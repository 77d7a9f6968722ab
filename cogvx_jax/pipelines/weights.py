"""Where a component's parameters lie, by a model's spec and how it computes; and reading them to there."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cogvx_jax import sharding
from cogvx_jax.configs import Compute, ModelSpec
from cogvx_jax.convert import load_params
from cogvx_jax.convert.finite import is_finite, not_finite
from cogvx_jax.convert.quantize import quantize_on_host
from cogvx_jax.convert.quantized_layout import read_quantization
from cogvx_jax.convert.sources import Place, Source
from cogvx_jax.models.abstract import BITS, Abstract, abstract_params, quantized
from cogvx_jax.models.lora_blocks import Added, add_to_block
from cogvx_jax.nn.quantized import Kernel
from cogvx_jax.nn.stacked import HOST, waits_on_host
from cogvx_jax.quantization import COLUMNS, SCALE, Quantization, find_quantization

COMPONENTS = ("transformer", "vae", "text_encoder")
Places = dict[str, NamedSharding | None]


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
    how = compute.of(component).quantize
    parameters = quantized(abstract_params(getattr(spec, component)), None if how is None else find_quantization(how))
    where = places(parameters, component, mesh, streamed=compute.of(component).streamed)
    own = compute.parameter_dtype(component)
    flat = {
        path: jax.ShapeDtypeStruct(p.shape, np.dtype(p.dtype or own), sharding=where[path])
        for path, p in parameters.items()
    }
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
    return -(-math.prod(part) * BITS.get(str(leaf.dtype), 8 * leaf.dtype.itemsize) // 8)


def load_component(
    files: Place | Source,
    spec: ModelSpec,
    component: str,
    dtype: str,
    mesh: Mesh | None,
    *,
    streamed: bool = False,
    quantize: Quantization | None = None,
    added: Added = (),
) -> dict[str, Any]:
    """Parameters of one component in `dtype`, from the file to the devices that hold them; see `places`.

    Args:
      quantize: how to quantise it while it is read; a folder that is quantised is read as it is.
      added: LoRAs to add first.
    """
    parameters = quantized(abstract_params(getattr(spec, component)), quantize or read_quantization(files))
    where = places(parameters, component, mesh, streamed=streamed)
    scales: dict[str, Any] = {}

    def put(path, shape, dtype, part):
        def read(index):
            return add_to_block(added, path, index, part(index)) if added else part(index)

        waits = streamed and waits_on_host(path)
        storage = None if quantize is None else quantize.storage(path)
        if storage is None:
            # On the host a parameter is made whole: it has room for one of them twice.
            return sharding.put(read, shape, dtype, where[path], stacked=parameters[path].stacked and not waits)

        def read_wide(index):  # a LoRA is added in float32
            return add_to_block(added, path, index, part(index).astype(np.float32)) if added else part(index)

        if waits:
            made = Kernel(*map(sharding.put_sharded, quantize_on_host(read_wide, shape, storage), both(path)))
        else:
            made = sharding.put_quantized(read_wide, shape, storage, *both(path))
        if (bad := bad_block(made.scale, mesh)) is not None:
            base = part((slice(bad, bad + 1), *(slice(n) for n in shape[1:])))
            there = f"{path} of block {bad}, and cannot be quantised"
            raise not_finite(f"the {component} of {spec.name}", there, with_loras=bool(added) and is_finite(base))
        scales[path + SCALE] = made.scale
        return made.values

    def both(path):
        return where[path], where[path + SCALE]

    own = set(COLUMNS) if quantize is not None else set()
    params = load_params(files, spec, component, dtype, put=put, own=own)
    flat = traverse_util.flatten_dict(params, sep="/") | scales
    return traverse_util.unflatten_dict(flat, sep="/")


def bad_block(scale: jax.Array, mesh: Mesh | None) -> int | None:
    """The first block whose kernel held a number that is not finite: so is then one of `scale` (layers, g, out)."""
    finite = jax.jit(lambda x: jnp.isfinite(x).all(axis=(1, 2)), out_shardings=sharding.everywhere(mesh))
    good = jax.device_get(finite(scale))
    return None if good.all() else int(np.argmin(good))
