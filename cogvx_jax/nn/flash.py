"""A TPU kernel for softmax attention, full and bidirectional.

Shapes: B batch, A heads, S queries, T keys, K head width. Inside, sequences are minor, (B, A, K, S):
64 numbers across would fill half of a register and of every tile in memory.

The kernel computes transposed scores, S^T = K Q^T, block by block: each query is then a lane, its sum
runs over sublanes, which costs additions only, and the weights come out as the product with v wants
them. Where a bound on the logits is known nothing is subtracted before the exponential, so there is no
running maximum, nothing to rescale. `docs/performance.md` has its static cost beside that of others.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from cogvx_jax.chips import Chip, chip_of
from cogvx_jax.nn import splash

LANES = 128
NOTHING = -0.7 * float(np.finfo(np.float32).max)  # a logit that no sum notices; differences stay finite
# Weights that nothing was subtracted from, times values up to 2^10, are summed over T keys in float32,
# which ends at 2^127.
VALUE_BITS = 10


class Blocks(NamedTuple):
    """Tokens per step of the kernel, all multiples of 128."""

    q: int
    kv: int
    compute: int  # keys whose scores exist at a time


# Chips without a row in `cogvx_jax.chips`; all of them with a running maximum, for which the row's blocks hold much.
DEFAULT = Blocks(2048, 2048, 512)
FLOAT32 = Blocks(1024, 2048, 512)  # fit everywhere

Ids = jax.Array | None


def flash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float,
    max_logit: float | None = None,
    segments: jax.Array | tuple[jax.Array, jax.Array] | None = None,
    kv_length: int | None = None,
    int8: bool = False,
    blocks: Blocks | None = None,
    interpret: bool = False,
) -> jax.Array:
    """softmax(scale * q k^T) v by the kernel; see `cogvx_jax.nn.attention.attention` for the arguments.

    Products take their operands as they come (bfloat16, or float32 at jax's default precision) and add
    up in float32. Under differentiation, both passes are those of `nn.splash`. On a mesh, call it
    under `shard_map`.

    Args:
      q: (B, A, S, K). k, v: (B, A, T, K). bfloat16 or float32; float16 is computed as float32.
      max_logit: no |scale * q k| is above it, or None. If small enough (`needs_maximum`) the running
        maximum is left out. Too small a bound gives infinities.
      segments: (B, S) integers if S = T, or a pair (B, S), (B, T).
      kv_length: only the first so many keys exist; None is T.
      int8: scores are products of integers, see `integer_operands`; under differentiation they are not.
      blocks: of the kernel; None is those found for the device that the program is traced for.
      interpret: run on any device, slowly, for tests.
    Returns: (B, A, S, K), of the type of `v`; 0 where a query's segment has no key.
    """
    if segments is not None and not isinstance(segments, tuple):
        segments = (segments, segments)
    length = k.shape[2] if kv_length is None else kv_length
    if not 0 < length <= k.shape[2]:
        raise ValueError(f"kv_length must be in 1..{k.shape[2]}, got {length}")
    if int8 and max_logit is not None:
        max_logit = integer_bound(max_logit, q.shape[3])
    maximum = needs_maximum(max_logit, length)
    if blocks is None:
        blocks = default_blocks(maximum, int8) if v.dtype == jnp.bfloat16 else FLOAT32
    options = _Options(
        scale=scale,
        length=length,
        maximum=maximum,
        int8=int8,
        blocks=fit_blocks(blocks, q.shape[2], length),
        interpret=interpret,
    )
    if v.dtype == jnp.float16:  # the weights, up to e^max_logit, would overflow; and TPUs have no float16
        return _attend(*(x.astype(jnp.float32) for x in (q, k, v)), segments, options).astype(v.dtype)
    return _attend(q, k, v, segments, options)


def needs_maximum(max_logit: float | None, keys: int) -> bool:
    """Whether sums of e^logit times values over so many keys could leave float32."""
    return max_logit is None or max_logit * math.log2(math.e) + math.log2(keys) + VALUE_BITS > 127


def default_blocks(maximum: bool, int8: bool = False) -> Blocks:
    """Those of the chip that the current mesh (`jax.set_mesh`) is of, else of the default device."""
    if maximum:
        return DEFAULT
    chip = current_chip()
    found = None if chip is None else int8 and chip.int8_blocks or chip.blocks
    return DEFAULT if found is None else Blocks(*found)


def current_chip() -> Chip | None:
    """That of the current mesh (`jax.set_mesh`), else of the default device; None where it has no row."""
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    return chip_of(device.device_kind)


class _Options(NamedTuple):
    scale: float
    length: int  # keys that exist
    maximum: bool  # keep a running maximum
    int8: bool  # scores of integers
    blocks: Blocks
    interpret: bool


def fit_blocks(blocks: Blocks, queries: int, keys: int) -> Blocks:
    """No block larger than needed; and the queries spread evenly, as the last block costs a whole one."""
    if any(size <= 0 or size % LANES for size in blocks):
        raise ValueError(f"blocks must be multiples of {LANES}, got {tuple(blocks)}")
    q = _round_up(pl.cdiv(queries, pl.cdiv(queries, blocks.q)))
    kv = min(blocks.kv, _round_up(keys))
    return Blocks(q, kv, min(blocks.compute, kv))


def _round_up(tokens: int) -> int:
    return pl.cdiv(tokens, LANES) * LANES


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, segments, options):
    q, k, v = (jnp.swapaxes(x, 2, 3) for x in (q, k, v))
    scale = None
    if options.int8:
        q, k, scale = integer_operands(q, k, options.length)
        scale = scale * _scale(options)
    return jnp.swapaxes(_forward(q, k, v, scale, segments, options), 2, 3)


def integer_operands(q: jax.Array, k: jax.Array, length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q (B, A, K, S) and k (B, A, K, T) as int8, and a scale (B, A, 1, S) of each query's scores.

    A query has a scale of its own, all keys of a head one: it costs the kernel nothing, and normed keys are nearly of
    one length. The mean of the `length` keys that exist is taken out first: that adds one number to all scores of a
    query, which changes no softmax, and what all keys have in common takes no room among the integers.
    Source: Zhang et al. 2024 (SageAttention), arXiv:2410.02367, section 4.
    """
    q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    exist = (jnp.arange(k.shape[3]) < length)[None, None, None]
    k = jnp.where(exist, k, 0)
    k = jnp.where(exist, k - jnp.sum(k, axis=3, keepdims=True) / length, 0)
    largest_q = jnp.max(jnp.abs(q), axis=2, keepdims=True)
    largest_k = jnp.max(jnp.abs(k), axis=(2, 3), keepdims=True)
    q8, k8 = (
        jnp.round(x * jnp.where(largest > 0, 127 / largest, 0)).astype(jnp.int8)
        for x, largest in ((q, largest_q), (k, largest_k))
    )
    return q8, k8, largest_q * largest_k / 127**2


def integer_bound(max_logit: float, width: int) -> float:
    """The bound on logits of `integer_operands`, by that on logits of heads of `width`.

    Without their mean keys are at most twice as long as the longest. Rounding moves each of `width` numbers by at most
    1 / 254 of the largest, which is no larger than the vector is long.
    """
    return 2 * max_logit * (1 + math.sqrt(width) / 254) ** 2


def _attend_forward(q, k, v, segments, options):
    # Another kernel, that has a backward pass.
    run = functools.partial(splash.attend, scale=options.scale, length=options.length, interpret=options.interpret)
    return jax.vjp(lambda q, k, v: run(q, k, v, segments), q, k, v)


def _forward(q, k, v, query_scale, segments, options):
    """q (B, A, K, S), k, v (B, A, K, T) -> (B, A, K, S); with integers, `query_scale` (B, A, 1, S) of their scores."""
    batch, heads, width, queries = q.shape
    length, blocks = options.length, options.blocks
    specs = [
        pl.BlockSpec((None, None, width, blocks.q), lambda b, a, i, j: (b, a, 0, i)),
        pl.BlockSpec((None, None, width, blocks.kv), lambda b, a, i, j: (b, a, 0, j)),
        pl.BlockSpec((None, None, width, blocks.kv), lambda b, a, i, j: (b, a, 0, j)),
    ]
    ids = []
    if query_scale is not None:
        ids = [query_scale]
        specs.append(pl.BlockSpec((None, None, 1, blocks.q), lambda b, a, i, j: (b, a, 0, i)))
    if segments is not None:
        ids += [x.astype(jnp.int32)[:, None] for x in segments]  # (B, 1, S), (B, 1, T)
        specs += [
            pl.BlockSpec((None, 1, blocks.q), lambda b, a, i, j: (b, 0, i)),
            pl.BlockSpec((None, 1, blocks.kv), lambda b, a, i, j: (b, 0, j)),
        ]
    scratch = [pltpu.VMEM((width, blocks.q), jnp.float32), pltpu.VMEM((8, blocks.q), jnp.float32)]
    folded = 2 * width <= LANES and not options.int8
    if folded:
        scratch.append(pltpu.VMEM((2 * width, blocks.q), q.dtype))
    if options.maximum:
        scratch.append(pltpu.VMEM((1, blocks.q), jnp.float32))
    scores = batch * heads * queries * length
    return pl.pallas_call(
        functools.partial(_kernel, options=options, segmented=segments is not None, folded=folded),
        grid=(batch, heads, pl.cdiv(queries, blocks.q), pl.cdiv(length, blocks.kv)),
        in_specs=specs,
        out_specs=specs[0],
        out_shape=jax.ShapeDtypeStruct(q.shape, v.dtype),
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
        ),
        cost_estimate=pl.CostEstimate(
            flops=4 * scores * width,
            transcendentals=scores,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (q, k, v, *ids)) + q.size * v.dtype.itemsize,
        ),
        interpret=options.interpret,
        name="flash_attention_int8" if options.int8 else "flash_attention",
    )(q, k, v, *ids)


def _scale(options: _Options) -> float:
    """Of scores whose exponential is taken to the base of 2."""
    return options.scale * math.log2(math.e)


def _kernel(q_ref, k_ref, v_ref, *refs, options, segmented, folded):
    """One block of queries, q (K, q), against one of keys, k and v (K, kv).

    With `options.int8` q and k are integers, and the first of `refs` (1, q) takes the place of the scale.

    `folded`: the scale of the scores is multiplied into the queries. A matrix unit sums 128 numbers at a time. With
    narrow heads there is room for the scaled queries and, below them, for their rounding errors.
    """
    query_scale, refs = (refs[0][...], refs[1:]) if options.int8 else (None, refs)
    q_ids, kv_ids = refs[:2] if segmented else (None, None)
    o_ref, acc_ref, sum_ref, *refs = refs[2 * segmented :]
    folded_ref, max_ref = (refs[0], refs[1:]) if folded else (None, refs)
    block, step, width = options.blocks.kv, options.blocks.compute, q_ref.shape[0]
    scale = _scale(options)
    j, last = pl.program_id(3), pl.num_programs(3) - 1

    @pl.when(j == 0)
    def _():
        if folded:
            q = q_ref[...].astype(jnp.float32) * scale
            rounded = q.astype(folded_ref.dtype)
            folded_ref[:width] = rounded
            folded_ref[width:] = (q - rounded.astype(jnp.float32)).astype(folded_ref.dtype)
        acc_ref[...] = jnp.zeros_like(acc_ref)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        for ref in max_ref:
            ref[...] = jnp.full_like(ref, NOTHING)

    def part(start, size, exist):
        """`size` keys of the block, of which the first `exist` exist; both static."""
        k, v = k_ref[:, pl.ds(start, size)], v_ref[:, pl.ds(start, size)]
        if folded:
            k, q = jnp.concatenate([k, k]), folded_ref[...]
        else:
            q = q_ref[...]
        kind = jnp.int32 if options.int8 else jnp.float32
        s = jax.lax.dot_general(k, q, (((0,), (0,)), ((), ())), preferred_element_type=kind)  # (size, q)
        if query_scale is not None:
            s = s.astype(jnp.float32) * query_scale
        elif not folded:
            s = s * scale
        keep = None
        if segmented:
            column = jnp.broadcast_to(kv_ids[:, pl.ds(start, size)], (8, size)).T[:, :1]
            keep = column == q_ids[...]
        if exist < size:
            # Past the end lies anything, NaN too: not even a weight of 0 may meet it.
            rows = jax.lax.broadcasted_iota(jnp.int32, s.shape, 0) < exist
            keep = rows if keep is None else keep & rows
            v = jnp.where(jax.lax.broadcasted_iota(jnp.int32, v.shape, 1) < exist, v, jnp.zeros_like(v))
        if options.maximum:
            (ref,) = max_ref
            if keep is not None:
                s = jnp.where(keep, s, NOTHING)
            before = ref[...]
            m = jnp.maximum(before, jnp.max(s, axis=0, keepdims=True))
            # Before a query's first key of its segment m is NOTHING and p is 1: `decay` then takes it back.
            p, decay = jnp.exp2(s - m), jnp.exp2(before - m)
            ref[...] = m
            sum_ref[...] *= decay
            acc_ref[...] *= decay
        else:
            p = jnp.exp2(s)
            if keep is not None:
                p = jnp.where(keep, p, 0)
        sum_ref[...] += jnp.sum(p.reshape(size // 8, 8, p.shape[1]), axis=0)
        acc_ref[...] += jnp.dot(v, p.astype(v.dtype), preferred_element_type=jnp.float32)

    def keys(exist):
        for start in range(0, exist, step):
            here = min(step, exist - start)
            part(start, _round_up(here), here)

    tail = options.length % block
    if tail == 0:
        keys(block)
    else:
        pl.when(j < last)(lambda: keys(block))
        pl.when(j == last)(lambda: keys(tail))

    @pl.when(j == last)
    def _():
        total = jnp.sum(sum_ref[...], axis=0, keepdims=True)
        y = acc_ref[...] / total
        if segmented:
            found = max_ref[0][...] > NOTHING if options.maximum else total > 0
            y = jnp.where(found, y, 0)
        o_ref[...] = y.astype(o_ref.dtype)


def _attend_backward(options, pull, dy):
    return *pull(dy), None


_attend.defvjp(_attend_forward, _attend_backward)
