"""RIFE in strips of rows, for pictures of which the whole takes too much memory: the same numbers.

Whole are only what the steps found, at their own sizes, and what lies between their convolutions. Flow, mask and warped
pictures of full size are made for the rows at hand, and again for those that follow.

Shapes: H W pixels of the pictures, h w of a step, which sees one pixel for `scale` of theirs each way; C channels.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cogvx_jax.models.rife import QUARTER, RIFE, FlowStep, joined, look_up, seen_both_ways
from cogvx_jax.nn.pixels import as_unit
from cogvx_jax.nn.resize import sample_linear
from cogvx_jax.nn.rows import over_rows

ROWS = 128  # of full size in a strip, or `RIFE.multiple` where that is more


def middle_in_strips(network: RIFE, params: Any, first: jax.Array, second: jax.Array) -> jax.Array:
    """The picture in the middle of two, (H, W, 3) each, uint16 or float in [0, 1] -> float32 in [0, 1].

    Sides need not be multiples of `network.multiple`: beyond a border lie the pixels on it, as if padded with them.
    """
    height, width = first.shape[:2]
    padded = [-(-side // network.multiple) * network.multiple for side in (height, width)]
    rows = max(ROWS // network.multiple, 1) * network.multiple
    known = _Known((first, second), ())
    for i, scale in enumerate(network.scales):
        step = FlowStep(network.width, network.dtype).bind({"params": params[f"block{i}"]})
        known = known._replace(changes=(*known.changes, _change(step, known, scale, padded, rows)))

    def blended(start: jax.Array) -> jax.Array:
        flow, mask, warped = known.at(start + np.arange(min(rows, height)), np.arange(width), padded)
        part = jax.nn.sigmoid(mask)
        return warped[0] * part + warped[1] * (1 - part)

    return over_rows(blended, height, rows)


class _Known(NamedTuple):
    """What the steps so far are made of.

    changes: of each step (h, w, 5): flow and mask in pixels of full size.
    """

    pictures: tuple[jax.Array, jax.Array]
    changes: tuple[jax.Array, ...]

    def at(self, rows: Any, columns: Any, size: Any) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
        """Flow (r, c, 4), mask (r, c, 1) and both pictures warped (r, c, 3) at these pixels of a picture of `size`."""
        total = jnp.zeros((len(rows), len(columns), 5))
        for change in self.changes:
            for axis, (places, whole) in enumerate(zip((rows, columns), size, strict=True)):
                change = sample_linear(change, axis, (places + 0.5) * (change.shape[axis] / whole) - 0.5)
            total = total + change
        look = functools.partial(_looked_up, rows=rows, columns=columns, size=size, still=not self.changes)
        warped = [look(x, total[..., 2 * i : 2 * i + 2]) for i, x in enumerate(self.pictures)]
        return total[..., :4], total[..., 4:], warped


def _looked_up(picture: jax.Array, flow: jax.Array, rows: Any, columns: Any, size: Any, still: bool) -> jax.Array:
    """Pixels of a picture where the flow points; `still`: where they are."""
    last = [side - 1 for side in picture.shape[:2]]  # those beyond are the border's

    def look(row: jax.Array, column: jax.Array) -> jax.Array:
        return as_unit(picture[jnp.clip(row, 0, last[0]), jnp.clip(column, 0, last[1])])

    if still:
        return look(rows[:, None], columns[None])
    return look_up(look, rows[:, None] + flow[..., 1], columns[None] + flow[..., 0], size)


def _change(step: FlowStep, known: _Known, scale: int, size: Any, rows: int) -> jax.Array:
    """What a step finds, (h, w, 5), in pixels of full size."""
    h, w = (side // scale for side in size)

    def down(start: jax.Array) -> jax.Array:
        """A strip of (2, h / 4, w / 4, C), made of a quarter row more, whose own beginning is wrong."""
        first = start // scale - QUARTER
        numbers = first + np.arange(min(rows, size[0]) // scale + QUARTER)
        seen = seen_both_ways(*_small(known, jnp.maximum(numbers, 0), w, scale, size))
        seen = jnp.where((numbers >= 0)[None, :, None, None], seen, 0)
        halves = first // 2 + np.arange(len(numbers) // 2) >= 0
        return step.down(seen, halves[None, :, None, None])[:, 1:]

    y = over_rows(down, size[0], rows, axis=1)
    y = jax.lax.fori_loop(0, 2, lambda way, y: y.at[way].set(step.residual(y[way][None])[0]), y)

    def heads(start: jax.Array) -> jax.Array:
        """A strip of (h, w, 5), made of a row of `y` more at either end."""
        numbers = start // (QUARTER * scale) + np.arange(-1, min(rows, size[0]) // (QUARTER * scale) + 1)
        inside = (numbers >= 0) & (numbers < y.shape[1])
        part = jnp.where(inside[None, :, None, None], y[:, jnp.clip(numbers, 0, y.shape[1] - 1)], 0)
        change, gain = joined(*step.heads(part, jnp.repeat(inside, 2)[None, :, None, None]))
        return jnp.concatenate([change * scale, gain], axis=-1)[0, QUARTER:-QUARTER]

    return over_rows(heads, size[0], rows)


def _small(known: _Known, rows: Any, width: int, scale: int, size: Any) -> tuple[jax.Array, ...]:
    """What a step sees (1, r, w, C): both pictures as they are warped so far, mask, flow.

    Each is the mean of the two middle pixels each way, for an even scale.
    """
    middle = np.arange(scale // 2 - 1, scale // 2 + 1) if scale > 1 else np.zeros(1, int)
    looked, across = ((x[:, None] * scale + middle[None]).reshape(-1) for x in (rows, np.arange(width)))
    flow, mask, warped = known.at(looked, across, size)
    n = len(middle)
    small = (x.reshape(len(rows), n, width, n, -1).mean((1, 3))[None] for x in (*warped, mask, flow / scale))
    return tuple(small)
