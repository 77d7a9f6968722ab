"""The attention kernel in interpret mode, and what `attention` promises of every formulation.

Interpret mode compiles each case for seconds, so cases combine what is orthogonal.
"""

import contextlib
import functools
import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from cogvx_jax.chips import CHIPS, chip_of
from cogvx_jax.configs import Compute, ModelSpec, T5Config, TransformerConfig, VAEConfig
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.nn import attention as attention_module
from cogvx_jax.nn import flash, splash
from cogvx_jax.nn.attention import BACKENDS, Backend, attention, logit_bound
from cogvx_jax.nn.backend import BY_PLATFORM, Formulations, using
from cogvx_jax.nn.flash import Blocks, flash_attention, needs_maximum
from cogvx_jax.pipelines.model import with_logit_bound

SMALL = Blocks(128, 128, 128)
BOUND = 30.0  # of the logits of `draw` times SCALE, by far
SCALE = 0.25


def draw(seed, *shape, dtype="float32"):
    return jax.device_put(np.random.default_rng(seed).normal(size=shape).astype(dtype))


def inputs(queries, keys, *, batch=1, heads=1, width=16, dtype="float32"):
    """q (B, A, S, K); k, v (B, A, T, K)."""
    return [draw(i, batch, heads, n, width, dtype=dtype) for i, n in enumerate((queries, keys, keys))]


def definition(q, k, v, scale, segments=None):
    """softmax(scale * q k^T) v in float64; 0 for queries without a key."""
    q, k, v = (np.float64(a) for a in (q, k, v))
    logits = scale * q @ np.swapaxes(k, -1, -2)
    keep = np.ones_like(logits, bool)
    if segments is not None:
        keep &= np.asarray(segments[0])[:, None, :, None] == np.asarray(segments[1])[:, None, None]
    top = np.max(logits, axis=-1, keepdims=True, where=keep, initial=-np.inf)
    weights = np.where(keep, np.exp(np.where(keep, logits - np.where(keep, top, 0), 0)), 0)
    total = weights.sum(-1, keepdims=True)
    return weights / np.where(total > 0, total, 1) @ v


def spoil(x, start, value):
    """Puts `value` into the keys from `start` on."""
    return x.at[:, :, start:].set(value)


@functools.cache
def program(**how):
    """Compiled once for the tests that differ in numbers alone."""
    return jax.jit(functools.partial(flash_attention, **how, interpret=True))


def kernel(q, k, v, segments=None, **how):
    """`flash_attention` in interpret mode, as one program with what stands around it."""
    return program(**how)(q, k, v, segments=segments)


# --- the kernel ---


@pytest.mark.parametrize("bound", [None, BOUND])
@pytest.mark.parametrize(
    "queries, keys, blocks",
    [
        (1, 3, SMALL),
        pytest.param(129, 256, Blocks(128, 128, 128), marks=pytest.mark.full),  # no tail
        (300, 385, Blocks(256, 256, 128)),  # a tail of one key and a whole part
        pytest.param(40, 700, Blocks(128, 384, 256), marks=pytest.mark.full),  # parts do not divide blocks
    ],
)
def test_ragged_lengths(queries, keys, blocks, bound):
    q, k, v = inputs(queries, keys)
    y = kernel(q, k, v, scale=SCALE, max_logit=bound, blocks=blocks)
    np.testing.assert_allclose(y, definition(q, k, v, SCALE), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype, atol", [("bfloat16", 1e-2), pytest.param("float16", 1e-3, marks=pytest.mark.full)])
def test_half_precision(dtype, atol):
    q, k, v = inputs(130, 200, dtype=dtype, heads=2)
    y = kernel(q, k, v, scale=SCALE, max_logit=60.0, blocks=SMALL)
    assert y.dtype == dtype
    np.testing.assert_allclose(np.float32(y), definition(q, k, v, SCALE), rtol=0, atol=atol)


@pytest.mark.parametrize("width", [64, 128])
def test_scaled_queries_are_not_rounded(width):
    """Logits up to 80 from bfloat16: to round the scaled queries once more would move some by 0.1."""
    q, k, v = inputs(256, 256, width=width, dtype="bfloat16")
    q, k = q * 4, k * 4
    y = kernel(q, k, v, scale=width**-0.5, blocks=SMALL)
    np.testing.assert_allclose(np.float32(y), definition(q, k, v, width**-0.5), rtol=0, atol=2.7e-2)


@pytest.mark.parametrize("scale, bound", [(1000.0, None), (1.0, 70.0)])
def test_extreme_logits(scale, bound):
    """Logits in the thousands; and, with a bound, at both ends of what is left without a maximum."""
    q, k, v = inputs(64, 300)
    if bound is not None:
        assert not needs_maximum(bound, 300)
        q = jnp.sign(q) / 4 * jnp.where(jnp.arange(64) % 2, 1, -1)[None, None, :, None]
        k = jnp.broadcast_to(jnp.sign(q[:, :, 1:2]), k.shape) * bound / 4  # logits up to 70, down to -70
    y = kernel(q, k, v, scale=scale, max_logit=bound, blocks=SMALL)
    expected = definition(q, k, v, scale)
    np.testing.assert_allclose(y, expected, rtol=0, atol=5e-3 if bound is None else 1e-4)


@pytest.mark.parametrize("bound", [None, BOUND])
@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_keys_from_kv_length_on_do_not_exist(garbage, bound):
    q, k, v = inputs(100, 400)
    y = kernel(
        q, spoil(k, 150, garbage), spoil(v, 150, -garbage),
        scale=SCALE, max_logit=bound, kv_length=150, blocks=SMALL,
    )  # fmt: skip
    np.testing.assert_allclose(y, definition(q, k[:, :, :150], v[:, :, :150], SCALE), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bound", [None, BOUND])
def test_segments(bound):
    q, k, v = inputs(150, 300, batch=2)
    rng = np.random.default_rng(3)
    ids = [np.sort(rng.integers(0, 3, (2, n))) for n in (150, 300)]
    ids[0][0, :5] = 7  # these queries have no key
    segments = tuple(jnp.asarray(x, jnp.int32) for x in ids)
    y = kernel(q, k, v, scale=SCALE, max_logit=bound, segments=segments, blocks=SMALL)
    np.testing.assert_allclose(y, definition(q, k, v, SCALE, ids), rtol=0, atol=1e-5)
    assert not y[0, :, :5].any()


@pytest.mark.parametrize("segmented", [pytest.param(False, marks=pytest.mark.full), True])
def test_gradients_are_those_of_the_definition(monkeypatch, segmented):
    q, k, v = inputs(150, 300, batch=2)
    monkeypatch.setattr(splash, "BLOCKS", range(128, 129, 128))  # several, the last ones ragged
    segments = None
    if segmented:  # some queries have no key
        segments = (jnp.arange(150)[None].repeat(2, 0) // 60, jnp.arange(300)[None].repeat(2, 0) // 120)

    def ours(q, k, v):
        options = {"scale": SCALE, "segments": segments, "kv_length": 200, "blocks": SMALL, "interpret": True}
        return flash_attention(q, spoil(k, 200, jnp.nan), spoil(v, 200, jnp.nan), **options)

    def plain(q, k, v):
        with using(Formulations(attention="plain")):
            return attention(q, k, v, scale=SCALE, segments=segments, kv_length=200)

    def with_gradients(function, *inputs):
        y, pull = jax.vjp(function, *inputs)
        return y, *pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

    found, expected = (jax.jit(functools.partial(with_gradients, f))(q, k, v) for f in (ours, plain))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


def test_blocks_of_the_gradient_pad_little():
    assert [splash.padded_blocks(n) for n in (17776, 45332, 300)] == [(17920, 896), (45440, 640), (384, 384)]


def test_the_choice_of_blocks():
    assert flash.fit_blocks(Blocks(2048, 2048, 512), 17776, 17776) == (2048, 2048, 512)
    assert flash.fit_blocks(Blocks(2048, 2048, 512), 4480, 17776) == (1536, 2048, 512)  # three, not 2.2 of 2048
    assert flash.fit_blocks(Blocks(2048, 2048, 512), 10, 300) == (128, 384, 384)
    with pytest.raises(ValueError, match="multiples of 128"):
        flash.fit_blocks(Blocks(100, 128, 128), 10, 10)
    assert flash.default_blocks(False) in (flash.DEFAULT, *(chip.blocks for chip in CHIPS))
    assert flash.default_blocks(True) == flash.default_blocks(True, int8=True) == flash.DEFAULT


# --- the bound ---


def test_logit_bound_holds_and_is_near():
    rng = np.random.default_rng(0)
    gains, biases = 1 + 0.2 * rng.normal(size=(2, 3, 64)), 0.1 * rng.normal(size=(2, 3, 64))
    scale = 64**-0.5
    bound = logit_bound(gains[0], biases[0], gains[1], biases[1], scale=scale)
    assert bound == math.ceil(bound)
    x = rng.normal(size=(2, 3, 1000, 64))
    x[:, :, -1] = np.eye(64)[3]  # one coordinate alone is the longest a LayerNorm gives
    x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    q, k = x * gains[:, :, None] + biases[:, :, None]
    largest = np.abs(scale * np.einsum("lqk,ltk->lqt", q, k)).max()
    assert 0.3 * bound < largest <= bound
    assert logit_bound(np.ones(64), np.zeros(64), np.ones(64), np.zeros(64), scale=scale) == 9  # 8, and rounding


def test_the_maximum_is_left_out_where_float32_allows():
    assert not needs_maximum(9.0, 45106) and not needs_maximum(70.0, 17776)
    assert needs_maximum(80.0, 17776) and needs_maximum(None, 1)


def test_the_bound_is_that_of_the_largest_norms(random_params):
    cfg = TransformerConfig(layers=3, heads=2, text_dim=8, in_channels=2, out_channels=2, time_dim=8)
    spec = ModelSpec(
        transformer=cfg, vae=VAEConfig(latent_channels=2), text_encoder=T5Config(width=8, heads=1, mlp=8, vocab=8)
    )
    shapes = jnp.zeros((1, 1, 4, 4, 2)), jnp.zeros((1, cfg.text_length, 8)), jnp.zeros(1)
    params = random_params(Transformer(cfg), *shapes)
    compute = with_logit_bound(Compute(), spec, params)
    norms = params["blocks"]["attention"]
    layers = [logit_bound(*(norms[n][x][i] for n in ("norm_q", "norm_k") for x in ("scale", "bias")), scale=1 / 8)
              for i in range(3)]  # fmt: skip
    assert compute == Compute(logit_bound=max(layers))


# --- every formulation ---


@pytest.fixture
def interpreted(monkeypatch):
    """`attention` runs its kernel in interpret mode, with small blocks."""

    def run(*args, **kwargs):
        return flash_attention(*args, **kwargs, blocks=Blocks(256, 256, 128), interpret=True)

    monkeypatch.setattr(attention_module.flash, "flash_attention", run)
    monkeypatch.setattr(splash, "BLOCKS", range(128, 129, 128))
    monkeypatch.setattr(splash, "attend", functools.partial(splash.attend, interpret=True))
    monkeypatch.setattr(attention_module, "CHUNK", 64)


@pytest.mark.parametrize("segmented", [True, pytest.param(False, marks=pytest.mark.full)])
@pytest.mark.parametrize("choice", BACKENDS)
def test_formulations_agree(choice, segmented, interpreted):
    """Keys of another number than queries, segments, and NaN where no keys are; then without segments."""
    q, k, v = inputs(150, 260, batch=2, heads=2, width=64)
    segments = kept = None
    if segmented:
        segments = tuple(np.arange(n)[None].repeat(2, 0) // part for n, part in ((150, 90), (260, 130)))
        kept = segments[0], segments[1][:, :200]
    simulated = pltpu.force_tpu_interpret_mode() if choice == "jax_flash" else contextlib.nullcontext()
    with using(Formulations(attention=choice)), simulated:
        asked = functools.partial(attention, scale=0.125, max_logit=BOUND, kv_length=200)
        y = jax.jit(asked)(q, spoil(k, 200, jnp.nan), spoil(v, 200, jnp.nan), segments=segments)
    atol = 2e-2 if choice == "pallas_int8" else 1e-5
    np.testing.assert_allclose(y, definition(q, k[:, :, :200], v[:, :, :200], 0.125, kept), rtol=0, atol=atol)


def integers(q, k, length, scale):
    """q and k in the place of which integers stand: q k^T of the results are the scores, in float64."""
    q, k = np.float64(q), np.float64(k[:, :, :length])
    k = k - k.mean(2, keepdims=True)
    rounded = []
    for x, axes in ((q, 3), (k, (2, 3))):
        step = np.abs(x).max(axes, keepdims=True) / 127
        rounded.append(np.rint(x / np.where(step > 0, step, 1)) * step)
    return rounded


def test_scores_of_integers():
    """Nearer to the definition of what was rounded than to that of what was not; keys' common part does not matter."""
    q, k, v = inputs(200, 300, heads=2, width=64)
    k, q = k + 3 * draw(7, 1, 2, 1, 64), q.at[0, 0, 5].set(0)
    spoilt = spoil(k, 280, jnp.nan), spoil(v, 280, jnp.inf)
    y = kernel(q, *spoilt, scale=0.1, kv_length=280, int8=True, blocks=SMALL)
    exact = definition(q, k[:, :, :280], v[:, :, :280], 0.1)
    rounded = definition(*integers(q, k, 280, 0.1), v[:, :, :280], 0.1)
    np.testing.assert_allclose(y, rounded, rtol=0, atol=3e-3)  # of numbers halfway between two integers
    error = np.sqrt(np.mean(np.square(y - exact)) / np.mean(np.square(exact)))
    assert 1e-3 < error < 2e-2


def test_the_bound_holds_for_integers():
    """Keys that all lie on one side but one: without their mean that one is nearly twice as long."""
    rng, width = np.random.default_rng(0), 64
    k = np.repeat(rng.normal(size=(1, 1, 1, width)), 300, axis=2)
    k[0, 0, 0] *= -1
    q = np.concatenate([k[:, :, :1], rng.normal(size=(1, 1, 50, width))], axis=2)
    largest = np.abs(q @ np.swapaxes(k, 2, 3)).max() * SCALE
    bound = np.sqrt(np.square(q).sum(-1).max() * np.square(k).sum(-1).max()) * SCALE  # as `logit_bound` has it
    turned = (jnp.asarray(np.swapaxes(x, 2, 3), jnp.float32) for x in (q, k))
    q8, k8, scale = flash.integer_operands(*turned, 300)
    scores = np.einsum("baks,bakt->bats", np.int64(q8), np.int64(k8)) * np.float64(scale) * SCALE
    assert largest <= bound < np.abs(scores).max() <= flash.integer_bound(bound, width)


@pytest.mark.full
def test_the_gradient_is_not_of_integers(monkeypatch):
    q, k, v = inputs(130, 130, width=64)
    monkeypatch.setattr(splash, "BLOCKS", range(128, 129, 128))

    def loss(q, int8):
        y = flash_attention(q, k, v, scale=SCALE, int8=int8, blocks=SMALL, interpret=True)
        return jnp.sum(jnp.square(y))

    plain, other = (jax.grad(loss)(q, int8) for int8 in (False, True))
    assert np.any(plain) and np.array_equal(plain, other)


@pytest.mark.parametrize("kind, chosen", [("TPU v5 lite", True), ("TPU v6 lite", False), ("cpu", False)])
def test_integers_are_chosen_where_a_chip_gains_by_them(monkeypatch, kind, chosen):
    asked = []

    def noted(*args, **options):
        asked.append(options["int8"])
        return args[2]

    monkeypatch.setattr(attention_module.flash, "flash_attention", noted)
    monkeypatch.setattr(attention_module.flash, "current_chip", lambda: chip_of(kind))
    x = jnp.zeros((1, 1, 8, 64), "bfloat16")
    with using(Formulations(attention="pallas")):
        attention(x, x, x, scale=1.0, int8=True)
        attention(x, x, x, scale=1.0)
    assert asked == [chosen, False]


def test_half_precision_without_cudnn_falls_back(interpreted):
    if jax.default_backend() == "gpu":
        pytest.skip("there is a cuDNN here")
    q, k, v = inputs(20, 20, width=64, dtype="bfloat16")
    with using(Formulations(attention="cudnn")), pytest.warns(UserWarning, match="cuDNN"):
        y = attention(q, k, v, scale=0.125)
    np.testing.assert_allclose(np.float32(y), definition(q, k, v, 0.125), rtol=0, atol=2e-2)


def test_pallas_leaves_biased_and_narrow_attention_to_chunks(interpreted, monkeypatch):
    bias, (q, k, v) = draw(5, 2, 130, 130), inputs(130, 130, heads=2, width=64)
    calls = []
    monkeypatch.setattr(attention_module.flash, "flash_attention", lambda *args, **kwargs: calls.append(args))
    with using(Formulations(attention="pallas")):
        y = jax.jit(functools.partial(attention, scale=0.125, bias=bias))(q, k, v)
        jax.eval_shape(functools.partial(attention, scale=0.25), *inputs(5, 5, width=16))
    with using(Formulations(attention="plain")):
        plain = jax.jit(functools.partial(attention, scale=0.125, bias=bias))(q, k, v)
    np.testing.assert_allclose(y, plain, rtol=0, atol=1e-5)
    assert not calls


def test_an_unknown_backend_is_named():
    with using(Formulations(attention="fast")), pytest.raises(ValueError, match="'fast'; the known ones are plain, "):
        attention(*inputs(4, 6), scale=1.0)


def test_a_new_backend_is_a_row_of_the_table(monkeypatch):
    """Of float32 and heads of width 16 without a bias, say; what it does not take goes to chunks."""
    q, k, v = inputs(4, 6)
    row = Backend(attend=lambda q, k, v, options: q + options.kv_length, widths=(16,), dtypes=("float32",), bias=False)
    monkeypatch.setitem(BACKENDS, "new", row)
    plain = attention(q, k, v, scale=1.0)
    with using(Formulations(attention="new")):
        np.testing.assert_array_equal(attention(q, k, v, scale=1.0, kv_length=5), q + 5)
        np.testing.assert_array_equal(attention(q, k, v, scale=1.0, bias=jnp.zeros((1, 4, 6))), plain)
        half = attention(*(x.astype("bfloat16") for x in (q, k, v)), scale=1.0)
        assert attention(*inputs(4, 6, width=8), scale=1.0).shape == (1, 1, 4, 8)
    np.testing.assert_allclose(np.float32(half), plain, rtol=0, atol=4e-2)


@pytest.mark.parametrize("platform", BY_PLATFORM)
def test_a_platform_has_a_backend_that_runs_there_and_has_gradients(platform):
    chosen = BACKENDS[BY_PLATFORM[platform].attention]
    assert platform in chosen.platforms and chosen.gradient


def test_the_kernels_of_the_table_are_counted_for_every_tpu():
    kernels = {name for name, backend in BACKENDS.items() if backend.kernel is not None}
    tpus = [chip for chip in CHIPS if chip.generation is not None]
    none = {"v4": {"pallas_int8"}}  # which multiplies no integers
    assert tpus and all(chip.kernel_cycles.keys() == kernels - none.get(chip.generation, set()) for chip in tpus)
    assert all(chip.blocks is not None for chip in tpus)
    assert all(None not in (chip.memory, chip.clock) and chip.shapes for chip in tpus)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kv_length": 0}, "kv_length must be in 1..6"),
        ({"kv_length": 7}, "kv_length must be in 1..6"),
        ({"segments": jnp.zeros((1, 4), jnp.int32)}, r"segments must be \(B, S\), \(B, T\)"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        attention(*inputs(4, 6), scale=1.0, **changes)


# --- ahead of time ---

COMPILE = """
import jax, jax.numpy as jnp
jax.config.update("jax_platforms", "cpu")
from cogvx_jax.nn.flash import flash_attention
from cogvx_jax.scripts.attention_blocks import TOPOLOGIES, compiled, on
for topology in {topologies}:
    with on(topology) as array:
        for width, queries, keys, length, bound, segmented, dtype, *int8 in {cases}:
            if int8 and topology.startswith("v4"):  # which multiplies no integers
                continue
            def call(q, k, v, *ids):
                return flash_attention(
                    q, k, v, scale=0.125, max_logit=bound, kv_length=length, segments=tuple(ids) or None,
                    int8=bool(int8))
            x = [array((1, 2, n, width), dtype) for n in (queries, keys, keys)]
            ids = [array((1, n), jnp.int32) for n in (queries, keys)] * segmented
            compiled(call, *x, *ids)
    print("compiled for", topology)
"""
CASES = {
    "gathered keys, padded": [(64, 4480, 17920, 17776, 10.0, False, "bfloat16")],
    "maximum and segments": [(64, 1111, 3333, 3001, None, True, "bfloat16")],
    "all that takes memory": [(128, 2048, 4096, None, bound, True, "float32") for bound in (None, 10.0)],
    "wide heads, maximum": [(128, 2048, 4096, None, None, False, "bfloat16")],
    "integers": [
        (64, 4480, 17920, 17776, 10.0, False, "bfloat16", True),
        (128, 1111, 3333, 3001, None, True, "bfloat16", True),
    ],
    "wide heads, float32, few": [(128, 100, 77, None, 10.0, False, "float32")],
}


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_the_kernel_compiles_for_every_generation():
    """In a process of its own: libtpu, once loaded, stays."""
    topologies = "TOPOLOGIES"
    cases = [case for group in CASES.values() for case in group]
    environment = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(flash.__file__).parents[2]), *filter(None, sys.path)]),
    }
    code = COMPILE.format(topologies=topologies, cases=cases)
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("compiled for") == 5
