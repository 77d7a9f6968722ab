"""The T5 encoder on its own: position buckets, the missing mask, its norm and its size."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogvx_jax.configs import T5Config
from cogvx_jax.models.t5 import T5Encoder, buckets
from cogvx_jax.nn.norms import RMSNorm

pytestmark = pytest.mark.device

CFG = T5Config(layers=2, width=16, heads=2, head_dim=8, mlp=24, vocab=11)
IDS = jnp.array([[5, 6, 1, 0, 0], [7, 1, 0, 0, 0]])  # the end is 1, padding 0

BUCKETS = {-300: 15, -128: 15, -127: 15, -64: 14, -20: 10, -16: 10, -12: 9, -8: 8, -7: 7, -1: 1, 0: 0}
BUCKETS |= {1: 17, 7: 23, 8: 24, 9: 24, 11: 24, 12: 25, 16: 26, 20: 26, 23: 27, 24: 27, 32: 28, 45: 28, 46: 29}
BUCKETS |= {64: 30, 90: 30, 91: 31, 128: 31, 300: 31}


@functools.cache
def compiled(cfg):
    return jax.jit(lambda params, ids: T5Encoder(cfg).apply({"params": params}, ids))


def apply(cfg, params, ids):
    return compiled(cfg)(params, ids)


@pytest.mark.parametrize("distance, bucket", BUCKETS.items())
def test_buckets(distance, bucket):
    table = buckets(301, T5Config())  # (query, key)
    query = 0 if distance >= 0 else 300
    assert table[query, query + distance] == bucket


def test_buckets_depend_on_the_distance_alone():
    table = buckets(226, T5Config())
    assert table.shape == (226, 226) and table.min() == 0 and table.max() == 31
    np.testing.assert_array_equal(table[1:, 1:], table[:-1, :-1])
    np.testing.assert_array_equal(buckets(40, T5Config()), table[:40, :40])


def test_padding_is_seen(random_params):
    params = random_params(T5Encoder(CFG), IDS)
    states = apply(CFG, params, IDS)
    assert states.shape == (2, 5, 16)
    other = params | {"embedding": params["embedding"] + 2 * np.eye(11, dtype=np.float32)[:, :1]}  # of id 0
    assert (np.abs(apply(CFG, other, IDS) - states).max(axis=-1) > 1e-3).all()
    assert np.abs(apply(CFG, params, IDS[:, :3])[0] - states[0, :3]).max() > 1e-3


def test_every_layer_sees_the_one_position_table(random_params):
    params = random_params(T5Encoder(CFG), IDS)
    assert params["position_bias"].shape == (32, 2)
    same = jnp.full((2, 5), 3)
    flat = params | {"position_bias": np.ones_like(params["position_bias"])}  # no position at all
    np.testing.assert_allclose(apply(CFG, flat, same), apply(CFG, flat, same)[:, :1].repeat(5, axis=1), atol=1e-5)
    # In the second layer alone the table must count, too.
    second = dict(params["blocks"], out={"kernel": params["blocks"]["out"]["kernel"] * np.float32([[[0]], [[1]]])})
    deep = params | {"blocks": second}
    moved = deep | {"position_bias": 2 * deep["position_bias"]}
    assert np.abs(apply(CFG, moved, IDS) - apply(CFG, deep, IDS)).max() > 1e-3


def test_rms_norm():
    x = np.float32(np.random.default_rng(0).normal(3, 1, (2, 5, 16)))
    scale = np.float32(np.random.default_rng(1).normal(size=16))
    y = RMSNorm(1e-6).apply({"params": {"scale": scale}}, x)
    wide = np.float64(x)
    expected = wide / np.sqrt(np.square(wide).mean(-1, keepdims=True) + 1e-6) * scale  # no mean is taken off
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
    half = RMSNorm(1e-6).apply({"params": {"scale": scale}}, jnp.asarray(x, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_encoder_is_its_definition(random_params):
    """One layer in NumPy float64: no biases, no scaling of the logits, tanh GELU."""
    cfg = T5Config(layers=1, width=16, heads=2, head_dim=8, mlp=24, vocab=11)
    params = random_params(T5Encoder(cfg), IDS)
    p = jax.tree.map(np.float64, params)
    block = jax.tree.map(lambda leaf: leaf[0], p["blocks"])

    def norm(x, scale):
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * scale

    def heads(y, name):
        return np.moveaxis((y @ block[name]["kernel"]).reshape(2, 5, 2, 8), 2, 1)

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    x = p["embedding"][IDS]
    y = norm(x, block["norm1"]["scale"])
    logits = heads(y, "q") @ np.swapaxes(heads(y, "k"), -1, -2) + np.moveaxis(
        p["position_bias"][buckets(5, cfg)], -1, 0
    )
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    x = x + np.moveaxis(weights @ heads(y, "v"), 1, 2).reshape(2, 5, 16) @ block["out"]["kernel"]
    y = norm(x, block["norm2"]["scale"])
    x = x + gelu(y @ block["gate"]["kernel"]) * (y @ block["up"]["kernel"]) @ block["down"]["kernel"]
    np.testing.assert_allclose(apply(cfg, params, IDS), norm(x, p["norm"]["scale"]), rtol=0, atol=2e-5)


def test_parameter_count():
    ids = jax.ShapeDtypeStruct((1, 226), jnp.int32)
    params = nn.unbox(jax.eval_shape(T5Encoder(T5Config()).init, jax.random.key(0), ids))["params"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 4_762_310_656
    assert {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(params)} == {
        "embedding",
        "position_bias",
        "kernel",
        "scale",
    }
