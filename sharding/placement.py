"""Puts arrays on a mesh: parameters block by block as they are read, inputs as copies on every device."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cogvx_jax.models.abstract import Abstract
from cogvx_jax.nn.quantized import Kernel, quantize_kernel
from cogvx_jax.quantization import SCALE, Storage
from cogvx_jax.sharding.rules import spec, spread

# A stacked parameter above this size reaches the devices layer by layer: of XXL models, one is
# several GB, of which the host would hold a copy.
STAGED_BYTES = 128 * 2**20

Read = Callable[[tuple[slice, ...]], np.ndarray]  # a block of a parameter


def shardings(
    parameters: Mapping[str, Abstract], mesh: Mesh | None, *, store_spread: bool = False
) -> dict[str, NamedSharding | None]:
    """Where each parameter goes; None is the default device.

    Args:
      store_spread: over all devices rather than by the rules: for what is used once a video.
    """
    if mesh is None:
        return dict.fromkeys(parameters)
    where = functools.partial(spread, mesh=mesh) if store_spread else functools.partial(spec, mesh=mesh)
    found = {path: where(shape=p.shape, names=p.names) for path, p in parameters.items()}
    for path in (path for path in parameters if path.endswith(SCALE)):
        # As their kernel lies, but for groups that its part of the mesh does not divide.
        places = zip(found[path.removesuffix(SCALE)], parameters[path].shape, strict=False)  # the rest stays whole
        found[path] = PartitionSpec(*(place if size % _ways(place, mesh) == 0 else None for place, size in places))
    return {path: NamedSharding(mesh, place) for path, place in found.items()}


def _ways(place: str | tuple[str, ...] | None, mesh: Mesh) -> int:
    """How many parts an axis that lies on these axes of the mesh has."""
    names = (place,) if isinstance(place, str) else place or ()
    return math.prod(mesh.shape[name] for name in names)


def put(
    read: Read, shape: tuple[int, ...], dtype: np.dtype, where: NamedSharding | None, *, stacked: bool
) -> jax.Array:
    """A parameter on its devices; of it, this host reads the blocks of its own devices only.

    Args:
      read: gives a block of the parameter.
      stacked: the leading axis counts layers: a large parameter is then read and sent layer by layer.
    """
    if not stacked or math.prod(shape) * dtype.itemsize <= STAGED_BYTES:
        return _array(read, shape, where)
    stack = _zeros(shape, dtype, where)()
    for layer in range(shape[0]):
        one = _array(functools.partial(_read_layer, read, layer), shape[1:], _inner(where))
        stack = _set_layer(where)(stack, one, np.int32(layer))
        stack.block_until_ready()  # or the host would run ahead and hold many layers
    return stack


def put_quantized(
    read: Read,
    shape: tuple[int, ...],
    storage: Storage,
    where: NamedSharding | None,
    scale_where: NamedSharding | None,
) -> Kernel:
    """A stacked kernel (layers, in, out) as integers on its devices, quantised there; a large one layer by layer.

    This host reads the blocks of its own devices only, of a layer at a time. Scales are of whole columns, whatever
    devices hold them: a column's largest number is asked of all.

    Args:
      where, scale_where: for the integers and for the scales (layers, groups, out).
    Raises: ValueError where groups do not divide the inputs.
    """
    layers, features, out = shape
    scale_shape = (layers, storage.groups(features), out)
    if 4 * math.prod(shape) <= STAGED_BYTES:
        return _quantize(storage, where, scale_where)(_array(read, shape, where))
    inner, scale_inner = _inner(where), _inner(scale_where)
    values = _zeros(shape, np.dtype(storage.dtype), where)()
    scales = _zeros(scale_shape, np.dtype("float32"), scale_where)()
    for layer in range(layers):
        kernel = _array(functools.partial(_read_layer, read, layer), shape[1:], inner)
        made = _quantize(storage, inner, scale_inner)(kernel)
        del kernel  # not while the next one is read
        values = _set_layer(where)(values, made.values, np.int32(layer))
        scales = _set_layer(scale_where)(scales, made.scale, np.int32(layer))
        values.block_until_ready()  # or the host would run ahead and hold many layers
    return Kernel(values, scales)


def everywhere(mesh: Mesh | None) -> NamedSharding | None:
    """A copy on each device of the mesh; None is the default device."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def replicate(x: Any, mesh: Mesh | None) -> jax.Array:
    """A copy of an array, equal on every host, on each device of the mesh; None is the default device."""
    return put_sharded(x, everywhere(mesh))


def put_sharded(x: Any, where: NamedSharding | None) -> jax.Array:
    """An array, equal on every host, on devices, each with its part of it; None is the default device."""
    if where is None:
        # Of numpy's, `jnp.asarray` would compile a program for each shape.
        return x if isinstance(x, jax.Array) else jax.device_put(np.array(x))
    if isinstance(x, jax.Array) and where.is_fully_addressable:
        return jax.device_put(x, where)  # from device to device
    # A copy, as above: where it is aligned, a CPU works in the memory that it is given, which the caller may change.
    x = np.asarray(x) if isinstance(x, jax.Array) else np.array(x)
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index])


def host_blocks(x: Any) -> Iterator[np.ndarray]:
    """The whole of an array in this host's memory, in one block or, if other hosts hold parts of it, in blocks.

    A block is an entry of the leading axis, such as a layer: every device has to hold a copy of it for a moment. All
    processes must ask for it together.
    """
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        yield np.asarray(x)
    elif x.ndim > 2:
        for i in range(x.shape[0]):
            yield np.asarray(multihost_utils.process_allgather(x[i], tiled=True))
    else:
        yield np.asarray(multihost_utils.process_allgather(x, tiled=True))


def on_every_host(x: Any) -> np.ndarray:
    """The whole of an array in each host's memory. All processes must ask for it together."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def _read_layer(read: Read, layer: int, index: tuple[slice, ...]) -> np.ndarray:
    return read((slice(layer, layer + 1), *index))[0]


def _inner(where: NamedSharding | None) -> NamedSharding | None:
    """Of one layer of a stack."""
    return None if where is None else NamedSharding(where.mesh, PartitionSpec(*where.spec[1:]))


def _array(read: Read, shape: tuple[int, ...], where: NamedSharding | None) -> jax.Array:
    if where is None:
        return jax.device_put(read(tuple(slice(n) for n in shape)))
    blocks: dict[tuple[tuple[int, ...], ...], np.ndarray] = {}  # several devices may hold the same one

    def block(index: Any) -> np.ndarray:
        key = tuple(s.indices(n) for s, n in zip(index, shape, strict=True))
        if key not in blocks:
            blocks[key] = read(index)
        return blocks[key]

    return jax.make_array_from_callback(shape, where, block)


@functools.lru_cache
def _zeros(shape: tuple[int, ...], dtype: np.dtype, where: NamedSharding | None):
    return jax.jit(functools.partial(jnp.zeros, shape, dtype), out_shardings=where)


@functools.lru_cache
def _set_layer(where: NamedSharding | None):
    def set_layer(stack, layer, i):
        return jax.lax.dynamic_update_index_in_dim(stack, layer, i, 0)

    return jax.jit(set_layer, donate_argnums=0, out_shardings=where)


@functools.lru_cache
def _quantize(storage: Storage, where: NamedSharding | None, scale_where: NamedSharding | None):
    return jax.jit(
        functools.partial(quantize_kernel, storage=storage),
        out_shardings=None if where is None else Kernel(where, scale_where),  # type: ignore[arg-type]
    )
