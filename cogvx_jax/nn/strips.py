"""Videos worked through in strips of rows, from top to bottom: the same numbers in less memory.

A 3x3 convolution of a strip needs a row above it and one below it. The one above is handed on by the strip before, so
that a result may take the place of what it is made of.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

FEW_CHANNELS = 8

Videos = Mapping[str, tuple[jax.Array, ...]]  # by name, each in parts (B, F, H, W, C)
# (strips with a row more at either end, which rows lie inside of the frame, state) -> (rows of the results, state)
Step = Callable[[Videos, jax.Array, Any], tuple[Videos, Any]]


def rows_of(height: int, strips: int) -> int:
    """Rows of each of at most `strips` strips: an even number, as frames of half the height have half of them."""
    return min(-(-height // (2 * strips)) * 2, height)


def over_strips(step: Step, videos: Videos, state: Any, *, height: int, rows: int) -> tuple[Videos, Any]:
    """Runs `step` on one strip after the other, and lays the rows that it makes together.

    Args:
      step: gets every video's strip with a row above and a row below, zeros where the frame ends, and which of
        `rows` + 2 are inside, booleans. It returns results by name. A result with the name of a video takes its place
        in memory.
      videos: those of another height than `height` are cut into as many strips; so are results.
      state: what a strip hands to the next.
      height, rows: of the frames, and of each strip but the last one, which has the rows that remain.
    Returns: results of whole height by name, and the last state.
    """

    def at(row: Any, x: jax.Array) -> Any:
        return row * x.shape[2] // height

    def cut(x: jax.Array, above: jax.Array, start: Any, size: int) -> jax.Array:
        part = lax.dynamic_slice_in_dim(x, at(start, x), at(size, x), axis=2)
        end = at(start + size, x)
        below = lax.dynamic_slice_in_dim(x, jnp.minimum(end, x.shape[2] - 1), 1, axis=2)
        part, below = _in_order(part), _in_order(below)
        return jnp.concatenate([above, part, jnp.where(end < x.shape[2], below, 0)], axis=2)

    def work(above: Videos, held: Videos, state: Any, start: Any, size: int) -> tuple[Videos, Videos, Any]:
        """The last row of every strip, the rows of the results, and the state."""
        now = {name: held.get(name, parts) for name, parts in videos.items()}
        strips = jax.tree.map(lambda x, row: cut(x, row, start, size), now, above)
        numbers = start + jnp.arange(-1, size + 1)
        made, state = step(strips, (numbers >= 0) & (numbers < height), state)
        made = {name: _after(parts, strips[name], start) if name in strips else parts for name, parts in made.items()}
        return jax.tree.map(lambda strip: strip[:, :, -2:-1], strips), made, state

    def lay(above: Any, held: Any, state: Any, start: Any, size: int) -> tuple[Any, Any, Any]:
        above, made, state = work(above, held, state, start, size)
        laid = jax.tree.map(
            lambda x, part: lax.dynamic_update_slice_in_dim(x, _in_order(part), at(start, x), axis=2), held, made
        )
        return above, laid, state

    above: Any = jax.tree.map(lambda x: jnp.zeros_like(x[:, :, :1]), dict(videos))
    _, made, _ = jax.eval_shape(lambda above, state: work(above, {}, state, 0, rows), above, state)
    number = next(iter(videos.values()))[0][0, 0, 0, 0, 0]
    held: Any = {
        name: videos.get(name, jax.tree.map(lambda y: _whole(y, height, rows, number), y)) for name, y in made.items()
    }
    starts = jnp.arange(height // rows) * rows
    carry, _ = lax.scan(lambda carry, start: (lay(*carry, start, rows), None), (above, held, state), starts)
    if height % rows:
        carry = lay(*carry, height // rows * rows, height % rows)
    return carry[1:]


def _after(made: tuple[jax.Array, ...], strips: tuple[jax.Array, ...], start: Any) -> tuple[jax.Array, ...]:
    """`made`, but a compiler takes it to depend on the strips in whose place it is laid.

    A cache does not depend on the one before: without this all of it was copied for every strip.
    """
    return tuple(jnp.where(start >= 0, y, strip[:, :, 2:]) for y, strip in zip(made, strips, strict=True))


def _whole(part: jax.ShapeDtypeStruct, height: int, rows: int, number: jax.Array) -> jax.Array:
    """Room for a result of which a strip's is `part`, full of a number that the loop begins with.

    The number means nothing. But of `lax.empty` a CPU's compiler takes all of a shape for one, which it keeps from the
    first layer to the last, and copies for each.
    """
    shape = (*part.shape[:2], part.shape[2] * height // rows, *part.shape[3:])
    return jnp.full(shape, number.astype(part.dtype))


def _in_order(strip: jax.Array) -> jax.Array:
    """Has a compiler change the layout of a strip, not of all that it is cut from.

    Channels lie innermost, but for few of them, which a TPU would fill up to 128.
    """
    order = (0, 1, 2, 3, 4) if strip.shape[-1] >= FEW_CHANNELS else (0, 1, 4, 2, 3)
    return with_layout_constraint(strip, Layout(order))
