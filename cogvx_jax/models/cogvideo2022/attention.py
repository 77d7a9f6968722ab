"""Softmax over several sets of keys at once, such as those of the text and those of the frames.

Letters: B sequences, S queries, T keys, A heads, K head width; any axes may lie before S.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

HIDDEN = -1e9  # added to the scores of what is not seen; float32 gives it a weight of exactly 0


class Seen(NamedTuple):
    """A set of keys, and what is added to their scores."""

    k: jax.Array  # (..., T, A, K); axes before T are those of the queries, or 1
    v: jax.Array  # the same
    bias: jax.Array | np.ndarray  # (..., S or 1, T), float32, for all heads


def attend(q: jax.Array, *sets: Seen) -> jax.Array:
    """(..., S, A, K) -> (..., S, A, K): one softmax over the keys of all sets, computed in float32."""
    scale = q.shape[-1] ** -0.5
    scores = [_scores(q, keys, scale) for keys in sets]
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(q.dtype)
    ends = np.cumsum([keys.k.shape[-3] for keys in sets])[:-1]
    parts = jnp.split(weights, list(ends), axis=-1)
    sums = (jnp.einsum("...ast,...tak->...sak", w, keys.v) for w, keys in zip(parts, sets, strict=True))
    return sum(sums, start=jnp.zeros((), q.dtype))


def hidden_where(seen: np.ndarray | jax.Array) -> jax.Array:
    """A bias of 0 where something is seen, else `HIDDEN`."""
    return jnp.where(seen, 0.0, HIDDEN).astype(jnp.float32)


def _scores(q: jax.Array, keys: Seen, scale: float) -> jax.Array:
    """(..., A, S, T) float32."""
    scores = jnp.einsum("...sak,...tak->...ast", q, keys.k, preferred_element_type=jnp.float32) * scale
    return scores + jax.lax.broadcast_to_rank(jnp.asarray(keys.bias)[..., None, :, :], scores.ndim)
