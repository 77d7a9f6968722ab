"""Which pixels of a clip an inpainting model is to make: masks that are drawn anew for every clip of a batch.

A kind of mask is a row of `settings.MASKS` and a function of `DRAW`: (key, (F, H, W)) -> (F, H, W) bool.

Source: `get_random_mask` of CogVideoX-Fun.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cogvx_jax.train.transformer.settings import MASKS

Shape = tuple[int, int, int]
MOST_KNOWN = 4  # frames at an end


def draw_masks(key: jax.Array, count: int, shape: Shape, kinds: Sequence[str]) -> jax.Array:
    """Masks (count, F, H, W) bool of these kinds, in their shares; where none is for clips of one frame, all of it."""
    shares = {kind: MASKS[kind].pictures if shape[0] == 1 else MASKS[kind].clips for kind in kinds}
    shares = {kind: share for kind, share in shares.items() if share} or {"all": 1.0}
    drawn, weights = [DRAW[kind] for kind in shares], np.array([*shares.values()])

    def draw(key: jax.Array) -> jax.Array:
        which, how = jax.random.split(key)
        kind = jax.random.choice(which, len(drawn), p=jnp.asarray(weights / weights.sum(), jnp.float32))
        return jnp.stack([one(how, shape) for one in drawn])[kind]

    return jax.vmap(draw)(jax.random.split(key, count))


def everything(key: jax.Array, shape: Shape) -> jax.Array:
    return jnp.ones(shape, bool)


def after_first(key: jax.Array, shape: Shape) -> jax.Array:
    """All but the first frames, 1 to 4 of them."""
    return _over(jnp.arange(shape[0]) >= _known(key, shape[0] - 1), shape)


def between_ends(key: jax.Array, shape: Shape) -> jax.Array:
    """All but as many of the first frames as of the last, 1 to 4 of each."""
    known, frames = _known(key, (shape[0] - 1) // 2), jnp.arange(shape[0])
    return _over((frames >= known) & (frames < shape[0] - known), shape)


def block(key: jax.Array, shape: Shape) -> jax.Array:
    """A rectangle in all frames, a quarter to three quarters as high and as wide; at the edge what is left of it."""
    _, height, width = shape
    rows, columns = (_side(k, size) for k, size in zip(jax.random.split(key), (height, width), strict=True))
    return jnp.broadcast_to(rows[:, None] & columns[None], shape)


def block_in_time(key: jax.Array, shape: Shape) -> jax.Array:
    """The same from some frame of the first half to one of the second."""
    where, start, stop = jax.random.split(key, 3)
    half, frames = shape[0] // 2, jnp.arange(shape[0])
    first = jax.random.randint(start, (), 0, max(half, 1))
    last = jax.random.randint(stop, (), half, max(shape[0], half + 1))
    return block(where, shape) & _over((frames >= first) & (frames < last), shape)


def _over(frames: jax.Array, shape: Shape) -> jax.Array:
    """Whole frames, (F,) bool, as a mask."""
    return jnp.broadcast_to(frames[:, None, None], shape)


def _known(key: jax.Array, most: int) -> jax.Array:
    """How many frames of an end are known: short clips keep one to make."""
    return jax.random.randint(key, (), 1, max(min(MOST_KNOWN, most), 1) + 1)


def _side(key: jax.Array, size: int) -> jax.Array:
    """The rows, or columns, of a block: (size,) bool."""
    middle, extent = jax.random.split(key)
    centre = jax.random.randint(middle, (), 0, size)
    half = jax.random.randint(extent, (), size // 4, max(size // 4 * 3, size // 4 + 1)) // 2
    places = jnp.arange(size)
    return (places >= centre - half) & (places < centre + half)


DRAW: Mapping[str, Callable[[jax.Array, Shape], jax.Array]] = {
    "all": everything,
    "first": after_first,
    "first-last": between_ends,
    "block": block,
    "block-in-time": block_in_time,
}
