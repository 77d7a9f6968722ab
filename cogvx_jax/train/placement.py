"""Where a run's state, batches and loss live on a mesh, by the rules of `sharding`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

from cogvx_jax.models.abstract import Abstract
from cogvx_jax.sharding import RULES, activate, everywhere, put_sharded, shardings, spec
from cogvx_jax.train import step as update
from cogvx_jax.train.step import Loss, State


def check_batch(mesh: Mesh | None, clips: int, accumulate: int = 1) -> None:
    """Raises ValueError where a batch of `clips`, in `accumulate` parts, cannot be split over the mesh."""
    sizes = {} if mesh is None else {axis: mesh.shape[axis] for axis in RULES["batch"] if mesh.shape[axis] > 1}
    multiple = accumulate * int(np.prod(list(sizes.values()), dtype=int))
    if clips % multiple:
        over = [f"{axis}={size}" for axis, size in sizes.items()] + [f"{accumulate} parts"] * (accumulate > 1)
        raise ValueError(
            f"a batch of {clips} clips cannot be split over {' x '.join(over)}; take a multiple of {multiple}"
        )


def place_adapters(adapters: Any, parameters: Mapping[str, Abstract], mesh: Mesh | None) -> Any:
    """Adapters on the devices where the axes of their kernels lie; the rank stays whole.

    Args:
      parameters: those of the transformer, by path.
    """
    if mesh is None:
        return adapters
    return jax.tree.map(put_sharded, adapters, adapter_shardings(adapters, parameters, mesh))


def adapter_shardings(adapters: Any, parameters: Mapping[str, Abstract], mesh: Mesh) -> Any:
    """Where `place_adapters` puts them, by their shapes."""
    where = {}
    for path, ab in adapters.items():
        *layers, features, out = parameters[path].names
        names = {"a": (*layers, features, None), "b": (*layers, None, out)}
        where[path] = shardings({side: Abstract(x.shape, names[side]) for side, x in ab.items()}, mesh)
    return where


def place_init(params: Any, tx: optax.GradientTransformation, mesh: Mesh | None, *, average: bool = True) -> State:
    """`step.init` with buffers of its own: moments and average where their parameters are, all else on every device."""

    def init(params):
        return update.init(jax.tree.map(jnp.copy, params), tx, average=average)

    if mesh is None:
        return jax.jit(init)(params)
    return jax.jit(init, out_shardings=state_shardings(jax.eval_shape(init, params), params, mesh))(params)


def state_shapes(params: Any, tx: optax.GradientTransformation, mesh: Mesh | None, *, average: bool = True) -> State:
    """The state that `place_init` would make, as shapes with where they lie; of `params`, shapes are enough."""
    state = jax.eval_shape(lambda params: update.init(params, tx, average=average), params)
    here = SingleDeviceSharding(jax.devices()[0])
    where = jax.tree.map(lambda _: here, state) if mesh is None else state_shardings(state, params, mesh)
    return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), state, where)


def state_shardings(state: State, params: Any, mesh: Mesh) -> State:
    """Where the state of a run lies, by its shapes and by where its parameters are."""
    params_at = {names(path): x for path, x in jax.tree.leaves_with_path(params)}

    def where(path, x):
        # Of an optimizer's state, what ends in a parameter's path and has its shape is one of its moments.
        keys = names(path)
        same = (params_at[keys[i:]] for i in range(len(keys)) if keys[i:] in params_at)
        return next((p.sharding for p in same if p.shape == x.shape), everywhere(mesh))

    return jax.tree.map_with_path(where, state)


@dataclasses.dataclass(frozen=True)
class HostRows:
    """The rows of a batch that a host has: their numbers, in order, of so many."""

    numbers: tuple[int, ...]
    count: int


def host_rows(mesh: Mesh | None, count: int) -> HostRows:
    """Those that devices of this process compute: no other row of a batch need be read here."""
    if mesh is None:
        return HostRows(tuple(range(count)), count)
    blocks = row_sharding(mesh, (count,)).addressable_devices_indices_map((count,)).values()
    return HostRows(tuple(sorted({row for block in blocks if block for row in range(count)[block[0]]})), count)


def place_batch(batch: Any, mesh: Mesh | None, rows: HostRows | None = None) -> Any:
    """Rows (B, ...) on the devices that compute them.

    Args:
      batch: whose arrays hold `rows` of all B; None is all of them, the same on every host.
    """
    if mesh is None:
        return batch

    def one(x):
        if rows is None:
            return put_sharded(x, row_sharding(mesh, x.shape))
        shape, at = (rows.count, *x.shape[1:]), {number: i for i, number in enumerate(rows.numbers)}

        def block(index):
            return x[[at[number] for number in range(rows.count)[index[0]]]]

        return jax.make_array_from_callback(shape, row_sharding(mesh, shape), block)

    return jax.tree.map(one, batch)


def row_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Where an array of rows (B, ...) lies."""
    return NamedSharding(mesh, spec(("batch", *(None,) * (len(shape) - 1)), mesh, shape))


def place_loss(loss: Loss, mesh: Mesh | None) -> Loss:
    """The same loss, computed on the mesh."""

    def on_mesh(function):
        def active(*arguments):
            with activate(mesh):
                return function(*arguments)

        return active

    return loss if mesh is None else Loss(on_mesh(loss.draw), on_mesh(loss.mean))


def names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The keys of a path into a tree as words."""
    return tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
