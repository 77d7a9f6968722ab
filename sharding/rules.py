"""One table from the meaning of axes to the axes of a mesh: the only place that joins the two."""

import math

from jax.sharding import Mesh, PartitionSpec

from cogvx_jax import axes

RULES: dict[str, tuple[str, ...]] = {  # meaning -> mesh axes; () stays whole
    "batch": ("cfg", "data", "fsdp"),  # cfg first: the rows are all negative branches, then all positive ones
    "frames": (),
    "seq": ("context", "fsdp", "sp"),  # sp last: its neighbours hold neighbouring tokens
    "height": ("sp", "tensor"),
    "width": ("cfg", "context", "fsdp", "data"),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "embed": ("fsdp",),
    "time": ("fsdp",),
    "modulation": (),  # never: shift, scale and gate would have to be gathered in every layer
    "text": (),
    "patch": (),
    "vocab": (),
    "layers": (),
    "conv_in": (),
    "conv_out": (),
    "latent": (),
    "norm": (),
}
# These take of their mesh axes what earlier axes of the array have left; others never share one.
LEFTOVERS = frozenset({"seq", "height", "width"})
# Of these an uneven split is better than none: the last device holds less.
UNEVEN = frozenset({"height", "width"})
STORAGE = frozenset({"fsdp"})  # mesh axes over which parameters are only stored


def spec(names: axes.Names, mesh: Mesh, shape: tuple[int, ...], *, even: bool = False) -> PartitionSpec:
    """The partition of an array whose axes are `names`; see `mesh_axes`."""
    return PartitionSpec(*(place or None for place in mesh_axes(names, mesh, shape, even=even)))


def mesh_axes(names: axes.Names, mesh: Mesh, shape: tuple[int, ...], *, even: bool = False) -> list[tuple[str, ...]]:
    """The mesh axes that each axis of an array lies on; those absent from the mesh count as size 1.

    An axis takes those of its mesh axes that divide it and stays whole over the others, but for `UNEVEN`; with
    `even` for these, too, as programs take and return even parts only.
    Raises: ValueError for an unknown name, or two names that need the same mesh axis.
    """
    axes.check_names(names)
    used: dict[str, str] = {}
    found: list[tuple[str, ...]] = []
    for name, size in zip(names, shape, strict=True):
        taken: list[str] = []
        for axis in RULES[name] if name is not None else ():
            count = mesh.shape.get(axis, 1)
            if count == 1:
                continue
            if axis in used:
                if name in LEFTOVERS and used[axis] != name:
                    continue
                raise ValueError(f"{used[axis]!r} and {name!r} of one array both lie on the mesh axis {axis!r}")
            if size % (count * math.prod(mesh.shape[a] for a in taken)) and (even or name not in UNEVEN):
                continue
            taken.append(axis)
            used[axis] = str(name)
        found.append(tuple(taken))
    return found


def spread(shape: tuple[int, ...], mesh: Mesh, names: axes.Names) -> PartitionSpec:
    """A partition over all devices for storage alone: of the largest axis, not the layers, that they divide.

    For parameters that are used once a video, such as the text encoder's. Where no axis divides, it stays whole.
    """
    count = math.prod(mesh.shape.values())
    fits = [i for i, (n, name) in enumerate(zip(shape, names, strict=True)) if name != "layers" and n % count == 0]
    if not fits or count == 1:
        return PartitionSpec()
    best = max(fits, key=lambda i: shape[i])
    return PartitionSpec(*(tuple(mesh.axis_names) if i == best else None for i in range(len(shape))))
