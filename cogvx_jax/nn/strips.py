"""Videos worked through in strips of rows, from top to bottom: the same numbers in less memory.

A 3x3 convolution of a strip needs a row above it and one below it, its edges. They are taken from all strips before
the first one is worked on, so that a result may take the place of what it is made of.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Videos = Mapping[str, tuple[jax.Array, ...]]  # by name, each in parts (B, F, H, W, C)
# (strips with their edges, which rows lie inside of the frame, state) -> (rows of the results, state)
Step = Callable[[Videos, jax.Array, Any], tuple[Videos, Any]]


def rows_of(height: int, strips: int) -> int:
    """Rows of each of at most `strips` strips: an even number, as frames of half the height have half of them."""
    return min(-(-height // (2 * strips)) * 2, height)


def over_strips(step: Step, videos: Videos, state: Any, *, height: int, rows: int) -> tuple[Videos, Any]:
    """Runs `step` on one strip after the other, and lays the rows that it makes together.

    Args:
      step: gets every video's strip with a row above and a row below, zeros where the frame ends, and inside,
        (rows + 2,) booleans. It returns results by name. A result with the name of a video takes its place in memory.
      videos: those of another height than `height` are cut into as many strips; so are results.
      state: what a strip hands to the next.
      height, rows: of the frames, and of each strip but the last one, which has the rows that remain.
    Returns: results of whole height by name, and the last state.
    """
    edges = {name: tuple(_edges(x, height, rows) for x in parts) for name, parts in videos.items()}

    def run(held: Videos, state: Any, strip: "_Strip") -> tuple[Videos, Any]:
        cut = {
            name: tuple(strip.cut(x, edge, height) for x, edge in zip(parts, strip.edges[name], strict=True))
            for name, parts in ({**videos, **held}).items()
            if name in videos
        }
        inside = strip.start + jnp.arange(-1, strip.rows + 1)
        return step(cut, (inside >= 0) & (inside < height), state)

    def laid(held: Videos, state: Any, strip: "_Strip") -> tuple[Videos, Any]:
        made, state = run(held, state, strip)
        return jax.tree.map(lambda whole, part: strip.lay(whole, part, height), held, made), state

    first = _Strip(0, rows, jax.tree.map(lambda e: e[0], edges))
    made, _ = jax.eval_shape(lambda state: run({}, state, first), state)
    held: Videos = {
        name: videos.get(name, tuple(jnp.zeros(_whole(y.shape, height, rows), y.dtype) for y in parts))
        for name, parts in made.items()
    }
    count = height // rows

    def body(carry, strip):
        start, edges = strip
        return laid(*carry, _Strip(start, rows, edges)), None

    whole = jnp.arange(count) * rows, jax.tree.map(lambda e: e[:count], edges)
    (held, state), _ = lax.scan(body, (held, state), whole)
    if height % rows:
        rest = jax.tree.map(lambda e: e[count], edges)
        held, state = laid(held, state, _Strip(count * rows, height % rows, rest))
    return held, state


class _Strip(NamedTuple):
    """`rows` rows of the frame from row `start`, with the edges of all videos (B, F, 2, W, C)."""

    start: Any
    rows: int
    edges: Any

    def cut(self, x: jax.Array, edge: jax.Array, height: int) -> jax.Array:
        """The rows of a video, with its edges around them."""
        own = x.shape[2]
        part = lax.dynamic_slice_in_dim(x, self.start * own // height, self.rows * own // height, axis=2)
        return jnp.concatenate([edge[:, :, :1], part, edge[:, :, 1:]], axis=2)

    def lay(self, whole: jax.Array, part: jax.Array, height: int) -> jax.Array:
        """`whole` with `part` where this strip lies."""
        return lax.dynamic_update_slice_in_dim(whole, part, self.start * whole.shape[2] // height, axis=2)


def _edges(x: jax.Array, height: int, rows: int) -> jax.Array:
    """The row above and the row below of every strip, (strips, B, F, 2, W, C)."""
    own = rows * x.shape[2] // height
    above = jnp.pad(x[:, :, own - 1 : -1 : own], ((0, 0), (0, 0), (1, 0), (0, 0), (0, 0)))
    below = jnp.pad(x[:, :, own::own], ((0, 0), (0, 0), (0, 1), (0, 0), (0, 0)))
    return jnp.stack([jnp.moveaxis(above, 2, 0), jnp.moveaxis(below, 2, 0)], axis=3)


def _whole(shape: tuple[int, ...], height: int, rows: int) -> tuple[int, ...]:
    """The shape of a result of which a strip's is `shape`."""
    return (*shape[:2], shape[2] * height // rows, *shape[3:])
