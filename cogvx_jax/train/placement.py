"""Where a run's state, batches and loss live on a mesh, by the rules of `sharding`."""

import dataclasses
from collections.abc import Callable, Mapping
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


@dataclasses.dataclass(frozen=True)
class HostRows:
    """The rows of a batch that a host has: their numbers, in order, of so many."""

    numbers: tuple[int, ...]
    count: int


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a run's state, batches and loss live: on a mesh, or with None on the first device. Made once for a run."""

    mesh: Mesh | None = None

    @property
    def devices(self) -> int:
        return 1 if self.mesh is None else self.mesh.size

    def adapters(self, adapters: Any, parameters: Mapping[str, Abstract]) -> Any:
        """Adapters where the axes of their kernels lie; the rank stays whole.

        Args:
          parameters: those of the transformer, by path.
        """
        if self.mesh is None:
            return adapters
        return jax.tree.map(put_sharded, adapters, adapter_shardings(adapters, parameters, self.mesh))

    def init(self, params: Any, tx: optax.GradientTransformation, *, average: bool = True) -> State:
        """`step.init` with buffers of its own: moments and average where their parameters are, the rest everywhere."""

        def init(params):
            return update.init(jax.tree.map(jnp.copy, params), tx, average=average)

        if self.mesh is None:
            return jax.jit(init)(params)
        return jax.jit(init, out_shardings=_state_shardings(jax.eval_shape(init, params), params, self.mesh))(params)

    def shapes(self, params: Any, tx: optax.GradientTransformation, *, average: bool = True) -> State:
        """The state that `init` would make, as shapes with where they lie; of `params`, shapes are enough."""
        state = jax.eval_shape(lambda params: update.init(params, tx, average=average), params)
        here = SingleDeviceSharding(jax.devices()[0])
        where = jax.tree.map(lambda _: here, state) if self.mesh is None else _state_shardings(state, params, self.mesh)
        return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), state, where)

    def rows(self, count: int) -> HostRows:
        """Those of a batch that devices of this process compute: no other row need be read here."""
        if self.mesh is None:
            return HostRows(tuple(range(count)), count)
        blocks = row_sharding(self.mesh, (count,)).addressable_devices_indices_map((count,)).values()
        return HostRows(tuple(sorted({row for block in blocks if block for row in range(count)[block[0]]})), count)

    def batch(self, batch: Any, rows: HostRows | None = None) -> Any:
        """Rows (B, ...) on the devices that compute them.

        Args:
          batch: whose arrays hold `rows` of all B; None is all of them, the same on every host.
        """
        mesh = self.mesh
        return batch if mesh is None else jax.tree.map(lambda x: _put_rows(x, mesh, rows), batch)

    def compute(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, computed on the mesh."""

        def active(*arguments):
            with activate(self.mesh):
                return function(*arguments)

        return function if self.mesh is None else active

    def loss(self, loss: Loss) -> Loss:
        """The same loss, computed on the mesh."""
        return Loss(self.compute(loss.draw), self.compute(loss.mean))


def adapter_shardings(adapters: Any, parameters: Mapping[str, Abstract], mesh: Mesh) -> Any:
    """Where `Placement.adapters` puts them, by their shapes."""
    where = {}
    for path, ab in adapters.items():
        *layers, features, out = parameters[path].names
        names = {"a": (*layers, features, None), "b": (*layers, None, out)}
        where[path] = shardings({side: Abstract(x.shape, names[side]) for side, x in ab.items()}, mesh)
    return where


def row_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Where an array of rows (B, ...) lies."""
    return NamedSharding(mesh, spec(("batch", *(None,) * (len(shape) - 1)), mesh, shape))


def _put_rows(x: Any, mesh: Mesh, rows: HostRows | None) -> jax.Array:
    if rows is None:
        return put_sharded(x, row_sharding(mesh, x.shape))
    shape, at = (rows.count, *x.shape[1:]), {number: i for i, number in enumerate(rows.numbers)}

    def block(index):
        return x[[at[number] for number in range(rows.count)[index[0]]]]

    return jax.make_array_from_callback(shape, row_sharding(mesh, shape), block)


def _state_shardings(state: State, params: Any, mesh: Mesh) -> State:
    """Where the state of a run lies, by its shapes and by where its parameters are."""
    params_at = {names(path): x for path, x in jax.tree.leaves_with_path(params)}

    def where(path, x):
        # Of an optimizer's state, what ends in a parameter's path and has its shape is one of its moments.
        keys = names(path)
        same = (params_at[keys[i:]] for i in range(len(keys)) if keys[i:] in params_at)
        return next((p.sharding for p in same if p.shape == x.shape), everywhere(mesh))

    return jax.tree.map_with_path(where, state)


def names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The keys of a path into a tree as words."""
    return tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
