"""Softmax attention, full and bidirectional: one function, several backends, chosen in `nn.backend`.

Shapes: B batch, A heads, S queries, T keys (as many as queries, unless keys were gathered over a mesh),
K head width.

BACKENDS says what each of them takes; the rest falls to "chunked". A new backend is a row of it. None is
partitioned by XLA along the sequence: on a mesh that shards it, call `attention` under `shard_map`.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from cogvx_jax.nn import flash, jax_flash, splash
from cogvx_jax.nn.backend import formulations
from cogvx_jax.nn.remat import product

CHUNK = 1024  # queries at a time: with one head, their scores then stay in the cache of a CPU
ROUNDING = 1.02  # of normed queries and keys: bfloat16 keeps 8 bits, rotation rounds again

Segments = jax.Array | tuple[jax.Array, jax.Array] | None


class Options(NamedTuple):
    """The arguments of `attention` beside q, k and v, checked."""

    scale: float
    bias: jax.Array | None
    max_logit: float | None
    segments: tuple[jax.Array, jax.Array] | None  # (B, S), (B, T)
    kv_length: int  # at most T
    int8: bool = False  # scores of integers, where a kernel gains by it
    overlap: bool = False  # segments are sets


class Kernel(NamedTuple):
    """How compiled programs for TPUs show a kernel."""

    name: str  # a part of its metadata
    token_axis: int  # of its operands q and k
    kinds: str = "bf16|f32"  # types of q and k, in XLA's words: they are the first operands of these


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backend:
    """A way to compute attention, and the inputs that it takes."""

    attend: Callable[[jax.Array, jax.Array, jax.Array, Options], jax.Array]
    platforms: tuple[str, ...] = ("cpu", "tpu", "gpu")
    widths: tuple[int, ...] | None = None  # of heads; None: any
    dtypes: tuple[str, ...] | None = None  # None: any
    bias: bool = True
    segments: bool = True
    overlap: bool = False
    gradient: bool = True
    int8: str | None = None  # the backend that computes scores of integers, where a chip's row counts fewer cycles
    kernel: Kernel | None = None

    def takes(self, q: jax.Array, options: Options) -> bool:
        """Whether it computes this; the platform is the caller's to choose."""
        return (
            (self.widths is None or q.shape[-1] in self.widths)
            and (self.dtypes is None or str(q.dtype) in self.dtypes)
            and (self.bias or options.bias is None)
            and (self.segments or options.segments is None)
            and (self.overlap or not options.overlap)
        )


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float,
    bias: jax.Array | None = None,
    max_logit: float | None = None,
    segments: Segments = None,
    kv_length: int | None = None,
    int8: bool = False,
    overlap: bool = False,
) -> jax.Array:
    """softmax(scale * q k^T + bias) v; logits and softmax in float32.

    Args:
      q: (B, A, S, K). k, v: (B, A, T, K).
      bias: None or (A, S, T), added to the logits.
      max_logit: a number that no |scale * q k| exceeds, as `logit_bound` gives it, or None. It only
        saves time; too small a one gives infinities.
      segments: None, or integers (B, S) if S = T, or a pair (B, S), (B, T): a query meets only the
        keys of its own number. One without any gets 0.
      overlap: the bits of those numbers are sets, and a query meets the keys that share one with it.
      int8: compute scores of integers on chips that gain by it; elsewhere it changes nothing. Under differentiation
        they are not integers either.
      kv_length: None, or how many of the keys exist. Whatever the others hold, NaN included, changes
        no result.
    Returns: (B, A, S, K), of the type of `v`.
    Raises: ValueError for shapes that do not fit.
    """
    pair = _check(q, k, v, segments, kv_length)
    options = Options(scale, bias, max_logit, pair, kv_length or k.shape[2], int8, overlap)
    name = formulations().attention
    if name not in BACKENDS:
        raise ValueError(f"unknown attention backend {name!r}; the known ones are {', '.join(BACKENDS)}")
    backend = BACKENDS[name] if BACKENDS[name].takes(q, options) else BACKENDS["chunked"]
    if int8 and backend.int8 is not None and _gains(name, backend.int8):
        backend = BACKENDS[backend.int8]
    return backend.attend(q, k, v, options)


def _gains(backend: str, other: str) -> bool:
    """Whether the kernel of another backend takes fewer cycles on the chip that the program is for."""
    chip = flash.current_chip()
    return chip is not None and chip.kernel_cycles.get(other, math.inf) < chip.kernel_cycles.get(backend, 0)


def _plain(q, k, v, options: Options) -> jax.Array:
    k, v, options = _existing(k, v, options)
    return product(_rows(q, k, v, options.scale, options.bias, *_ids(options)))


def _in_chunks(q, k, v, options: Options) -> jax.Array:
    if q.shape[2] <= CHUNK:
        return _plain(q, k, v, options)
    k, v, options = _existing(k, v, options)
    return product(_chunked(q, k, v, options.scale, options.bias, *_ids(options)))


def _by_head(q, k, v, options: Options) -> jax.Array:
    """A loop over B, in it one over A. All of the batch has the same bias, all heads the same segments."""
    if q.shape[2] <= CHUNK:
        return _plain(q, k, v, options)
    k, v, options = _existing(k, v, options)

    def item(x):
        *qkv, q_ids, kv_ids = x
        ids = (None, None) if options.segments is None else (q_ids[0], kv_ids[0])
        how = (*ids, options.overlap)
        return jax.lax.map(lambda head: _chunked(*head[:3], options.scale, head[3], *how), (*qkv, options.bias))

    return product(jax.lax.map(item, (q, k, v, *_ids(options)[:2])))


def _pallas(q, k, v, options: Options) -> jax.Array:
    return flash.flash_attention(
        q,
        k,
        v,
        scale=options.scale,
        max_logit=options.max_logit,
        segments=options.segments,
        kv_length=options.kv_length,
        int8=options.int8,
    )


def _splash(q, k, v, options: Options) -> jax.Array:
    return splash.attend(q, k, v, options.segments, scale=options.scale, length=options.kv_length)


def _jax_flash(q, k, v, options: Options) -> jax.Array:
    return jax_flash.attend(q, k, v, options.segments, scale=options.scale, length=options.kv_length)


def _cudnn(q, k, v, options: Options) -> jax.Array:
    k, v, options = _existing(k, v, options)
    try:
        turned = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
        y = jax.nn.dot_product_attention(*turned, scale=options.scale, implementation="cudnn")
    except RuntimeError as error:  # whether there is a cuDNN for this GPU is known by asking for it only
        warnings.warn(f"attention in chunks, which is slower, as cuDNN has none here: {error}", stacklevel=3)
        return _in_chunks(q, k, v, options)
    return product(jnp.swapaxes(y, 1, 2))


KERNEL_WIDTHS = (64, 128)  # of heads, that the kernels for TPUs are compiled and counted for
BACKENDS = {
    "plain": Backend(attend=_plain, overlap=True),  # the definition: all scores at once
    "chunked": Backend(attend=_in_chunks, overlap=True),  # CHUNK queries at a time
    "by_head": Backend(attend=_by_head, overlap=True),  # a loop over batch and heads around that
    # The kernel of `nn.flash`; its gradients are those of "splash".
    "pallas": Backend(
        attend=lambda q, k, v, options: _pallas(q, k, v, options._replace(int8=False)),
        platforms=("tpu",),
        widths=KERNEL_WIDTHS,
        bias=False,
        int8="pallas_int8",
        kernel=Kernel("/flash_attention/pallas_call", token_axis=-1),  # (..., K, S)
    ),
    # The same with scores of integers, on the chips that gain by it.
    "pallas_int8": Backend(
        attend=lambda q, k, v, options: _pallas(q, k, v, options._replace(int8=True)),
        platforms=("tpu",),
        widths=KERNEL_WIDTHS,
        bias=False,
        kernel=Kernel("/flash_attention_int8/pallas_call", token_axis=-1, kinds="s8"),
    ),
    # JAX's own kernels for TPUs.
    "splash": Backend(
        attend=_splash,
        platforms=("tpu",),
        widths=KERNEL_WIDTHS,
        bias=False,
        kernel=Kernel("splash_mha_fwd", token_axis=-2),
    ),
    # JAX's older kernel, to compare with. It has the name of ours, but is a function of its own.
    "jax_flash": Backend(
        attend=_jax_flash,
        platforms=("tpu",),
        widths=KERNEL_WIDTHS,
        bias=False,
        gradient=False,
        kernel=Kernel("(flash_attention)/pallas_call", token_axis=-2),
    ),
    # cuDNN's flash attention.
    "cudnn": Backend(
        attend=_cudnn,
        platforms=("gpu",),
        widths=tuple(range(8, 128 + 1, 8)),
        dtypes=("float16", "bfloat16"),
        bias=False,
        segments=False,
    ),
}


def logit_bound(q_scale: ArrayLike, q_bias: ArrayLike, k_scale: ArrayLike, k_bias: ArrayLike, *, scale: float) -> float:
    """A bound on |scale * q k| for queries and keys that leave a LayerNorm over K, rotated or not.

    A normed vector before its affine part is no longer than sqrt(K), after it no longer than
    max|scale| sqrt(K) + |bias|; rotations keep lengths. On the host, in float64.

    Args:
      q_scale, q_bias, k_scale, k_bias: (..., K), the norms' parameters; leading axes are layers.
      scale: of the logits.
    Returns: the largest over the layers, rounded up to a whole number, so that few programs differ.
    """

    def longest(gain, offset):
        gain, offset = (np.asarray(x, np.float64) for x in (gain, offset))
        return np.abs(gain).max(-1) * np.sqrt(gain.shape[-1]) + np.sqrt(np.square(offset).sum(-1))

    bound = np.max(longest(q_scale, q_bias) * longest(k_scale, k_bias)) * abs(scale) * ROUNDING
    return float(np.ceil(bound))


def _check(q, k, v, segments: Segments, kv_length: int | None) -> tuple[jax.Array, jax.Array] | None:
    """The segments as a pair. Raises: ValueError, see `attention`."""
    if k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q {q.shape}, k {k.shape}, v {v.shape} must be (B, A, S, K), (B, A, T, K), (B, A, T, K)")
    if kv_length is not None and not 0 < kv_length <= k.shape[2]:
        raise ValueError(f"kv_length must be in 1..{k.shape[2]}, got {kv_length}")
    if segments is None:
        return None
    pair = segments if isinstance(segments, tuple) else (segments, segments)
    shapes = tuple(x.shape for x in pair)
    if shapes != ((q.shape[0], q.shape[2]), (k.shape[0], k.shape[2])):
        raise ValueError(f"segments must be (B, S), (B, T) for q {q.shape} and k {k.shape}, got {shapes}")
    return pair


def _existing(k, v, options: Options):
    """Only the keys that exist: else even a weight of 0 would meet a NaN."""
    length = options.kv_length
    if length == k.shape[2]:
        return k, v, options
    bias, pair = options.bias, options.segments
    options = options._replace(
        bias=None if bias is None else bias[..., :length],
        segments=None if pair is None else (pair[0], pair[1][:, :length]),
    )
    return k[:, :, :length], v[:, :, :length], options


def _ids(options: Options):
    """Segments as `_rows` takes them: (B, 1, S, 1), (B, 1, 1, T), or None twice; and whether they are sets."""
    pair = options.segments
    if pair is None:
        return None, None, False
    return pair[0][:, None, :, None], pair[1][:, None, None, :], options.overlap


def _chunked(q, k, v, scale, bias, q_ids, kv_ids, overlap):
    """`_rows`, CHUNK queries at a time; a backward pass computes their weights again, which are S x T a head."""
    compute = jax.checkpoint(lambda q, bias, q_ids: _rows(q, k, v, scale, bias, q_ids, kv_ids, overlap))
    tokens = q.shape[-2]
    whole = tokens - tokens % CHUNK

    def split(x):  # (..., S, n) -> (chunks, ..., CHUNK, n)
        x = x[..., :whole, :]
        return jnp.moveaxis(x.reshape(*x.shape[:-2], -1, CHUNK, x.shape[-1]), -3, 0)

    rows: tuple[Any, ...] = (q, bias, q_ids)  # each has a row a query
    heads = tuple(None if x is None else split(x) for x in rows)
    y = jax.lax.map(lambda x: compute(*x), heads)
    y = jnp.moveaxis(y, 0, -3).reshape(*q.shape[:-2], whole, v.shape[-1])
    if whole == tokens:
        return y
    tail = (None if x is None else x[..., whole:, :] for x in rows)
    return jnp.concatenate([y, compute(*tail)], axis=-2)


def _rows(q, k, v, scale, bias, q_ids, kv_ids, overlap):
    """q (..., S, K); k, v (..., T, K); bias None or (..., S, T); ids None or (..., S, 1), (..., 1, T)."""
    logits = jnp.einsum("...qk,...sk->...qs", q * scale, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + jax.lax.broadcast_to_rank(bias, logits.ndim)
    if q_ids is not None:
        meets = (q_ids & kv_ids) != 0 if overlap else q_ids == kv_ids
        logits = jnp.where(meets, logits, flash.NOTHING)
    # Normalised after the product with v: K numbers a row are divided instead of S.
    weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    if q_ids is not None:  # a row without a key has no weight; a logit that is not there no gradient
        weights = jnp.where(meets, weights, 0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    y = jnp.einsum("...qs,...sk->...qk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    if q_ids is not None:
        total = jnp.where(total > 0, total, 1)
    return (y / total).astype(v.dtype)
