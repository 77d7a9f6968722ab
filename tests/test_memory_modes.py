"""Memory modes: the same video in less memory, components that take turns, texts that need no encoder again."""

import dataclasses
import functools
import gc
import os
import re
import shutil
import sys
import weakref
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

import cogvx_jax as cx
from cogvx_jax import cache
from cogvx_jax.cli import main as cli
from cogvx_jax.configs import Compute
from cogvx_jax.convert import ConversionError
from cogvx_jax.convert.sources import PublishedFolder, open_source
from cogvx_jax.models.lora import Difference, LoRA
from cogvx_jax.models.lora_blocks import add_to_block
from cogvx_jax.models.tiling import Tiling
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.nn.stacked import HOST, in_pieces, rows_after_rows, waits_on_host
from cogvx_jax.pipelines import memory, memory_modes, turns, weights
from cogvx_jax.pipelines import model as models
from cogvx_jax.pipelines.generate import encode_texts
from cogvx_jax.pipelines.memory_modes import MODES, RESIDENT, TURNS, check_slices, find_mode, modes_of
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
    """The components that are read from now on because their turn comes, in order."""
    found = []

    def noted(component):
        found.append(component.name)
        return component.load()

    monkeypatch.setattr(turns.Turns, "read", staticmethod(noted))
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


@pytest.mark.full
@pytest.mark.parametrize(
    "fields",
    [
        dict(rows_apart=True),
        dict(mlp_tokens=100),
        dict(rows_apart=True, mlp_tokens=128, streamed=True),
    ],
)
def test_blocks_in_portions_give_the_same_bits(predicted, fields):
    """Rows apart, a last piece that overlaps (306 tokens, 128 at a time), and kernels that wait on the host."""
    make, plain = predicted
    np.testing.assert_array_equal(make(**fields), plain)


@pytest.mark.parametrize(
    "kind, name",
    [("5b", name) for name in EXACT]
    + [pytest.param(kind, "offload", marks=pytest.mark.full) for kind in ("2b", "5b-i2v", "1.5-5b-i2v")],
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


MESHES = [dict(cfg=2, sp=2), dict(fsdp=2, tensor=2), dict(data=2, context=2)]


@pytest.mark.full
@pytest.mark.parametrize("sizes, name", [(m, n) for m in MESHES for n in EXACT])
def test_exact_modes_on_meshes(small, sizes, name):
    folder, _ = small("5b")
    mesh = cx.make_mesh(**sizes, devices=jax.devices()[:4])
    prompts = ["a red circle", "a blue star"]
    made = [cx.generate(cx.load(folder, mesh=mesh, memory=m), prompts, **OPTIONS) for m in ("resident", name)]
    np.testing.assert_allclose(*made, rtol=0, atol=2e-5)


@pytest.mark.parametrize("sizes, seen_rows, seen_tokens", [({}, 1, 10), (dict(data=2), 2, 10), (dict(sp=2), 1, 16)])
def test_portions_of_rows_and_tokens(sizes, seen_rows, seen_tokens):
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
        np.testing.assert_array_equal(jax.jit(lambda x: rows_after_rows(rows, x))(x), x * of_rows[:, None])
        np.testing.assert_array_equal(jax.jit(lambda x: in_pieces(tokens, x, 10))(x), x + 1)
    assert seen == [seen_rows, seen_tokens]


def test_components_take_turns(small, loads):
    folder, model = small("5b")
    there = cx.load(folder, memory="turns")
    assert loads == [] and list(there.params) == list(model.params) and len(there.params) == 3
    video = cx.generate(there, "a red circle", **OPTIONS | dict(output="video"))
    assert loads == ["text_encoder", "transformer", "vae"]
    assert there.params.held_bytes() == weights.device_bytes(model.params["vae"])
    np.testing.assert_array_equal(
        video.frames, cx.generate(model, "a red circle", **OPTIONS | dict(output="video")).frames
    )
    there.params.free()
    assert there.params.held_bytes() == 0


def test_a_component_that_is_freed_leaves_no_arrays(small):
    there = cx.load(small("5b")[0], memory="turns")
    kernel = weakref.ref(there.params["transformer"]["blocks"]["mlp"]["up"]["kernel"])
    assert kernel() is not None
    there.params["vae"]
    gc.collect()
    assert kernel() is None


@pytest.mark.full
def test_an_image_is_encoded_before_the_transformer_comes(small, loads):
    folder, model = small("5b-i2v")
    image = image_of("5b-i2v")
    made = [cx.generate(m, "a red circle", **OPTIONS | image) for m in (model, cx.load(folder, memory="turns"))]
    np.testing.assert_array_equal(*made)
    assert loads == ["text_encoder", "vae", "transformer"]


def test_damage_is_found_before_anything_is_computed(small, tmp_path):
    folder = shutil.copytree(small("5b")[0], tmp_path / "model")
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ConversionError, match="truncated"):
        cx.load(folder, memory="turns")


def test_a_second_run_reads_no_text_encoder(small, loads):
    folder, _ = small("5b")
    first = cx.generate(cx.load(folder, memory="turns"), "a red circle", **OPTIONS)
    loads.clear()
    cx.generate(cx.load(folder, memory="offload"), "a red circle", **OPTIONS | dict(num_inference_steps=1))
    assert loads[0] == "text_encoder"  # which computes in another way, where rounding may differ
    loads.clear()
    again = cx.generate(cx.load(folder, memory="turns"), "a red circle", **OPTIONS)
    assert loads == ["transformer"]
    np.testing.assert_array_equal(again, first)
    loads.clear()
    cx.generate(cx.load(folder, memory="turns"), "a blue star", **OPTIONS | dict(num_inference_steps=1))
    assert loads[0] == "text_encoder"


def kept_texts():
    return sorted((cache.folder() / "texts").iterdir())


@pytest.mark.parametrize("damage", ["cut", "other shape", "not finite", "folder"])
def test_texts_that_are_damaged_are_encoded_again(small, loads, damage):
    folder, model = small("5b")
    request = check_request(model.spec, "a red circle")
    there = cx.load(folder, memory="turns")
    wanted = encode_texts(there, request)
    file = kept_texts()[0]
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-4])
    elif damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        states = np.zeros((3, 3)) if damage == "other shape" else np.full((24, 16), np.nan, np.float32)
        save_file({"states": states}, file)
    there.params.free()
    loads.clear()
    made = encode_texts(there, request)
    assert loads == ["text_encoder"]
    jax.tree.map(np.testing.assert_array_equal, made, wanted)


@pytest.mark.full
def test_texts_of_another_encoder_are_encoded_again(small, loads, tmp_path):
    folder = shutil.copytree(small("5b")[0], tmp_path / "model")
    request = check_request(small("5b")[1].spec, "a red circle")
    encode_texts(cx.load(folder, memory="turns"), request)
    before = encoder_digest(open_source(folder))
    os.utime(folder / "text_encoder" / "model.safetensors", (1e9, 1e9))
    assert (
        encoder_digest(open_source(folder)) != before and encoder_digest(PublishedFolder("gs://bucket/model")) is None
    )
    loads.clear()
    encode_texts(cx.load(folder, memory="turns"), request)
    assert loads == ["text_encoder"]


def test_texts_that_cannot_be_kept_do_no_harm(small, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder, model = small("5b")
    request = check_request(model.spec, "a red circle")
    made = [encode_texts(m, request) for m in (model, cx.load(folder, memory="turns"))]
    jax.tree.map(np.testing.assert_array_equal, *made)


def lora_of(model):
    """Of a stacked kernel and of one that is not, with differences of a norm and of one block's bias."""
    rng, params = np.random.default_rng(0), traverse_util.flatten_dict(model.params["transformer"], sep="/")

    def normal(*shape):
        return jnp.float32(rng.normal(size=shape))

    adapters = {}
    for path in ("blocks/attention/q/kernel", "patch/kernel"):
        *layers, features, out = params[path].shape
        adapters[path] = {"a": normal(*layers, features, 4), "b": normal(*layers, 4, out)}
    bias = params["blocks/mlp/up/bias"].shape
    differences = (
        Difference(path="norm_final/scale", values=normal(*params["norm_final/scale"].shape)),
        Difference(path="blocks/mlp/up/bias", values=normal(1, *bias[1:]), blocks=(0,)),
    )
    return LoRA(adapters=adapters, rank=4, alpha=2.0, differences=differences)


@pytest.mark.parametrize("name", ["turns", "offload"])
def test_adapters_are_added_while_a_component_is_read(small, loads, name):
    folder, model = small("5b")
    lora, there = lora_of(model), cx.load(folder, memory=name)
    tuned = cx.load_lora(cx.load_lora(there, lora, 0.5), lora, 0.25)
    wanted = cx.load_lora(cx.load_lora(model, lora, 0.5), lora, 0.25)
    assert loads == []
    jax.tree.map(np.testing.assert_array_equal, tuned.params["transformer"], wanted.params["transformer"])
    jax.tree.map(np.testing.assert_array_equal, there.params["transformer"], model.params["transformer"])
    assert tuned.params.held_bytes() == there.params.held_bytes()  # they share the place


def test_adapters_are_added_to_the_blocks_of_a_mesh(small):
    folder, model = small("5b")
    there = cx.load(folder, memory="turns", mesh=cx.make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4]))
    made = [cx.load_lora(m, lora_of(model), 0.5).params["transformer"] for m in (there, model)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6), *made)


def test_a_difference_of_some_blocks_reaches_those_alone():
    values = np.arange(8, dtype=np.float32).reshape(2, 4)
    lora = LoRA(adapters={}, rank=1, alpha=1.0, differences=(Difference(path="x", values=values, blocks=(3, 1)),))
    whole = np.zeros((4, 4), np.float32)
    whole[[3, 1]] = 0.5 * values
    for layers in (slice(None), slice(1, 2), slice(2, 4), slice(0, 1)):
        made = np.zeros_like(whole[layers, 1:3])
        add_to_block(((lora, 0.5),), "x", (layers, slice(1, 3)), made)
        np.testing.assert_array_equal(made, whole[layers, 1:3])


def test_the_decoder_may_have_what_the_others_leave(small, monkeypatch):
    """The check before sampling counts the VAE's weights, which are not there yet, and not those that will be freed."""
    folder, model = small("5b")
    shape, there = (1, 3, 4, 6, 4), cx.load(folder, memory="turns")
    needed, vae = memory.decode_bytes(model, shape), weights.device_bytes(model.params["vae"])
    assert memory.decode_bytes(there, shape) == needed
    there.params["transformer"]
    held = there.params.held_bytes()
    monkeypatch.setattr(memory, "free_bytes", lambda: needed + vae - held)
    memory.check_decode(there, shape)
    monkeypatch.setattr(memory, "free_bytes", lambda: needed + vae - held - 1)
    with pytest.raises(ValueError, match="decoding 32x48 takes"):
        memory.check_decode(there, shape, strips=1)


@pytest.mark.parametrize("mode, tiling", [("turns+tiles", False), ("turns", True)])
def test_tiles_are_decoded_in_strips_where_they_do_not_fit(small, monkeypatch, mode, tiling):
    """What is asked is whether the largest tile fits."""
    model, seen = cx.load(small("5b")[0], memory=mode, components=()), set()
    model = dataclasses.replace(model, memory=dataclasses.replace(model.memory, strips=(1, 4, 8)))

    def decode_bytes(model, shape, padding):
        seen.add((shape, padding))
        return 100 // model.compute.strips

    monkeypatch.setattr(memory, "decode_bytes", decode_bytes)
    monkeypatch.setattr(memory, "_free_for", lambda model: 30)
    check = functools.partial(memory.check_decode, model, (1, 3, 99, 98, 4), 1, tiling=tiling)
    assert check().compute.strips == 4
    height, width = Tiling.of(model.spec.vae).tile
    assert seen == {((1, 3, height, width, 4), 1)}
    monkeypatch.setattr(memory, "_free_for", lambda model: 10)
    with pytest.raises(ValueError, match="decoding tiles of .* in 8 strips of rows, .* use more devices") as said:
        check()
    assert "--tiling" not in str(said.value)


def test_weights_that_do_not_fit_together_take_turns(small, monkeypatch):
    folder, model = small("5b")
    total = sum(weights.weight_bytes(model.spec, model.compute, None).values())
    monkeypatch.setattr(models, "free_bytes", lambda: total)
    assert cx.load(folder).memory == RESIDENT
    monkeypatch.setattr(models, "free_bytes", lambda: total - 1)
    with pytest.warns(UserWarning, match="the weights of small-5b take .* one after the other"):
        assert cx.load(folder).memory == TURNS
    assert cx.load(folder, components=("vae",)).memory == RESIDENT
    assert cx.load(folder, memory="resident").memory == RESIDENT


def test_unknown_modes_and_devices_that_cannot(small, monkeypatch):
    with pytest.raises(
        ValueError, match="unknown memory mode 'less'; the known ones are resident, turns, rows, chunks"
    ):
        cx.load("nothing-is-read", memory="less")
    device = SimpleNamespace(device_kind="a chip", addressable_memories=lambda: [SimpleNamespace(kind="device")])
    with pytest.raises(ValueError, match="a chip has no pinned_host memory, only device; use --memory chunks"):
        weights.check_streams(device)


def test_stacks_of_integers_do_not_wait_beside_a_tpu():
    """Its compiler brings the whole stack for each layer: libtpu 0.0.42.1."""
    compute = Compute(quantize="int8")
    for mode in map(find_mode, ("offload", "offload+tiles")):
        with pytest.raises(
            ValueError, match=f"{re.escape(mode.name)} is not for int8 on TPUs, .*; use --memory chunks"
        ):
            check_slices(mode, compute, "tpu")
        check_slices(mode, compute, "cpu")
        check_slices(mode, Compute(), "tpu")
    check_slices(find_mode("chunks"), compute, "tpu")


@pytest.mark.full
def test_programs_of_another_mode_are_refused(small, tmp_path):
    folder, _ = small("5b")
    cx.compile_programs(folder, tmp_path / "programs", memory="rows")
    with pytest.raises(ValueError, match=r"memory mode rows \(here resident or turns\)"):
        cx.load(folder, programs=tmp_path / "programs")
    assert cx.load(folder, programs=tmp_path / "programs", memory="rows").programs is not None


def test_every_mode_has_words_and_its_programs_a_name():
    assert [mode.name for mode in MODES if not mode.exact] == [f"{name}+tiles" for name in EXACT]
    assert all(mode.exact != mode.tiling and mode.changes and mode.costs for mode in MODES)
    plain = cx.load("tiny", components=()).compute
    words = [modes_of(mode.of(plain)) for mode in memory_modes.MODES if mode.exact]
    assert words == ["resident or turns", "resident or turns", "rows", "chunks", "offload"]


def test_the_sizes_of_tiles():
    tiling = Tiling(tile=(30, 45), stride=(25, 36), scale=8)
    assert tiling.sizes(20, 45) == [(20, 45)] and tiling.count(20, 45) == 1
    assert tiling.sizes(60, 90) == [(30, 45), (30, 18), (10, 45), (10, 18)] and tiling.count(60, 90) == 9


def test_auto_is_the_first_where_nobody_says_how_much_memory_there_is(small, capsys):
    assert cx.load(small("5b")[0], memory="auto").memory == RESIDENT
    assert "how much memory a device has is not known here" in capsys.readouterr().out


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, arguments)])
    cli.main()


@pytest.mark.full
def test_a_prompts_file_encodes_all_texts_first(small, loads, tmp_path, monkeypatch, capsys):
    folder, _ = small("5b")
    (tmp_path / "prompts.txt").write_text("a red circle\na blue star\n")
    asked = ["--model", folder, "--prompts-file", tmp_path / "prompts.txt", "--steps", 1, "--memory", "turns"]
    run(monkeypatch, "generate", "--out", tmp_path / "a.gif", *asked)
    assert loads == ["text_encoder", "transformer", "vae", "transformer", "vae"]
    loads.clear()
    run(monkeypatch, "generate", "--out", tmp_path / "a.gif", *asked[:-1], "resident")
    assert loads == [] and "2 of 2 videos are whole already" in capsys.readouterr().err  # an exact mode makes the same
    run(monkeypatch, "generate", "--out", tmp_path / "a.gif", *asked[:-1], "turns+tiles", "--size", "32x48")
    assert "whole already" not in capsys.readouterr().err


def test_an_unknown_mode_is_one_sentence(monkeypatch, capsys):
    for verb in (["generate", "x"], ["plan", "2b"], ["compile", "--out", "x"]):
        with pytest.raises(SystemExit) as stopped:
            run(monkeypatch, *verb, "--memory", "less")
        assert stopped.value.code == 2
        assert "unknown memory mode 'less'; the known ones are resident" in capsys.readouterr().err
