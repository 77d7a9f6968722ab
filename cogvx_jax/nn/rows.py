"""Pictures made a strip of rows after the other, so that little is in memory beside them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def over_rows(make: Callable[[jax.Array], jax.Array], height: int, rows: int, axis: int = 0) -> jax.Array:
    """What `make` gives of one strip after the other, laid together.

    Args:
      make: of a strip's first row; it gives a part of the result that stands for `rows` rows, or all where those are
        fewer. The last strip overlaps the one before it where need be.
      axis: of the result's rows, which may be more or fewer than `height` by a factor.
    """
    rows = min(rows, height)
    one = jax.eval_shape(make, jnp.int32(0))
    whole = one.shape[axis] * height // rows

    def lay(made: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
        at = start * one.shape[axis] // rows
        return jax.lax.dynamic_update_slice_in_dim(made, make(start), at, axis), None

    starts = np.minimum(np.arange(0, height, rows), height - rows)
    room = jnp.zeros((*one.shape[:axis], whole, *one.shape[axis + 1 :]), one.dtype)
    return jax.lax.scan(lay, room, jnp.asarray(starts, jnp.int32))[0]
