"""JAX's splash attention, for TPUs: its backward pass is kernels, too, so gradients are taken of it.

Shapes as in `nn.flash`, whose kernel is faster, but goes forward only.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from cogvx_jax.nn.remat import PRODUCT

LANES = 128
BLOCKS = range(512, 1024 + 1, LANES)  # tokens at a time; larger ones leave no memory for the backward pass
NO_KEY = np.iinfo(np.int32).min  # the segment of keys that do not exist


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: tuple[jax.Array, jax.Array] | None,
    *,
    scale: float,
    length: int,
    interpret: bool = False,
) -> jax.Array:
    """softmax(scale * q k^T) v over the first `length` keys, (B, A, S, K); arguments as for `nn.flash`.

    The pass forward keeps its result and a number a query, which `nn.remat` saves with the products.
    """
    queries, keys = q.shape[2], k.shape[2]
    (padded_q, block_q), (padded_kv, block_kv) = padded_blocks(queries), padded_blocks(keys)
    kernel = kernels.make_splash_mha_single_device(
        masks.MultiHeadMask([masks.FullMask((padded_q, padded_kv))] * q.shape[1]),
        block_sizes=kernels.BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_kv_compute=block_kv,
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            block_kv_dkv_compute=block_kv,
            block_q_dq=block_q,
            block_kv_dq=block_kv,
        ),
        residual_checkpoint_name=PRODUCT,
        interpret=interpret,
    )
    pair = segment_ids(q, k, segments, length, padded_q, padded_kv)
    ids = None if pair is None else kernels.SegmentIds(*pair)
    run = jax.vmap(kernel, in_axes=(0, 0, 0, None if ids is None else 0))
    # What stands at queries that are padding is dropped below, so that its gradient is 0.
    q, k, v = pad(q * scale, padded_q, 2), *(pad(zeroed(x, length), padded_kv, 2) for x in (k, v))
    return without_keyless(run(q.astype(k.dtype), k, v, ids)[:, :, :queries], segments, length)


def padded_blocks(tokens: int) -> tuple[int, int]:
    """To how many tokens to pad, and in blocks of how many: with the least padding, then the largest blocks."""
    if tokens <= BLOCKS[0]:
        block = math.ceil(tokens / LANES) * LANES
        return block, block
    padded, block = min((math.ceil(tokens / block) * block, -block) for block in BLOCKS)
    return padded, -block


def segment_ids(
    q: jax.Array,
    k: jax.Array,
    segments: tuple[jax.Array, jax.Array] | None,
    length: int,
    padded_q: int,
    padded_kv: int,
) -> tuple[jax.Array, jax.Array] | None:
    """Segment ids that hide other segments and padding: (B, padded_q), (B, padded_kv), or None if nothing is hidden."""
    if segments is None and length == padded_kv:
        return None
    queries, keys = q.shape[2], k.shape[2]
    ours, theirs = segments or (jnp.zeros((len(q), n), jnp.int32) for n in (queries, keys))
    exist = jnp.where(jnp.arange(keys) < length, theirs, NO_KEY)
    return pad(ours, padded_q, 1), pad(exist, padded_kv, 1, NO_KEY)


def without_keyless(y: jax.Array, segments: tuple[jax.Array, jax.Array] | None, length: int) -> jax.Array:
    """0 for queries without a key, to which JAX's kernels give the mean of all values."""
    if segments is None:
        return y
    ours, theirs = segments
    found = jnp.any(ours[:, :, None] == theirs[:, None, :length], axis=-1)
    return jnp.where(found[:, None, :, None], y, 0)


def pad(x: jax.Array, length: int, axis: int, value: int = 0) -> jax.Array:
    return jnp.pad(x, [(0, length - n if i == axis else 0) for i, n in enumerate(x.shape)], constant_values=value)


def zeroed(x: jax.Array, length: int) -> jax.Array:
    """Zeros from `length` on: a weight of 0 times a NaN would be a NaN."""
    return jnp.where((jnp.arange(x.shape[2]) < length)[:, None], x, 0)
