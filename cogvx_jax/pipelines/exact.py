"""The same bits on every mesh that splits videos and branches only: each is computed alone, by the same program.

Elsewhere the result is the same but for rounding: how a product is cut into blocks, and so the order of its sums,
depends on how many rows a device has.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from cogvx_jax.sharding import everywhere, spec

AXES = ("data", "cfg")


def check_exact(mesh: Mesh | None, *, one_program: bool = False) -> None:
    """Raises ValueError where a mesh splits more than videos and branches, or the steps are one program."""
    if one_program:
        raise ValueError("exact results need a program per step: as one, each mesh fuses its parts in other ways")
    others = [] if mesh is None else [f"{a}={n}" for a, n in mesh.shape.items() if n > 1 and a not in AXES]
    if others:
        found = ",".join(others)
        raise ValueError(f"exact results need a mesh of data and cfg only, got {found}: it changes the order of sums")


def row_by_row(function: Callable[..., jax.Array], mesh: Mesh | None) -> Callable[..., jax.Array]:
    """`function` (weights, *arrays (B, ...)) -> (B, ...) that computes a row at a time; devices share the rows out.

    The result is on every device. Weights that a mesh spreads are gathered first.
    """

    def row(weights: Any, arrays: tuple[jax.Array, ...]) -> jax.Array:
        # Barriers, or the compiler would merge a row's first and last operations with what surrounds the loop, which
        # differs from mesh to mesh, and take out of it what all rows share.
        one = jax.lax.optimization_barrier(tuple(x[None] for x in arrays))
        return jax.lax.optimization_barrier(function(weights, *one))[0]

    def rows(weights: Any, *arrays: jax.Array) -> jax.Array:
        return jax.lax.map(lambda each: row(weights, each), arrays)

    def spread(weights: Any, *arrays: jax.Array) -> jax.Array:
        assert mesh is not None
        place, whole = spec(("batch",), mesh, arrays[0].shape[:1]), PartitionSpec()
        places = (whole, *[place for _ in arrays])
        result = jax.shard_map(rows, mesh=mesh, in_specs=places, out_specs=place, check_vma=False)(weights, *arrays)
        return jax.lax.optimization_barrier(jax.lax.with_sharding_constraint(result, everywhere(mesh)))

    return rows if mesh is None else spread
