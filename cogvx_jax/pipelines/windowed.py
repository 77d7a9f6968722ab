"""The denoiser over windows of a clip or a picture, (weights, latents, text, t, *beside) -> v, one after the other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cogvx_jax.diffusion.places import Places
from cogvx_jax.diffusion.windows import Laid
from cogvx_jax.sharding import everywhere

Velocity = Callable[..., jax.Array]  # of (weights, x, text, t), and arrays of the clip's frames beside x


def over_windows(velocity: Velocity, windows: Laid | None, channels: int, mesh: Mesh | None) -> Velocity:
    """A denoiser whose v is the mean of all windows that a latent is in; of no windows, the one that is given.

    Memory beside the latents is that of one window: they are computed one after the other.

    Args:
      velocity: of latents (B, S, h, w, C + E), float32, and of what lies beside them, (B, S, ...), as control latents.
      windows: of one step, whose numbers may be traced. With `prompts`, text is (B, K, L, D), of K prompts each.
      channels: C; those after them are the condition.
    """
    if windows is None:
        return velocity

    def predict(weights: Any, x: jax.Array, text: jax.Array, t: jax.Array, *beside: jax.Array) -> jax.Array:
        def add(i: jax.Array, total: jax.Array) -> jax.Array:
            at = windows.latents[i]
            part = _with_first(jnp.take(x, at, axis=1), x, windows.first, channels)
            words = text if windows.prompts is None else mixed(text, windows.prompts[i])
            v = velocity(weights, part, words, t, *(jnp.take(one, at, axis=1) for one in beside))
            return _placed(total.at[:, at].add(v), mesh)

        start = _placed(jnp.zeros((*x.shape[:-1], channels), jnp.float32), mesh)
        total = jax.lax.fori_loop(0, windows.count, add, start)
        return total / windows.times[None, :, None, None, None]

    return predict


def over_places(velocity: Velocity, places: Places | None, channels: int, mesh: Mesh | None) -> Velocity:
    """A denoiser whose v is the weighted mean of all windows of the picture; arguments as for `over_windows`.

    What lies beside x has its height and width: (B, S, h, w, E).
    """
    if places is None:
        return velocity
    size = places.ramp.shape
    corners, ramp, summed = (jnp.asarray(one) for one in places)

    def cut(y: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(y, (0, 0, corner[0], corner[1], 0), (*y.shape[:2], *size, y.shape[4]))

    def predict(weights: Any, x: jax.Array, text: jax.Array, t: jax.Array, *beside: jax.Array) -> jax.Array:
        def add(i: jax.Array, total: jax.Array) -> jax.Array:
            corner = corners[i]
            v = velocity(weights, cut(x, corner), text, t, *(cut(one, corner) for one in beside))
            more = cut(total, corner) + v * ramp[None, None, :, :, None]
            return _placed(jax.lax.dynamic_update_slice(total, more, (0, 0, corner[0], corner[1], 0)), mesh)

        start = _placed(jnp.zeros((*x.shape[:-1], channels), jnp.float32), mesh)
        return jax.lax.fori_loop(0, len(corners), add, start) / summed[None, None, :, :, None]

    return predict


def mixed(text: jax.Array, shares: jax.Array) -> jax.Array:
    """Text states (B, K, L, D) of K prompts as those of one, (B, L, D), by their shares (K,)."""
    # Barriers: merged with what surrounds it, a mesh would round it in another way.
    text, shares = jax.lax.optimization_barrier((text, shares))
    sums = jnp.sum(text.astype(jnp.float32) * shares[None, :, None, None], axis=1)
    return jax.lax.optimization_barrier(sums.astype(text.dtype))


def _with_first(part: jax.Array, x: jax.Array, first: jax.Array, channels: int) -> jax.Array:
    """A window whose first latent has the condition of the clip's first one, where all windows are to have that.

    A model that is told a first picture takes any window for a clip that begins with it.
    """
    if x.shape[-1] == channels:
        return part
    condition = jnp.where(first, x[:, :1, ..., channels:], part[:, :1, ..., channels:])
    return part.at[:, :1, ..., channels:].set(condition)


def _placed(total: jax.Array, mesh: Mesh | None) -> jax.Array:
    return total if mesh is None else jax.lax.with_sharding_constraint(total, everywhere(mesh))
