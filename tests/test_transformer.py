"""The expert transformer on its own: position tables, patches, token order, sizes, gradients."""

import dataclasses
import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError

from cogvx_jax.configs import Compute, TransformerConfig
from cogvx_jax.models import transformer as models
from cogvx_jax.models.transformer import OFS, QK_NORM_EPS, Attention, ExpertNorm, Transformer, check_shapes, joint_rope
from cogvx_jax.nn.embeddings import crop_box, patchify, rope_tables, rotate, sincos_table, sinusoid, unpatchify
from cogvx_jax.nn.norms import LayerNorm
from cogvx_jax.presets import PRESETS

pytestmark = pytest.mark.device

SMALL = TransformerConfig(
    layers=2,
    heads=2,
    head_dim=16,
    in_channels=4,
    out_channels=4,
    text_dim=8,
    text_length=5,
    time_dim=12,
    position="rope",
    sample_height=6,
    sample_width=8,
    sample_frames=9,
)
FLOAT32 = Compute()
KINDS = {
    "sincos": {"position": "sincos"},
    "rope": {},
    "rope+learned": {"position": "rope+learned", "in_channels": 8},
    "rope_slice": {"position": "rope_slice", "patch_t": 2},
    "ofs": {"position": "rope_slice", "patch_t": 2, "in_channels": 8, "ofs_dim": 12},
}


def small(kind="rope", **changes):
    return dataclasses.replace(SMALL, **(KINDS[kind] | changes))


def normal(seed, *shape):
    return jax.device_put(np.float32(np.random.default_rng(seed).normal(size=shape)))


def inputs(cfg, batch=2):
    frames = 4 if cfg.patch_t else 3
    return (
        normal(0, batch, frames, 6, 8, cfg.in_channels),
        normal(1, batch, 5, cfg.text_dim),
        jnp.array([999, 3][:batch]),
    )


@functools.cache
def compiled(module):
    return jax.jit(lambda params, *args: module.apply({"params": params}, *args))


def apply(cfg, params, *args, compute=FLOAT32):
    return compiled(Transformer(cfg, compute))(params, *args)


# --- golden numbers of the reference (FACTS b.7) ---


@pytest.mark.parametrize(
    "t, dim, golden",
    [
        (999, 1920, {0: 0.999650, 1: -0.990163, 2: 0.986716, 959: 0.994918}),
        (999, 1920, {960: -0.026461, 961: 0.139922, 962: -0.162452, 1919: 0.100692}),
        (999, 3072, {0: 0.999650, 1: 0.959839, 2: 0.807527, 1535: 0.994954}),
        (999, 3072, {1536: -0.026461, 1537: 0.280553, 1538: 0.589831, 3071: 0.100332}),
        (OFS, 512, {0: -0.416147, 1: -0.350895, 256: 0.909297, 257: 0.936415, 511: 0.000207}),
    ],
)
def test_sinusoid(t, dim, golden):
    x = np.asarray(jax.jit(sinusoid, static_argnums=1)(np.array([t]), dim))
    assert (x.shape, x.dtype) == ((1, dim), np.float32)
    # An angle near 999 is known to 3e-5 in float32.
    np.testing.assert_allclose(x[0, list(golden)], list(golden.values()), rtol=0, atol=1e-4)


TOKEN = (5 * 30 + 7) * 45 + 11  # t 5, h 7, w 11 of a 30 x 45 grid


def test_rope_tables():
    cos, sin = rope_tables(PRESETS["5b"].transformer, 13, 30, 45)
    assert cos.shape == sin.shape == (17550, 64) and cos.dtype == sin.dtype == np.float32
    at = [0, 2, 14, 16, 18, 38, 40, 42, 62]
    golden_cos = [0.283662, -0.010342, 0.999999, 0.753902, -0.994225, 0.999999, 0.004426, 0.383293, 0.999997]
    golden_sin = [-0.958924, 0.999947, 0.001581, 0.656987, -0.107312, 0.001508, -0.999990, -0.923627, 0.002370]
    np.testing.assert_allclose(cos[TOKEN, at], golden_cos, rtol=0, atol=2e-6)  # typed to 5e-7
    np.testing.assert_allclose(sin[TOKEN, at], golden_sin, rtol=0, atol=2e-6)  # typed to 5e-7
    for table in (cos, sin):
        np.testing.assert_array_equal(table[:, ::2], table[:, 1::2])


@pytest.mark.parametrize(
    "preset, grid, sums",
    [
        ("5b", (13, 30, 45), (721837.851, 181623.847)),
        ("5b-i2v", (13, 30, 45), (721837.851, 181623.847)),
        ("5b", (13, 32, 32), (538600.860, 138553.102)),  # the crop box does not start at 0
        ("1.5-5b", (11, 48, 85), (1707123.862, 501364.701)),
        ("1.5-5b-i2v", (11, 48, 85), (1707123.862, 501364.701)),
    ],
)
def test_rope_sums(preset, grid, sums):
    tables = rope_tables(PRESETS[preset].transformer, *grid)
    np.testing.assert_allclose([t.sum(dtype=np.float64) for t in tables], sums, rtol=0, atol=0.15)


def test_sincos_table():
    table = sincos_table(PRESETS["2b"].transformer, 13, 30, 45)
    assert (table.shape, table.dtype) == ((17550, 1920), np.float32)
    golden = {0: -0.958924, 1: -0.995067, 240: 0.283662, 479: 1.0, 480: -0.404579, 481: -0.535170, 840: 0.914503}
    golden |= {1199: 1.0, 1200: -0.557807, 1201: -0.477175, 1560: -0.829971, 1919: 1.0}
    np.testing.assert_allclose(table[TOKEN, list(golden)], list(golden.values()), rtol=0, atol=2e-6)  # typed to 5e-7
    assert table.sum(dtype=np.float64) == pytest.approx(15167673.328, abs=0.5)
    video = table.reshape(13, 30, 45, 1920)
    assert (video[..., :480] == video[:, :1, :1, :480]).all()  # time
    assert (video[..., 480:1200] == video[:1, :1, :, 480:1200]).all()  # column
    assert (video[..., 1200:] == video[:1, :, :1, 1200:]).all()  # row


@pytest.mark.parametrize(
    "grid, box",
    [
        ((30, 45), ((0, 0), (30, 45))),
        ((45, 30), ((0, 12), (30, 32))),
        ((32, 32), ((0, 8), (30, 38))),
        ((30, 30), ((0, 8), (30, 38))),
        ((48, 85), ((2, 0), (27, 45))),
        ((20, 45), ((5, 0), (25, 45))),
        ((24, 36), ((0, 0), (30, 45))),
        ((60, 90), ((0, 0), (30, 45))),
    ],
)
def test_crop_box(grid, box):
    assert crop_box(grid, (30, 45)) == box


# --- patches ---


def probe(frames, height, width, channels):
    """1000 f + 100 c + 10 h + w."""
    f, h, w, c = np.indices((frames, height, width, channels))
    return jnp.asarray(1000 * f + 100 * c + 10 * h + w, jnp.float32)[None]


def test_patches_of_one_frame():
    tokens = patchify(probe(2, 4, 6, 3), small())
    assert tokens.shape == (1, 2 * 2 * 3, 12)
    assert tokens[0, 0].tolist() == [0, 1, 10, 11, 100, 101, 110, 111, 200, 201, 210, 211]
    assert tokens[0, :, 0].tolist() == [0, 2, 4, 20, 22, 24, 1000, 1002, 1004, 1020, 1022, 1024]


def test_patches_of_two_frames():
    tokens = patchify(probe(4, 4, 6, 2), small("rope_slice"))
    assert tokens.shape == (1, 2 * 2 * 3, 16)
    first = [0, 1, 10, 11, 1000, 1001, 1010, 1011]
    assert tokens[0, 0].tolist() == first + [100 + x for x in first]
    assert tokens[0, :, 0].tolist() == [0, 2, 4, 20, 22, 24, 2000, 2002, 2004, 2020, 2022, 2024]


@pytest.mark.parametrize("kind, second_frame, second_channel", [("rope", None, 4), ("rope_slice", 4, 8)])
def test_unpatchify(kind, second_frame, second_channel):
    cfg, x = small(kind), normal(0, 2, 4, 6, 8, 4)
    np.testing.assert_array_equal(unpatchify(patchify(x, cfg), cfg, (4, 6, 8)), x)
    # One token whose features are their own index: where does each go?
    features = 4 * 4 * (cfg.patch_t or 1)
    pixel = unpatchify(jnp.arange(features)[None, None], cfg, (cfg.patch_t or 1, 2, 2))[0]
    assert pixel[0, :, :, 0].tolist() == [[0, 1], [2, 3]]
    assert pixel[0, 0, 0, 1] == second_channel
    assert second_frame is None or pixel[1, 0, 0, 0] == second_frame


# --- the order of tokens and of modulations ---


class Seen(Exception):
    """Carries the joint sequence out of the model before the blocks."""


@pytest.mark.parametrize("kind", ["sincos", "rope", "rope+learned", "rope_slice"])
def test_text_comes_first_and_only_learned_positions_move_it(kind, random_params, monkeypatch):
    cfg = small(kind)
    latents, text, t = inputs(cfg)
    params = random_params(Transformer(cfg), latents, text, t)

    def stop(x, *names):
        raise Seen(x)

    monkeypatch.setattr(models, "constrain", stop)
    with pytest.raises(Seen) as seen:
        Transformer(cfg).apply({"params": params}, latents, text, t)
    parts = ((np.asarray(text), "text"), (np.asarray(patchify(latents, cfg)), "patch"))
    words, video = (x @ params[name]["kernel"] + params[name]["bias"][None, None] for x, name in parts)
    if kind == "sincos":
        video = video + sincos_table(cfg, 3, 3, 4)[None]
    expected = np.concatenate([words, video], axis=1)
    if kind == "rope+learned":
        assert params["position"].shape == (5 + 3 * 3 * 4, cfg.width)
        expected = expected + params["position"]
    np.testing.assert_allclose(seen.value.args[0], expected, rtol=0, atol=1e-5)


def test_rope_turns_the_video_alone(random_params, monkeypatch):
    cfg = small()
    x, rope = normal(0, 2, 5 + 36, cfg.width), rope_tables(cfg, 3, 3, 4)
    module = Attention(cfg, Compute(), 5 + 36)
    params = random_params(module, x, None)
    seen = []

    def record(q, k, v, **options):
        seen.append((q, k, v))
        return v

    monkeypatch.setattr(models, "attention", record)
    for tables in (None, joint_rope(cfg, 5, (3, 3, 4))):
        module.apply({"params": params}, x, tables)
    still, turned = (tuple(map(np.asarray, found)) for found in seen)
    for a, b in zip(still, turned, strict=True):
        np.testing.assert_array_equal(a[:, :, :5], b[:, :, :5])
    for a, b in zip(still[:2], turned[:2], strict=True):
        np.testing.assert_allclose(rotate(a[:, :, 5:], *rope), b[:, :, 5:], rtol=0, atol=1e-6)
        assert np.abs(a - b).max() > 0.1
    np.testing.assert_array_equal(still[2], turned[2])


def test_rotation_is_of_neighbouring_pairs():
    x, angle = normal(0, 1, 1, 3, 4), np.float32([[0.3, 0.3, 1.1, 1.1]] * 3)
    y = rotate(x, np.cos(angle), np.sin(angle))
    turned = (np.asarray(x[..., ::2]) + 1j * np.asarray(x[..., 1::2])) * np.exp(1j * angle[:, ::2])
    np.testing.assert_allclose(y, np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape), rtol=0, atol=1e-6)


def test_modulation_is_shift_scale_gate_of_video_then_of_text():
    cfg = small()
    x, width = normal(0, 1, 7, cfg.width), cfg.width
    params = {
        "modulation": {
            "kernel": np.zeros((12, 6 * width), np.float32),
            "bias": np.repeat(np.float32([1, 2, 3, 4, 5, 6]), width),
        },
        "norm": {"scale": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)},
    }
    run = jax.jit(ExpertNorm(cfg, Compute(), text_length=2).apply)
    y, gate = map(np.asarray, run({"params": params}, x, normal(1, 1, 12)))
    normed = np.asarray(jax.jit(LayerNorm(1e-5).apply)({"params": params["norm"]}, x))
    np.testing.assert_allclose(y[:, :2], normed[:, :2] * (1 + 5) + 4, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(y[:, 2:], normed[:, 2:] * (1 + 2) + 1, rtol=1e-6, atol=1e-6)
    assert (gate[:, :2] == 6).all() and (gate[:, 2:] == 3).all()


def test_a_parameter_of_another_shape_is_named():
    with pytest.raises(ScopeParamShapeError, match=r'"scale" in "", .* shape \(6,\), .* has shape \(4,\)'):
        LayerNorm(1e-5).apply({"params": {"scale": jnp.ones(4), "bias": jnp.ones(4)}}, jnp.ones((1, 6)))


@pytest.mark.parametrize("eps", [TransformerConfig().norm_eps, QK_NORM_EPS])
def test_layer_norm(eps):
    x = normal(0, 4, 16) * 1e-3  # small, so that eps counts
    scale, bias = np.float64(normal(1, 16)), np.float64(normal(2, 16))
    y = LayerNorm(eps).apply({"params": {"scale": np.float32(scale), "bias": np.float32(bias)}}, x)
    wide = np.float64(x)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + eps) * scale + bias
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
    assert (TransformerConfig().norm_eps, QK_NORM_EPS) == (1e-5, 1e-6)


# --- sizes ---


@pytest.mark.parametrize(
    "preset, count",
    [
        pytest.param("2b", 1_693_783_872, marks=pytest.mark.full),
        pytest.param("5b", 5_570_283_072, marks=pytest.mark.full),
        ("5b-i2v", 5_625_087_552),  # its table of positions included
        pytest.param("1.5-5b", 5_570_676_352, marks=pytest.mark.full),
        ("1.5-5b-i2v", 5_571_594_880),
    ],
)
def test_parameter_counts(preset, count):
    cfg = PRESETS[preset].transformer
    frames, height, width = cfg.patch_t or 1, 2, 2
    if cfg.position == "rope+learned":
        frames, height, width = 13, 60, 90
    latents, text = (1, frames, height, width, cfg.in_channels), (1, 226, 4096)
    arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (latents, text, (1,))]
    params = nn.unbox(jax.eval_shape(Transformer(cfg).init, jax.random.key(0), *arrays))["params"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.full), "bfloat16"])
def test_output_shape_and_type(kind, dtype):
    cfg = small(kind)
    module = Transformer(cfg, Compute(dtype=dtype))
    y = jax.eval_shape(lambda *a: module.init_with_output(jax.random.key(0), *a)[0], *inputs(cfg))
    assert y.shape == (*inputs(cfg)[0].shape[:-1], 4)
    assert y.dtype == dtype


@pytest.mark.parametrize(
    "kind, latents, text, message",
    [
        ("rope", (1, 3, 6, 8), (1, 5, 8), "latents must be (B, T, h, w, 4)"),
        ("rope", (1, 3, 6, 8, 16), (1, 5, 8), "latents must be (B, T, h, w, 4)"),
        ("rope+learned", (1, 3, 6, 8, 4), (1, 5, 8), "latents must be (B, T, h, w, 8)"),
        ("rope", (1, 3, 6, 8, 4), (5, 8), "text must be (B, L, 8)"),
        ("rope", (1, 3, 6, 8, 4), (1, 5, 9), "text must be (B, L, 8)"),
        ("rope", (1, 3, 5, 8, 4), (1, 5, 8), "divisible by 16"),
        ("rope", (1, 3, 6, 7, 4), (1, 5, 8), "divisible by 16"),
        ("rope_slice", (1, 3, 6, 8, 4), (1, 5, 8), "pad the frames at the front"),
        ("sincos", (1, 3, 6, 8, 4), (1, 4, 8), "exactly 5 text tokens, got 4"),
        ("rope+learned", (1, 3, 6, 8, 8), (1, 6, 8), "exactly 5 text tokens, got 6"),
        ("rope+learned", (1, 2, 6, 8, 8), (1, 5, 8), "learned positions need latents of (3, 6, 8), got (2, 6, 8)"),
        ("rope+learned", (1, 3, 8, 8, 8), (1, 5, 8), "learned positions need latents of (3, 6, 8), got (3, 8, 8)"),
    ],
)
def test_shapes_that_cannot_be(kind, latents, text, message):
    cfg = small(kind)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_shapes(cfg, latents, text)
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(
            Transformer(cfg).init,
            jax.random.key(0),
            *(jax.ShapeDtypeStruct(s, jnp.float32) for s in (latents, text, (1,))),
        )


def test_rotary_models_take_any_size_and_text():
    for kind in ("rope", "rope_slice"):
        check_shapes(small(kind), (1, 2, 4, 12, 4), (1, 17, 8))


# --- numbers ---


@pytest.mark.full
def test_bfloat16_is_close(random_params):
    cfg = small("ofs")
    args = inputs(cfg)
    params = random_params(Transformer(cfg), *args)
    y = np.asarray(apply(cfg, params, *args))
    half = np.float32(apply(cfg, params, *args, compute=Compute(dtype="bfloat16")))
    assert 0 < np.abs(half - y).max() < 0.05 * np.abs(y).max()


@pytest.mark.parametrize("remat", [pytest.param(r, marks=pytest.mark.full) for r in ("block", "products", "offload")])
def test_gradients_with_and_without_remat(random_params, remat):
    cfg = small()
    latents, text, t = inputs(cfg)
    params = random_params(Transformer(cfg), latents, text, t)

    def gradients(compute):
        def loss(params, latents, text):
            return jnp.mean(jnp.square(Transformer(cfg, compute).apply({"params": params}, latents, text, t)))

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(params, latents, text)

    kept, again = gradients(Compute()), gradients(Compute(remat=remat))
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    _, to_latents, to_text = kept
    assert (np.abs(to_latents).max(axis=-1) > 0).all() and (np.abs(to_text).max(axis=-1) > 0).all()
    blocks = jax.tree.leaves(kept[0]["blocks"])
    assert all(leaf.shape[0] == cfg.layers for leaf in blocks)
    assert all(np.isfinite(leaf).all() and np.abs(leaf[0]).max() > 0 for leaf in blocks)


def test_time_and_ofs(random_params):
    cfg = small("ofs")
    latents, text, t = inputs(cfg)
    params = random_params(Transformer(cfg), latents, text, t)
    y = apply(cfg, params, latents, text, t)
    np.testing.assert_allclose(y, apply(cfg, params, latents, text, t, OFS), rtol=0, atol=1e-5)  # the default
    assert np.abs(apply(cfg, params, latents, text, t, 3.0) - y).max() > 1e-3
    assert np.abs(apply(cfg, params, latents, text, t + 1) - y).max() > 1e-4


@pytest.mark.full
def test_a_batch_is_its_videos(random_params):
    cfg = small()
    args = inputs(cfg)
    params = random_params(Transformer(cfg), *args)
    apart = jnp.concatenate([apply(cfg, params, *(a[i : i + 1] for a in args)) for i in range(2)])
    np.testing.assert_allclose(apply(cfg, params, *args), apart, rtol=0, atol=1e-5)


def test_fun_models_of_2b_resize_the_native_positions():
    """At half of the native size each is the mean of four; 2B itself computes positions of the new size."""
    plain = TransformerConfig(heads=2, head_dim=16, sample_height=8, sample_width=12)
    fun = dataclasses.replace(plain, in_channels=33)
    native = sincos_table(plain, 3, 4, 6)
    np.testing.assert_array_equal(sincos_table(fun, 3, 4, 6), native)
    mean = native.reshape(3, 2, 2, 3, 2, 32).mean((2, 4)).reshape(-1, 32)
    np.testing.assert_allclose(sincos_table(fun, 3, 2, 3), mean, atol=1e-6)
    assert np.abs(sincos_table(plain, 3, 2, 3) - mean).max() > 1e-3
