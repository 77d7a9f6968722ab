"""One table from logical axis names to mesh axes; placement of parameters and activations by it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cogvx_jax import axes

RULES: dict[str, tuple[str, ...]] = {  # logical axis -> mesh axes; () is replicated
    "batch": ("data",),
    "frames": (),
    "height": (),
    "width": (),
    "seq": (),
    "embed": (),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "time": (),
    "modulation": (),
    "text": (),
    "patch": (),
    "vocab": (),
    "layers": (),
    "conv_in": (),
    "conv_out": (),
    "latent": (),
    "norm": (),
}


def spec(names: tuple[str | None, ...], mesh: Mesh, shape: tuple[int, ...]) -> PartitionSpec:
    """The partition of an array whose axes are `names`; mesh axes that are absent count as size 1.

    An axis that its mesh axes do not divide stays whole.
    Raises: ValueError for an unknown name.
    """
    axes.check_names(names)
    parts = []
    for name, size in zip(names, shape, strict=True):
        on = tuple(a for a in RULES[name] if a in mesh.shape) if name is not None else ()
        count = 1
        for a in on:
            count *= mesh.shape[a]
        parts.append(on if on and size % count == 0 else None)
    return PartitionSpec(*parts)


@contextlib.contextmanager
def activate(mesh: Mesh | None) -> Iterator[None]:
    """Inside, `constrain` places activations on `mesh`; None leaves them to the compiler."""
    if mesh is None:
        yield
        return

    auto = _auto(mesh)

    def put(x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(auto, spec(names, auto, x.shape)))

    with axes.constraining(put):
        yield


def place(params: Any, mesh: Mesh | None) -> Any:
    """Parameters on the default device, or a copy of them on every device of `mesh`."""
    target = None if mesh is None else NamedSharding(_auto(mesh), PartitionSpec())
    return jax.tree.map(lambda x: jax.device_put(x, target), params)


def _auto(mesh: Mesh) -> Mesh:
    """The same devices with axes that the compiler may use freely, as `constrain` only hints."""
    return Mesh(mesh.devices, mesh.axis_names)
