"""Every formulation of an operation equals the plain one, and so do its gradients."""

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogvx_jax.configs import VAEConfig
from cogvx_jax.models.vae import VAE, double_time
from cogvx_jax.nn.attention import BACKENDS, CHUNK, attention
from cogvx_jax.nn.backend import BY_PLATFORM, PLAIN, Formulations, formulations, using
from cogvx_jax.nn.conv import FrameConv, causal_conv, upsample_conv
from cogvx_jax.nn.conv2d import TransposedConv2D, pixel_shuffle, repeat_pixels
from cogvx_jax.nn.embeddings import rotate
from cogvx_jax.nn.norms import GroupNorm, SpatialNorm

pytestmark = pytest.mark.device

ATOL = 1e-5  # float32, of results near 1
EVERYWHERE = tuple(name for name, backend in BACKENDS.items() if len(backend.platforms) == 3)


def normal(seed, *shape):
    return jax.device_put(np.float32(np.random.default_rng(seed).normal(size=shape)))


def under(choice, function, *args):
    """Compiled anew: what is compiled already keeps its formulation."""
    with using(choice):
        return jax.jit(lambda *a: function(*a))(*args)


def assert_close(a, b, atol=ATOL):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=atol), a, b)


def value_and_gradients(function):
    """The result, and the gradients of its product with fixed numbers, so that no two cancel."""

    def run(*args):
        y, pull = jax.vjp(function, *args)
        return y, pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    return run


# --- convolutions ---


@pytest.mark.parametrize(
    "shape, features, edges",
    [
        ((1, 3, 7, 6, 3), 4, False),
        pytest.param((2, 1, 1, 4, 8), 2, False, marks=pytest.mark.full),
        pytest.param((2, 4, 3, 4, 2), 2, False, marks=pytest.mark.full),
        ((1, 2, 5, 3, 2), 2, True),
    ],
)
def test_causal_conv(shape, features, edges):
    before, x, kernel = normal(0, shape[0], 2, *shape[2:]), normal(1, *shape), normal(2, 3, 3, 3, shape[-1], features)

    def joined(*inputs):
        y, seen = causal_conv(*inputs, edges=edges)
        return jnp.concatenate([jnp.ravel(y), jnp.ravel(seen[:, -2:])])

    run = value_and_gradients(joined)
    choices = ("conv3d", "conv2d", "by_frame")
    plain, *others = (under(Formulations(causal_conv=c), run, before, x, kernel / 8) for c in choices)
    assert plain[0].size == shape[0] * (shape[1] * (shape[2] - 2 * edges) * shape[3] * features + 2 * x[0, 0].size)
    for other in others:
        assert_close(other, plain, atol=3e-5)


@pytest.mark.parametrize(
    "shape, features",
    [
        ((1, 2, 5, 7, 3), 4),
        *(pytest.param(*case, marks=pytest.mark.full) for case in (((2, 1, 1, 4, 1), 8), ((1, 3, 1, 1, 16), 2))),
    ],
)
def test_upsample_conv(shape, features):
    x, kernel = normal(0, *shape), normal(1, 3, 3, shape[-1], features) / 4
    run = value_and_gradients(upsample_conv)
    plain, *others = (under(Formulations(upsample_conv=c), run, x, kernel) for c in ("repeat", "phase", "dilated"))
    assert plain[0].shape == (*shape[:2], 2 * shape[2], 2 * shape[3], features)
    for other in others:
        assert_close(other, plain, atol=3e-5)


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_frames_are_doubled_after_the_convolution_as_well_as_before(frames, random_params):
    module, x = FrameConv(4, upsample=True), normal(0, 1, frames, 3, 5, 2)
    params = random_params(module, x)
    conv = jax.jit(lambda x: module.apply({"params": params}, x))
    after, before = double_time(conv(x)), conv(double_time(x))
    assert after.shape[1] == {1: 1, 2: 4, 4: 8}[frames]
    assert_close(after, before)


# --- norms ---


@pytest.mark.parametrize("frames, latent_frames", [([1], [1]), ([1, 2], [1, 2]), ([1, 8], [1, 2]), ([8], [2])])
def test_spatial_norm(frames, latent_frames, random_params):
    module = SpatialNorm(groups=2, eps=1e-6)
    x = tuple(normal(0, 2, count, 4, 6, 8) for count in frames)
    z = tuple(normal(1, 2, count, 2, 3, 5) for count in latent_frames)
    params = random_params(module, x, z)
    full, latent = (
        under(Formulations(spatial_norm=c), lambda x, z: module.apply({"params": params}, x, z), x, z)
        for c in ("full", "latent")
    )
    assert_close(latent, full)


FOUR_GROUPS = GroupNorm(groups=4, eps=1e-6)
GROUP_NORM = jax.jit(FOUR_GROUPS.apply)


@pytest.mark.parametrize("mean", [0, 3, 30, 100, 1000])
def test_group_norm_is_its_definition_at_every_mean(mean, random_params):
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8, 16)).astype(np.float32)
    x += mean * np.sign(np.cos(np.arange(16) // 4 * 2.0)).astype(np.float32)
    params = random_params(FOUR_GROUPS, x)
    groups = np.float64(x).reshape(2, -1, 4, 4)
    centred = groups - groups.mean(axis=(1, 3), keepdims=True)
    y = centred / np.sqrt(np.square(centred).mean(axis=(1, 3), keepdims=True) + 1e-6)
    expected = y.reshape(x.shape) * params["scale"] + params["bias"]
    (whole,), parts = (GROUP_NORM({"params": params}, *given) for given in ((x,), (x[:, :1], x[:, 1:])))
    # A mean known to half a unit in its last place shifts the result by that much; E[x^2] - E[x]^2 squares it.
    atol = ATOL + 2e-7 * mean
    assert_close(whole, expected, atol)
    assert_close(np.concatenate(parts, axis=1), expected, atol)


def test_group_norm_of_a_constant_is_finite(random_params):
    module, x = GroupNorm(groups=2, eps=1e-6), jnp.full((1, 2, 4, 4, 4), 123.456)
    params = random_params(module, x)
    y, gradients = jax.jit(value_and_gradients(lambda p, x: module.apply({"params": p}, x)[0]))(params, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((y, gradients)))


# --- attention ---


def definition(q, k, v, scale, bias=None):
    """softmax(scale * q k^T + bias) v in float64."""
    q, k, v = (np.float64(a) for a in (q, k, v))
    logits = scale * q @ np.swapaxes(k, -1, -2) + (0 if bias is None else np.float64(bias))
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


@pytest.mark.parametrize(
    "chunk, tokens, biased",
    [
        *(pytest.param(CHUNK, 2 * CHUNK + 37, biased, marks=pytest.mark.full) for biased in (False, True)),
        pytest.param(8, 16, True, marks=pytest.mark.full),
        (8, 17, False),
    ],
)
def test_attention(chunk, tokens, biased, monkeypatch):
    monkeypatch.setattr("cogvx_jax.nn.attention.CHUNK", chunk)
    args = [normal(i, 2, 2, tokens, 4) for i in range(3)] + [normal(3, 2, tokens, tokens)] * biased

    def function(q, k, v, bias=None):
        return attention(q, k, v, scale=0.5, bias=bias)

    run = value_and_gradients(function)
    plain, *others = (under(Formulations(attention=c), run, *args) for c in EVERYWHERE)
    for other in others:
        assert_close(other, plain)
    assert_close(plain[0], definition(*args[:3], 0.5, *args[3:]))


@pytest.mark.parametrize("choice", EVERYWHERE)
def test_attention_survives_large_logits(choice):
    q, k, v = (normal(i, 1, 1, CHUNK + 3, 4) for i in range(3))
    y = under(Formulations(attention=choice), lambda *a: attention(*a, scale=1000.0), q, k, v)
    assert_close(y, definition(q, k, v, 1000.0), atol=5e-3)  # logits near 1e4, so 1e-3 of them is rounding


# --- rotary embedding ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("change", [pixel_shuffle, repeat_pixels])
def test_pixels_by_a_product_are_the_same(change, dtype):
    x = normal(0, 2, 3, 5, 12).astype(dtype)
    plain, other = (under(Formulations(pixels=choice), lambda x: change(x, 2), x) for choice in ("copy", "product"))
    assert other.dtype == x.dtype
    np.testing.assert_array_equal(other, plain)


def test_a_transposed_convolution_by_phases_is_the_same():
    x, module = normal(0, 2, 3, 5, 6), TransposedConv2D(4)
    params = {"params": {"kernel": normal(1, 4, 4, 6, 4) / 5, "bias": normal(2, 4)}}
    plain, other = (
        under(Formulations(transposed_conv=choice), module.apply, params, x) for choice in ("dilated", "phase")
    )
    assert plain.shape == (2, 6, 10, 4)
    assert_close(other, plain)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rope_as_a_product_is_exact(dtype):
    x, angle = normal(0, 2, 3, 5, 8).astype(dtype), np.asarray(normal(1, 5, 8))
    plain, other = (
        under(Formulations(rope=choice), lambda x: rotate(x, np.cos(angle), np.sin(angle)), x)
        for choice in ("pairs", "product")
    )
    assert other.dtype == x.dtype
    np.testing.assert_array_equal(other, plain)


# --- the choice itself ---


def test_by_size(monkeypatch):
    before, x, kernel = normal(0, 1, 2, 4, 6, 4), normal(1, 1, 1, 4, 6, 4), normal(2, 3, 3, 3, 4, 2)

    def program(choice):
        with using(Formulations(causal_conv=choice)):
            return str(jax.make_jaxpr(lambda: causal_conv(before, x, kernel))())

    assert program("conv3d") != program("conv2d")
    monkeypatch.setattr("cogvx_jax.nn.conv.TPU_CONV3D_PIXELS", 24)
    assert program("by_size") == program("conv3d")
    monkeypatch.setattr("cogvx_jax.nn.conv.TPU_CONV3D_PIXELS", 23)
    assert program("by_size") == program("conv2d")


def test_every_choice_is_tested_here():
    """A new name needs a test above, then a place here."""
    choices = {field.name: set(get_args(field.type)) for field in dataclasses.fields(Formulations)}
    del choices["token_multiple"]  # no formulation, but how much padding a mesh adds: test_mesh.py
    del choices["attention"]  # a table that test_flash.py goes through
    assert choices == {
        "causal_conv": {"conv3d", "conv2d", "by_size", "by_frame"},
        "upsample_conv": {"repeat", "phase", "dilated"},
        "transposed_conv": {"dilated", "phase"},
        "spatial_norm": {"full", "latent"},
        "rope": {"pairs", "product"},
        "pixels": {"copy", "product"},
        "large_pictures": {"whole", "strips"},  # test_finishing_memory.py
        "remat": {"none", "products", "block", "offload"},  # test_transformer.py
    }


def test_using_is_undone():
    default, outer, inner = formulations(), Formulations(spatial_norm="full"), Formulations(upsample_conv="phase")
    with using(outer):
        with pytest.raises(KeyError), using(inner):
            assert formulations() is inner
            raise KeyError
        assert formulations() is outer
    assert formulations() is default is BY_PLATFORM[jax.default_backend()]


@pytest.mark.full
def test_vae_is_the_same_by_the_choices_of_every_platform(random_params):
    vae = VAE(VAEConfig(channels=(4, 8), layers=1, groups=2, latent_channels=2, temporal_compression=2))
    pixels = normal(0, 1, 3, 4, 6, 3)
    params = random_params(vae, pixels)
    plain, *others = (
        under(choice, lambda p, x: vae.apply({"params": p}, x), params, pixels)
        for choice in (PLAIN, *BY_PLATFORM.values())
    )
    for other in others:
        assert_close(other, plain, atol=5e-5 * float(jnp.abs(plain).max()))
