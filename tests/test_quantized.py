"""Quantised models: integers and scales by their formulas, and models that are loaded, placed and stored so."""

import dataclasses
import json
import re
import shutil
import sys
import warnings

import fsspec
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

import cogvx_jax as cx
from cogvx_jax.cli import main as cli
from cogvx_jax.configs import Compute
from cogvx_jax.convert import ConversionError, write_orbax, write_quantized
from cogvx_jax.convert.quantized_layout import PACKED
from cogvx_jax.models.abstract import abstract_params, quantized
from cogvx_jax.models.cogvideo2022.abstract import abstract_network
from cogvx_jax.models.cogvideo2022.configs import CogVideo2022Config
from cogvx_jax.models.lora import Difference, LoRA, merge, stack
from cogvx_jax.nn.linear import Dense
from cogvx_jax.nn.quantized import (
    Kernel,
    dequantize,
    integer_product,
    product,
    quantize_kernel,
    quantize_tokens,
)
from cogvx_jax.pipelines.quantization_report import TIMES, make_report, random_inputs, relative_error
from cogvx_jax.pipelines.stored_programs import conditions
from cogvx_jax.pipelines.weights import weight_bytes
from cogvx_jax.planning.lower import lower_step
from cogvx_jax.presets import PRESETS
from cogvx_jax.quantization import COLUMNS, QUANTIZATIONS, SCALE, Storage, find_quantization
from cogvx_jax.sharding import placement

INT8, INT4 = Storage("int8"), Storage("int4", 16)
KERNEL = "blocks/mlp/up/kernel"
PROMPT = "a red circle"
HOW = dict(num_inference_steps=2, output="latents", progress=False)


def table(kernel, storage):
    """Integers and scales of a kernel (in, out) in float64."""
    w = np.asarray(kernel, np.float64).reshape(storage.groups(len(kernel)), -1, kernel.shape[1])
    scale = np.abs(w).max(1, keepdims=True) / storage.largest
    values = np.rint(w / np.where(scale > 0, scale, 1))
    return values.reshape(kernel.shape), scale[:, 0]


@pytest.mark.parametrize("storage", [INT8, INT4, Storage("int4", 32), Storage("int8", 16)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_become_the_integers_of_a_float64_table(storage, dtype):
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(64, 24)), dtype)
    made = jax.jit(quantize_kernel, static_argnums=1)(kernel, storage)
    values, scale = table(kernel, storage)
    assert made.values.dtype == storage.dtype and made.scale.dtype == jnp.float32
    np.testing.assert_allclose(made.scale, scale, rtol=1e-6)
    off = np.abs(np.asarray(made.values, np.float64) - values)
    assert off.max() <= 1 and np.mean(off > 0) < 0.01  # of numbers halfway between two integers
    assert np.abs(np.asarray(made.values, int)).max() == storage.largest
    error = np.abs(np.asarray(dequantize(made, "float32")) - np.asarray(kernel, np.float32))
    assert np.all(error <= 0.5001 * np.repeat(scale, 64 // len(scale), axis=0))


@pytest.mark.parametrize("shape", [(32, 3), (64, 64), (1024, 512)])  # of wide ones a maximum may drop it
def test_a_column_of_zeros_stays_zero_and_nan_is_not_hidden(shape):
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    kernel[:, 1], kernel[3, 2] = 0, np.nan
    made = jax.jit(quantize_kernel, static_argnums=1)(kernel, INT8)
    made = jax.tree.map(np.asarray, made)
    assert made.scale[0, 1] == 0 and not np.any(made.values[:, 1]) and np.isnan(made.scale[0, 2])
    ones = np.ones((2, shape[0]), np.float32)
    for x in (ones, jax.jit(quantize_tokens)(ones)):
        y = np.asarray(jax.jit(product, static_argnums=2)(x, made, "float32"))
        assert np.all(y[:, 1] == 0) and np.all(np.isfinite(y[:, 0])) and np.all(np.isnan(y[:, 2]))


def test_tokens_become_integers_each_by_its_largest():
    x = np.random.default_rng(0).normal(size=(3, 5, 64)).astype(np.float32) * 10.0 ** np.arange(-2, 3)[:, None]
    x[1, 2] = 0
    made = jax.jit(quantize_tokens)(x)
    scale = np.abs(x.astype(np.float64)).max(-1, keepdims=True) / 127
    np.testing.assert_allclose(made.scale, scale, rtol=1e-6)
    assert np.abs(np.asarray(made.values * made.scale) - x).max(-1, keepdims=True).max() <= 0.5001 * scale.max()
    assert not np.any(made.values[1, 2])
    x[0, 0, 0] = np.nan
    assert np.isnan(quantize_tokens(jnp.asarray(x)).scale[0, 0, 0])


@pytest.mark.parametrize("features", [64, 3072])  # the latter's sums leave float32's exact integers
def test_integer_products_are_exact(features):
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-127, 128, shape, dtype=np.int8) for shape in ((2, 5, features), (features, 7)))
    x[0], w[:, 0] = 127, 127
    y = jax.jit(integer_product)(x, w)
    assert y.dtype == jnp.int32
    np.testing.assert_array_equal(np.asarray(y, np.int64), x.astype(np.int64) @ w.astype(np.int64))


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("storage, tokens", [(INT8, False), (INT8, True), (INT4, False)])
def test_dense_computes_with_integers(storage, tokens, dtype, tolerance):
    rng = np.random.default_rng(0)
    x, w, bias = (np.float32(rng.normal(size=shape)) for shape in ((2, 5, 64), (64, 24), (24,)))
    kernel = quantize_kernel(jnp.asarray(w), storage)
    given = quantize_tokens(jnp.asarray(x)) if tokens else jnp.asarray(x)
    params = {"kernel": kernel.values, "kernel_scale": kernel.scale, "bias": bias}
    y = Dense(24, ("embed", "mlp"), dtype).apply({"params": params}, given)
    same = np.asarray(given.values * given.scale) if tokens else x
    values, scale = np.asarray(kernel.values, np.float64), np.asarray(kernel.scale, np.float64)
    assert y.dtype == dtype
    scale = np.repeat(scale, 64 // len(scale), axis=0)
    wanted = same.astype(np.float64) @ (values * scale) + np.float64(bias)
    assert np.abs(np.asarray(y, np.float64) - wanted).max() <= tolerance * np.abs(wanted).max()


def test_integers_need_a_kernel_of_integers():
    x = quantize_tokens(jnp.ones((2, 8)))
    with pytest.raises(ValueError, match="its kernel is float32"):
        Dense(4, ("embed", "mlp")).apply({"params": {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}}, x)


def test_what_is_quantised_is_in_the_models():
    spec = PRESETS["5b"]
    known = {**abstract_params(spec.transformer), **abstract_params(spec.text_encoder)}
    known |= abstract_network(CogVideo2022Config())
    assert COLUMNS.keys() <= known.keys()
    kernels = {p for p in known if p.startswith("blocks/") and p.endswith("/kernel")}
    assert kernels == COLUMNS.keys()  # of the blocks, all
    assert not COLUMNS.keys() & abstract_params(spec.vae).keys()


@pytest.mark.parametrize("text", ["int5", "", "int4:0", "int4:-8", "int8:64", "int4:１", None])
def test_unknown_quantisations(text):
    with pytest.raises(ValueError, match="unknown quantisation .* int8, w8a8, w8a8qk, int4, int4:GROUP"):
        find_quantization(text)


def test_int4_has_a_size_of_groups():
    assert find_quantization("int4:128") is QUANTIZATIONS["int4"]
    assert find_quantization("int4:64").products == Storage("int4", 64)
    made = quantized(abstract_params(PRESETS["5b"].transformer), QUANTIZATIONS["int4"])
    assert made[KERNEL].dtype == "int4" and made[KERNEL + SCALE].shape == (42, 24, 12288)
    modulation = "blocks/norm1/modulation/kernel"
    assert made[modulation].dtype == "int8" and made[modulation + SCALE].shape == (42, 1, 18432)
    assert made[KERNEL].bytes((2, 3), "bfloat16") == 3 and made["out/kernel"].bytes((2, 3), "bfloat16") == 12


def rms(a, b):
    return np.sqrt(np.mean(np.square(np.asarray(a, np.float64) - b)) / np.mean(np.square(np.asarray(b, np.float64))))


def generated(model):
    return np.asarray(cx.generate(model, PROMPT, **HOW))


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b))


def full(*values):
    return pytest.param(*values, marks=pytest.mark.full)


@pytest.mark.parametrize("how, error", [full("int8", 0.03), full("w8a8", 0.06), full("int4:16", 0.4)])
def test_a_quantised_model_generates_nearly_the_same(small, how, error):
    folder, model = small("5b")
    loaded = cx.load(folder, quantize=how)
    storage = find_quantization(how)
    block = loaded.params["transformer"]["blocks"]["mlp"]["up"]
    values, scale = table(np.asarray(model.params["transformer"]["blocks"]["mlp"]["up"]["kernel"][0]), storage.products)
    assert block["kernel"].dtype == storage.products.dtype
    assert np.abs(np.asarray(block["kernel"][0], int) - values).max() <= 1
    np.testing.assert_allclose(block["kernel_scale"][0], scale, rtol=1e-6)
    assert 0 < rms(generated(loaded), generated(model)) < error


@pytest.mark.parametrize(
    "how, sizes",
    [
        full("w8a8", dict(fsdp=2, tensor=2)),
        full("w8a8", dict(fsdp=4, sp=2)),
        full("w8a8", dict(cfg=2, tensor=2)),
        full("int4:16", dict(fsdp=4, sp=2)),
        full("int4:16", dict(fsdp=2, tensor=2)),
    ],
)
def test_a_mesh_makes_the_same_integers_and_the_same_video(small, how, sizes):
    folder = small("5b")[0]
    mesh = cx.make_mesh(**sizes, devices=jax.devices()[: int(np.prod(list(sizes.values())))])
    spread, one = cx.load(folder, quantize=how, mesh=mesh), cx.load(folder, quantize=how)
    assert_identical(spread.params, one.params)
    up = spread.params["transformer"]["blocks"]["mlp"]["up"]
    if "tensor" in sizes:
        assert up["kernel_scale"].sharding.spec[2] == up["kernel"].sharding.spec[2] == "tensor"
    a, b = generated(spread), generated(one)
    # A rounding of an activation that goes the other way is one of its integers.
    assert np.abs(a - b).max() <= (1e-2 if how == "w8a8" else 1e-5) * np.abs(b).max()


@pytest.mark.full
def test_layers_are_quantised_one_at_a_time(small, monkeypatch):
    def load(mesh=None):
        return cx.load(small("5b")[0], quantize="int4:16", mesh=mesh, components=("transformer",)).params

    once = load()
    monkeypatch.setattr(placement, "STAGED_BYTES", 0)
    assert_identical(load(), once)
    assert_identical(load(cx.make_mesh(fsdp=4, tensor=2)), once)


def adapters(model, seed=0, rank=2):
    rng, kernel = np.random.default_rng(seed), model.params["transformer"]["blocks"]["mlp"]["up"]["kernel"]
    layers, features, out = kernel.shape
    a, b = (jnp.asarray(0.3 * rng.normal(size=s), jnp.float32) for s in ((layers, features, rank), (layers, rank, out)))
    return LoRA(adapters={KERNEL: {"a": a, "b": b}}, rank=rank, alpha=2.0 * rank)


@pytest.mark.full
def test_a_lora_is_merged_first_and_refused_afterwards(small):
    folder, model = small("5b")
    lora = stack([adapters(model), adapters(model, 1)], [1.0, 0.5])
    merged = merge(model.params["transformer"], lora.adapters, lora.scale)["blocks"]["mlp"]["up"]["kernel"]
    loaded = cx.load(folder, quantize="int8", lora=lora)
    up = loaded.params["transformer"]["blocks"]["mlp"]["up"]
    assert_identical(Kernel(up["kernel"], up["kernel_scale"]), jax.jit(quantize_kernel, static_argnums=1)(merged, INT8))
    mesh = cx.make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4])
    there = cx.load(folder, quantize="int8", lora=lora, mesh=mesh).params["transformer"]["blocks"]["mlp"]["up"]
    assert np.mean(np.asarray(there["kernel"]) != np.asarray(up["kernel"])) < 0.01
    with pytest.raises(ValueError, match="is quantised, to int8, and takes no LoRA; load it with the LoRA"):
        cx.load_lora(loaded, lora)
    assert_identical(cx.load(folder, lora=lora).params, cx.load_lora(model, lora).params)


def test_programs_of_a_quantised_model_are_its_own():
    plain, int8 = Compute(), Compute(quantize="int8")
    assert plain != int8 and int8.of("text_encoder") != plain.of("text_encoder") and int8.of("vae") == plain.of("vae")
    assert not int8.quantizes_tokens and dataclasses.replace(int8, quantize="w8a8").quantizes_tokens


def damaged(folder, target, key):
    """A copy of a model with one infinite number in a tensor of its transformer."""
    file = shutil.copytree(folder, target) / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors[key].reshape(-1)[-1] = np.inf
    save_file(tensors, file)
    return target


def test_a_kernel_with_numbers_that_are_not_finite_is_refused(small, tmp_path):
    bad = damaged(small("5b")[0], tmp_path / "bad", "transformer_blocks.0.ff.net.2.weight")
    with pytest.raises(ValueError, match="not finite in blocks/mlp/down/kernel of block 0, and cannot be quantised"):
        cx.load(bad, quantize="int8")
    with pytest.raises(ValueError, match="holds numbers that are not finite in transformer/blocks/mlp/down/kernel of"):
        write_quantized(bad, tmp_path / "new", find_quantization("int8"))


def test_a_lora_that_is_too_strong_is_blamed_not_the_model(small, tmp_path):
    folder, kernel, bias = small("5b")[0], "blocks/attention/q/kernel", "blocks/attention/q/bias"
    sides = {"a": np.full((1, 48, 2), 1e30, np.float32), "b": np.full((1, 2, 48), 1e30, np.float32)}
    strong = LoRA(adapters={kernel: sides}, rank=2, alpha=2.0)
    words = "with these LoRAs has numbers that are not finite in .*attention/q/kernel of block 0.*; lower the weights"
    with pytest.raises(ValueError, match=f"^{folder} {words}"):
        write_quantized(folder, tmp_path / "new", find_quantization("int8"), lora=strong)
    with pytest.raises(ValueError, match=f"^the transformer of small-5b {words}"):
        cx.load(folder, quantize="int8", lora=strong, components=("transformer",))
    largest = Difference(path=bias, values=np.full((1, 48), 3e38, np.float32), blocks=(0,))
    twice = LoRA(adapters={}, rank=1, alpha=1.0, differences=(largest, largest))  # each of them is finite
    with pytest.raises(ValueError, match=f"^{folder} with these LoRAs .* in transformer/{bias}; lower the weights"):
        write_quantized(folder, tmp_path / "new", find_quantization("int8"), lora=twice)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("layout, name", [("safetensors", ""), ("orbax", "transformer/blocks/mlp/down/bias")])
def test_what_is_not_quantised_is_finite_too(small, tmp_path, layout, name):
    key = "transformer_blocks.0.ff.net.2.bias"
    bad = damaged(small("5b")[0], tmp_path / "bad", key)
    with pytest.raises(ValueError, match=f"^{name or key} holds numbers that are not finite"):
        write_quantized(bad, tmp_path / "new", find_quantization("int8"), layout=layout)
    assert not (tmp_path / "new").exists()


def test_groups_that_do_not_divide_are_refused_before_anything_is_read(small):
    with pytest.raises(ValueError, match="int4's groups of 128 do not divide the 48 inputs of .*; int4:16 fits"):
        cx.load(small("5b")[0], quantize="int4")


def published(tree):
    return jax.tree.map(np.asarray, tree)


@pytest.fixture(scope="module")
def stored(small, tmp_path_factory):
    """`stored(how, layout)`: a folder of `cogvx quantize`; copy it before changing it."""
    made, top = {}, tmp_path_factory.mktemp("quantised")

    def make(how, layout):
        if (how, layout) not in made:
            folder = made[how, layout] = top / f"{how.replace(':', '-')}-{layout}"
            write_quantized(small("5b")[0], folder, find_quantization(how), layout=layout)
        return made[how, layout]

    return make


LAYOUTS = pytest.mark.parametrize("layout", ["safetensors", full("orbax")])
STORED = [("int4:16", "safetensors"), full("int8", "orbax"), full("int8", "safetensors"), full("int4:16", "orbax")]


@pytest.mark.parametrize("how, layout", STORED)
def test_a_stored_model_opens_like_any_other(small, stored, how, layout):
    folder = stored(how, layout)
    loaded, asked = cx.load(folder, verify=True), cx.load(small("5b")[0], quantize=how)
    assert loaded.compute.quantize == how and loaded.spec == asked.spec
    assert_identical(published(loaded.params), published(asked.params))
    mesh = cx.make_mesh(fsdp=4, tensor=2)
    spread = cx.load(folder, mesh=mesh)
    assert_identical(published(spread.params), published(asked.params))
    placed = cx.load(small("5b")[0], quantize=how, mesh=mesh).params
    assert jax.tree.all(jax.tree.map(lambda x, y: x.sharding == y.sharding, spread.params, placed))


def test_files_hold_integers_by_the_published_names(stored):
    from safetensors import safe_open

    key = "transformer_blocks.0.ff.net.0.proj.weight"
    for how, kind, inputs in (("int8", "I8", 48), ("int4:16", "U8", 24)):
        with safe_open(stored(how, "safetensors") / "transformer/diffusion_pytorch_model.safetensors", "np") as file:
            assert file.get_slice(key).get_dtype() == kind and file.get_slice(key).get_shape() == [192, inputs]
            assert file.get_slice(f"{key}_scale").get_shape() == [192, 1 if kind == "I8" else 3]
    half = sum(f.stat().st_size for f in stored("int4:16", "safetensors").rglob("transformer/*.safetensors"))
    assert half < sum(f.stat().st_size for f in stored("int8", "safetensors").rglob("transformer/*.safetensors"))


def test_int4_is_packed_in_pairs_and_back():
    rng = np.random.default_rng(0)
    x = rng.integers(-7, 8, (6, 5)).astype(ml_dtypes.int4)
    packed = PACKED.write(x)
    assert packed.dtype == np.uint8 and packed.shape == (5, 3)
    assert packed[2, 1] == (int(x[2, 2]) & 15) + 16 * (int(x[3, 2]) & 15)
    np.testing.assert_array_equal(PACKED.read(packed).astype(int), x.astype(int))


def test_a_lora_goes_into_a_stored_model_first(small, tmp_path):
    folder, model = small("5b")
    lora = adapters(model)
    write_quantized(folder, tmp_path / "merged", find_quantization("int8"), lora=lora)
    here = cx.load(folder, quantize="int8", lora=lora, components=("transformer",)).params
    there = cx.load(tmp_path / "merged", components=("transformer",)).params
    same = jax.tree.map(lambda x, y: np.mean(np.asarray(x) == np.asarray(y)), here, there)
    assert min(jax.tree.leaves(same)) > 0.98
    with pytest.raises(ValueError, match="is quantised, to int8, and takes no LoRA; give the original, with both"):
        cx.load(tmp_path / "merged", lora=lora)


def test_what_is_quantised_is_not_quantised_again(stored, tmp_path):
    folder = stored("int8", "safetensors")
    with pytest.raises(ValueError, match="is quantised already, to int8"):
        cx.load(folder, quantize="w8a8")
    with pytest.raises(ValueError, match="is quantised already, to int8; give the original"):
        write_quantized(folder, tmp_path / "again", find_quantization("int8"))
    assert not [*tmp_path.iterdir()]


def test_a_stored_model_becomes_orbax(stored, tmp_path):
    folder = stored("int8", "safetensors")
    write_orbax(folder, tmp_path / "orbax")
    assert_identical(published(cx.load(tmp_path / "orbax", verify=True).params), published(cx.load(folder).params))


@LAYOUTS
def test_damage_is_found(stored, tmp_path, layout):
    folder = shutil.copytree(stored("int8", layout), tmp_path / "model")
    large = max((f for f in folder.rglob("transformer/**/*") if f.is_file()), key=lambda f: f.stat().st_size)
    raw = bytearray(large.read_bytes())
    for at in range(len(raw) // 4, len(raw), len(raw) // 16):
        raw[at] ^= 1
    large.write_bytes(raw)
    with pytest.raises(ConversionError, match="model is damaged:\n  (changed|unreadable): transformer/"):
        cx.load(folder, verify=True)
    cx.load(folder, verify=True, components=("vae",))


def test_marks_that_are_not_ours_are_refused(small, stored, tmp_path):
    folder = shutil.copytree(stored("int8", "safetensors"), tmp_path / "model")
    mark = folder / "quantization.json"
    said = json.loads(mark.read_text())
    for change in ({"format": "cogvx quantized 9"}, {"quantization": "int3"}, {"quantization": None}):
        mark.write_text(json.dumps(said | change))
        with pytest.raises(ConversionError, match="cannot read .*quantization.json"):
            cx.load(folder)
    mark.write_text(json.dumps(said | {"quantization": "int4:16"}))
    with pytest.raises(ConversionError, match="misshapen: transformer_blocks.0.*weight is"):
        cx.load(folder)
    mark.write_text(json.dumps(said | {"sha256": {"../../outside": "0"}}))
    with pytest.raises(ConversionError, match="its digests are"):
        cx.load(folder, verify=True)
    mark.unlink()
    with pytest.raises(ConversionError, match="of another type: .* is int8, not floating-point"):
        cx.load(folder)
    plain = shutil.copytree(small("5b")[0], tmp_path / "plain")
    (plain / "quantization.json").write_text(json.dumps(said))
    with pytest.raises(ConversionError, match="of another type: .* is float32, not int8"):
        cx.load(plain)


def test_orbax_arrays_of_another_type_are_refused(small, stored, tmp_path):
    folder = shutil.copytree(stored("int8", "orbax"), tmp_path / "model")
    params = jax.tree.map(np.array, cx.load(folder).params["transformer"])
    params["blocks"]["mlp"]["up"]["kernel"] = np.float32(params["blocks"]["mlp"]["up"]["kernel"])
    shutil.rmtree(folder / "transformer" / "orbax")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(folder / "transformer" / "orbax", params)
    with pytest.raises(ConversionError, match="of another type: blocks/mlp/up/kernel is float32, not int8"):
        cx.load(folder)


def test_a_bucket_is_quantised_into_and_opened(small):
    system = fsspec.filesystem("memory")
    url = "memory://quantised/int8"
    try:
        write_quantized(small("5b")[0], url, find_quantization("int8"))
        asked = cx.load(small("5b")[0], quantize="int8")
        assert_identical(published(cx.load(url, verify=True).params), published(asked.params))
        spread = cx.load(url, mesh=cx.make_mesh(fsdp=4, tensor=2))
        assert_identical(published(spread.params), published(asked.params))
        with pytest.raises(FileExistsError, match="int8 is not empty; nothing was written"):
            write_quantized(small("5b")[0], url, find_quantization("int8"))
    finally:
        system.rm("/quantised", recursive=True)


def test_stored_programs_name_the_quantisation(small, stored):
    spec, mesh, devices = small("5b")[1].spec, None, jax.devices()[:1]
    said = [conditions(spec, Compute(quantize=how), mesh, devices) for how in (None, "int8", "w8a8")]
    assert [one["quantization"] for one in said] == ["none", "int8", "w8a8"]
    assert len({one["model"] for one in said}) == 3


@pytest.mark.full
def test_stored_programs_run_and_refuse_another_quantisation(small, stored, tmp_path):
    folder = small("5b")[0]
    cx.compile_programs(folder, tmp_path / "programs", quantize="w8a8", num_inference_steps=2)
    loaded = cx.load(folder, quantize="w8a8", programs=tmp_path / "programs")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(generated(loaded), generated(cx.load(folder, quantize="w8a8")))
    with pytest.raises(ValueError, match=r"of other quantization|are for quantization w8a8 \(here none\)|for model"):
        cx.load(folder, programs=tmp_path / "programs")
    cx.compile_programs(stored("int8", "orbax"), tmp_path / "int8", num_inference_steps=2)
    cx.load(stored("int8", "safetensors"), programs=tmp_path / "int8")


def test_weights_are_counted_by_what_they_become(small):
    spec = PRESETS["5b"]
    sizes = {how: weight_bytes(spec, Compute(dtype="bfloat16", quantize=how), None) for how in (None, "int8", "int4")}
    assert sizes[None]["vae"] == sizes["int4"]["vae"]
    half, quarter = (sizes[how]["transformer"] / sizes[None]["transformer"] for how in ("int8", "int4"))
    assert 0.50 < half < 0.51 and 0.28 < quarter < 0.31
    assert 0.50 < sizes["int8"]["text_encoder"] / sizes[None]["text_encoder"] < 0.53
    model = small("5b")[1]
    held = cx.load(small("5b")[0], quantize="int8").params
    for component, size in weight_bytes(model.spec, Compute(quantize="int8"), None).items():
        assert sum(x.nbytes for x in jax.tree.leaves(held[component])) == size


@pytest.mark.full
@pytest.mark.parametrize("how", ["w8a8", "int4:16"])
def test_the_report_is_of_the_model_it_becomes(small, how):
    folder, model = small("5b")
    found = make_report(folder, find_quantization(how))
    assert found.transformer.keys() == {"random", "drawn"} and found.text_encoder.keys() == {"drawn"}
    rows = found.transformer["random"]
    assert rows.keys() >= {"all", "attention/q", "attention/out", "mlp/down", "norm1/modulation", "block 0"}
    assert all(0 < error < 0.5 for error in rows.values()) and rows["all"] == rows["block 0"]
    given, t = random_inputs(model.spec), jnp.asarray(TIMES, jnp.float32)
    outputs = [
        np.asarray(m.transformer.apply({"params": m.params["transformer"]}, *given, t), np.float64)
        for m in (cx.load(folder, quantize=how), model)
    ]
    assert relative_error(*outputs) == pytest.approx(rows["all"], rel=0.02)


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, arguments)])
    cli.main()
    return capsys.readouterr()


def refused(monkeypatch, capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, capsys, *arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_the_commands(small, tmp_path, monkeypatch, capsys):
    folder, out = small("5b")[0], tmp_path / "int8"
    assert f"{out}: int8, 0.0" in run(monkeypatch, capsys, "quantize", folder, out).out
    assert "every array is what was written" in run(monkeypatch, capsys, "verify", out).out
    assert "quantised" in (said := run(monkeypatch, capsys, "info", out).out) and "int8" in said
    video = ("--out", tmp_path / "a.gif", "--steps", 2, "--no-progress")
    said = run(monkeypatch, capsys, "generate", PROMPT, "--model", folder, "--quantize", "w8a8", *video)
    assert "--quantize w8a8 is lossy: " in said.err and (tmp_path / "a.gif").exists()
    for arguments, problem in (
        (("quantize", folder), "give a folder to write, or --report"),
        (("quantize", folder, tmp_path / "b", "--to", "int2"), "unknown quantisation 'int2'"),
        (("quantize", out, tmp_path / "b"), "is quantised already, to int8"),
        (("quantize", folder, tmp_path / "b", "--to", "int4"), "int4:16 fits"),
        (("generate", PROMPT, "--model", out, "--quantize", "int8"), "is quantised already, to int8"),
        (("generate", PROMPT, "--model", out, "--lora", folder), "takes no LoRA; give the original"),
        (("plan", folder, "--quantize", "int9"), "unknown quantisation 'int9'"),
        (("compile", "--model", out, "--quantize", "int8", "--out", tmp_path / "p"), "is quantised already"),
        (
            ("train", "--model", out, "--data", folder, "--out", tmp_path / "run"),
            "cannot be trained; give the original",
        ),
    ):
        assert problem in refused(monkeypatch, capsys, *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gif", "a.gif.json", "int8"]


def test_a_mesh_gathers_integers(small):
    """Where weights are spread for storage alone, each layer's integers travel, not the numbers made of them."""
    model, mesh = small("5b")[1], cx.make_mesh(fsdp=4, devices=jax.devices()[:4])
    compute = Compute(dtype="bfloat16", quantize="int8")
    lowered = lower_step(model.spec, compute, mesh, (1, 3, 4, 6, 4), guided=True)
    gathered = [line for line in lowered.compile().as_text().splitlines() if " all-gather(" in line]
    kernels = {(48, 48), (48, 192), (192, 48)}
    kinds = {}
    for line in gathered:
        for kind, dims in re.findall(r"= (\w+)\[([\d,]+)\]", line):
            shape = tuple(int(n) for n in dims.split(",") if n != "1")
            kinds.setdefault(shape, set()).add(kind)
    assert kinds.keys() & kernels and all(kinds[shape] == {"s8"} for shape in kernels & kinds.keys())


def test_a_memory_mode_is_chosen_for_the_quantised_model(small, monkeypatch):
    asked = {}

    def choose(source, **how):
        asked.update(how)
        return None, "turns"

    monkeypatch.setattr("cogvx_jax.planning.load.choose", choose)
    model = cx.load(small("5b")[0], memory="auto", quantize="int8")
    assert asked["quantize"] == "int8" and model.memory.name == "turns" and model.compute.quantize == "int8"


def test_reuse_that_a_memory_mode_cannot_do_is_refused_before_loading(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("cogvx_jax.pipelines.model.load", None)
    out, folder = tmp_path / "v.mp4", small("5b")[0]
    arguments = ["generate", "a star", "--out", out, "--model", folder, "--memory", "offload", "--reuse", "pab:2"]
    monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, arguments), "--steps", "8"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2 and "memory mode offload runs in parts" in capsys.readouterr().err
