"""JAX's older attention kernel for TPUs, flash attention: forward only, to compare with. Shapes as in `nn.flash`."""

import jax
from jax.experimental.pallas.ops.tpu import flash_attention as kernels

from cogvx_jax.nn.splash import pad, padded_blocks, segment_ids, without_keyless, zeroed


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: tuple[jax.Array, jax.Array] | None,
    *,
    scale: float,
    length: int,
) -> jax.Array:
    """softmax(scale * q k^T) v over the first `length` keys, (B, A, S, K); arguments as for `nn.flash`."""
    queries = q.shape[2]
    (padded_q, block_q), (padded_kv, block_kv) = padded_blocks(queries), padded_blocks(k.shape[2])
    ids = segment_ids(q, k, segments, length, padded_q, padded_kv)
    y = kernels.flash_attention(
        pad((q * scale).astype(k.dtype), padded_q, 2),
        *(pad(zeroed(x, length), padded_kv, 2) for x in (k, v)),
        segment_ids=None if ids is None else kernels.SegmentIds(*ids),
        block_sizes=kernels.BlockSizes(block_q=block_q, block_k_major=block_kv, block_k=block_kv, block_b=1),
    )
    return without_keyless(y[:, :, :queries], segments, length)
