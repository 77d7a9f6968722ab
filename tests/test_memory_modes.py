"""Memory modes: the same video in less memory, components that take turns, texts that need no encoder again."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import cogvx_jax as cx
from cogvx_jax import cache
from cogvx_jax.convert import write_lora
from cogvx_jax.models import lora as loras
from cogvx_jax.models.lora import LoRA
from cogvx_jax.models.tiling import Tiling
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.nn.stacked import HOST, in_pieces, row_after_row, waits_on_host
from cogvx_jax.pipelines import memory, memory_modes, turns, weights
from cogvx_jax.pipelines import model as models
from cogvx_jax.pipelines.generate import encode_texts, generate
from cogvx_jax.pipelines.memory_modes import MODES, RESIDENT, TURNS, find_mode, modes_of
from cogvx_jax.pipelines.request import check_request
from cogvx_jax.pipelines.text_cache import encoder_digest
from cogvx_jax.sharding import activate

EXACT = [mode.name for mode in MODES if mode.exact and mode != RESIDENT]
OPTIONS = dict(num_inference_steps=2, progress=False, output="latents")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True, scope="module")
def few_tokens():
    """The small models have 44 tokens: MLPs take 16 of them at a time."""
    made = {m.name: dataclasses.replace(m, compute=m.compute | {"mlp_tokens": 16}) for m in MODES if len(m.compute) > 1}
    modes = tuple(made.get(mode.name, mode) for mode in MODES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_modes, "MODES", modes)
        patch.setattr(memory_modes, "BY_NAME", {mode.name: mode for mode in modes})
        patch.setattr(memory_modes, "_EXACT", tuple(mode for mode in modes if mode.exact))
        yield


@pytest.fixture
def loads(monkeypatch):
    """The components that are read from now on, in order."""
    found = []
    load = turns.Source.load

    def noted(source):
        found.append(source.component)
        return load(source)

    monkeypatch.setattr(turns.Source, "load", noted)
    return found


def image_of(kind):
    return dict(image=np.full((32, 48, 3), 90, np.uint8)) if kind.endswith("i2v") else {}


def on_host(params):
    """Kernels of blocks where they wait, the others where they were."""
    there = jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind=HOST)
    flat = traverse_util.flatten_dict(params, sep="/")
    put = {path: jax.device_put(x, there) if waits_on_host(path) else x for path, x in flat.items()}
    return traverse_util.unflatten_dict(put, sep="/")


@pytest.fixture(scope="module")
def predicted():
    """v of two rows by the transformer of `tiny`, as a memory mode's fields of `Compute` say."""
    model = cx.load("tiny", components=("transformer",))
    rng, cfg, params = np.random.default_rng(0), model.spec.transformer, model.params["transformer"]
    inputs = rng.normal(size=(2, 5, 8, 8, 16)), rng.normal(size=(2, cfg.text_length, cfg.text_dim)), [500.0, 500.0]

    def make(**fields):
        transformer = Transformer(cfg, dataclasses.replace(model.compute, **fields))
        run = jax.jit(lambda params, *inputs: transformer.apply({"params": params}, *inputs))
        return np.asarray(run(on_host(params) if fields.get("streamed") else params, *map(np.float32, inputs)))

    return make, make()


@pytest.mark.parametrize(
    "fields",
    [dict(rows_apart=True), dict(mlp_tokens=100), dict(rows_apart=True, mlp_tokens=128, streamed=True)],
)
def test_blocks_in_portions_give_the_same_bits(predicted, fields):
    """Rows apart, a last piece that overlaps (306 tokens, 128 at a time), and kernels that wait on the host."""
    make, plain = predicted
    np.testing.assert_array_equal(make(**fields), plain)


@pytest.mark.parametrize(
    "kind, name", [("5b", name) for name in EXACT] + [("5b-i2v", "offload"), ("1.5-5b-i2v", "offload")]
)
def test_exact_modes_make_the_same_latents(small, kind, name):
    folder, model = small(kind)
    asked = OPTIONS | image_of(kind)
    there = cx.load(folder, memory=name)
    made = [cx.generate(m, "a red circle", **asked) for m in (model, there)]
    # At such sizes, unlike those of `tiny`, XLA computes products of other numbers of rows by other programs.
    np.testing.assert_allclose(*made, rtol=0, atol=0 if name == "turns" else 2e-5)
    kernel = there.params["transformer"]["blocks"]["mlp"]["up"]["kernel"]
    assert there.memory == find_mode(name) and (kernel.sharding.memory_kind == HOST) == (name == "offload")


@pytest.mark.parametrize("sizes", [dict(cfg=2, sp=2), dict(fsdp=2, tensor=2), dict(data=2, context=2)])
@pytest.mark.parametrize("name", ["offload", pytest.param("rows", marks=pytest.mark.full)])
def test_exact_modes_on_meshes(small, sizes, name):
    folder, _ = small("5b")
    mesh = cx.make_mesh(**sizes, devices=jax.devices()[:4])
    prompts = ["a red circle", "a blue star"]
    made = [cx.generate(cx.load(folder, mesh=mesh, memory=m), prompts, **OPTIONS) for m in ("resident", name)]
    np.testing.assert_allclose(*made, rtol=0, atol=2e-5)


@pytest.mark.parametrize("sizes", [{}, dict(data=2), dict(data=2, sp=2)])
def test_portions_of_rows_and_tokens(sizes):
    """Of each device's own: rows and tokens that do not divide, and what is picked of another array."""
    mesh = cx.make_mesh(**sizes, devices=jax.devices()[: int(np.prod(list(sizes.values()) or [1]))])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 44, 8)), jnp.float32)
    of_rows = jnp.arange(6.0)[:, None]
    seen = []

    def rows(y, pick):
        seen.append(y.shape[0])
        return y * pick(of_rows)[:, None]

    def tokens(y):
        seen.append(y.shape[1])
        return y + 1

    with activate(mesh):
        np.testing.assert_array_equal(jax.jit(lambda x: row_after_row(rows, x))(x), x * of_rows[:, None])
        np.testing.assert_array_equal(jax.jit(lambda x: in_pieces(tokens, x, 10))(x), x + 1)
    spread = sizes.get("data", 1), sizes.get("sp", 1)
    assert seen == [spread[0], 10 * spread[1]]
