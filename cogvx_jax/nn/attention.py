"""Softmax attention, full and bidirectional. Shapes: B batch, A heads, S tokens, K head width."""

import jax
import jax.numpy as jnp

from cogvx_jax.nn.backend import formulations

CHUNK = 1024  # queries at a time: with one head, their scores then stay in the cache of a CPU


def attention(q: jax.Array, k: jax.Array, v: jax.Array, *, scale: float, bias: jax.Array | None = None) -> jax.Array:
    """softmax(scale * q k^T + bias) v; logits and softmax in float32.

    Args:
      q, k, v: (B, A, S, K).
      bias: None or (A, S, S), added to the logits.
    Returns: (B, A, S, K), of the type of `v`.
    """
    choice = formulations().attention
    if choice == "plain" or q.shape[2] <= CHUNK:
        return _rows(q, k, v, scale, bias)
    if choice == "chunked":
        return _chunked(q, k, v, scale, bias)

    # "by_head": a loop over B, in it one over A. All of the batch has the same bias.
    def item(qkv):
        return jax.lax.map(lambda head: _chunked(*head[:3], scale, head[3]), (*qkv, bias))

    return jax.lax.map(item, (q, k, v))


def _chunked(q, k, v, scale, bias):
    """`_rows`, CHUNK queries at a time: q, k, v (..., S, K), bias None or (..., S, S)."""
    tokens = q.shape[-2]
    whole = tokens - tokens % CHUNK

    def split(x):  # (..., S, n) -> (chunks, ..., CHUNK, n)
        x = x[..., :whole, :]
        return jnp.moveaxis(x.reshape(*x.shape[:-2], -1, CHUNK, x.shape[-1]), -3, 0)

    rows = (split(q), None if bias is None else split(bias))
    y = jax.lax.map(lambda x: _rows(x[0], k, v, scale, x[1]), rows)
    y = jnp.moveaxis(y, 0, -3).reshape(*q.shape[:-2], whole, v.shape[-1])
    if whole == tokens:
        return y
    tail = _rows(q[..., whole:, :], k, v, scale, None if bias is None else bias[..., whole:, :])
    return jnp.concatenate([y, tail], axis=-2)


def _rows(q, k, v, scale, bias):
    logits = jnp.einsum("...qk,...sk->...qs", q * scale, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias
    # Normalised after the product with v: K numbers a row are divided instead of S.
    weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    y = jnp.einsum("...qs,...sk->...qk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (y / total).astype(v.dtype)
