"""Where a run's state, batches and loss live on a mesh, by the rules of `sharding`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from cogvx_jax.models.abstract import Abstract
from cogvx_jax.sharding import RULES, activate, everywhere, place, shardings, spec
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
    placed = {}
    for path, ab in adapters.items():
        *layers, features, out = parameters[path].names
        names = {"a": (*layers, features, None), "b": (*layers, None, out)}
        where = shardings({side: Abstract(x.shape, names[side]) for side, x in ab.items()}, mesh)
        placed[path] = {side: place(x, where[side]) for side, x in ab.items()}
    return placed


def place_init(params: Any, tx: optax.GradientTransformation, mesh: Mesh | None) -> State:
    """`step.init` with buffers of its own: moments and average where their parameters are, all else on every device."""

    def init(params):
        return update.init(jax.tree.map(jnp.copy, params), tx)

    if mesh is None:
        return jax.jit(init)(params)
    params_at = {names(path): x for path, x in jax.tree.leaves_with_path(params)}

    def where(path, x):
        # Of an optimizer's state, what ends in a parameter's path and has its shape is one of its moments.
        keys = names(path)
        same = (params_at[keys[i:]] for i in range(len(keys)) if keys[i:] in params_at)
        return next((p.sharding for p in same if p.shape == x.shape), everywhere(mesh))

    return jax.jit(init, out_shardings=jax.tree.map_with_path(where, jax.eval_shape(init, params)))(params)


def place_batch(batch: Any, mesh: Mesh | None) -> Any:
    """Rows (B, ...), the same on every host, on the devices that compute them: of its rows, each host sends its own."""
    if mesh is None:
        return batch

    def one(x):
        names = ("batch", *(None,) * (x.ndim - 1))
        return place(x, NamedSharding(mesh, spec(names, mesh, x.shape)))

    return jax.tree.map(one, batch)


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
