"""Softmax attention, full and bidirectional. Shapes: B batch, A heads, S tokens, K head width."""

import jax
import jax.numpy as jnp

from cogvx_jax.nn.backend import formulations

CHUNK = 1024  # queries at a time; the score matrix then stays in the cache of a CPU


def attention(q: jax.Array, k: jax.Array, v: jax.Array, *, scale: float, bias: jax.Array | None = None) -> jax.Array:
    """softmax(scale * q k^T + bias) v; logits and softmax in float32.

    Args:
      q, k, v: (B, A, S, K).
      bias: None or (A, S, S), added to the logits.
    Returns: (B, A, S, K), of the type of `v`.
    """
    if formulations().attention == "plain" or q.shape[2] <= CHUNK:
        return _rows(q, k, v, scale, bias)
    chunks = q.shape[2] // CHUNK

    def chunk(i):
        rows = jax.lax.dynamic_slice_in_dim(q, i * CHUNK, CHUNK, axis=2)
        part = None if bias is None else jax.lax.dynamic_slice_in_dim(bias, i * CHUNK, CHUNK, axis=1)
        return _rows(rows, k, v, scale, part)

    y = jax.lax.map(chunk, jnp.arange(chunks))  # (chunks, B, A, CHUNK, K)
    y = jnp.moveaxis(y, 0, 2).reshape(*q.shape[:2], chunks * CHUNK, v.shape[-1])
    done = chunks * CHUNK
    if done == q.shape[2]:
        return y
    tail = _rows(q[:, :, done:], k, v, scale, None if bias is None else bias[:, done:])
    return jnp.concatenate([y, tail], axis=2)


def _rows(q, k, v, scale, bias):
    logits = jnp.einsum("baqk,bask->baqs", q * scale, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias
    # Normalised after the product with v: K numbers a row are divided instead of S.
    weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    y = jnp.einsum("baqs,bask->baqk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (y / total).astype(v.dtype)
