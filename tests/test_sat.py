"""SAT's checkpoints in and out: recorded ones to the bit, every kind of model, and every way in which they lie."""

import dataclasses
import json
import shutil
from pathlib import Path

import fsspec
import jax
import ml_dtypes
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.numpy import save_file
from small_files import STATES, deepspeed, fine_tuned_file, read_all, small_spec, weights, write_small
from torch_file import save

import cogvx_jax as cx
from cogvx_jax.convert import ConversionError, load_params, open_lora
from cogvx_jax.convert.checkpoint import component_parameters, published_tensors
from cogvx_jax.convert.containers import open_tensors
from cogvx_jax.convert.infer import infer_text_encoder, infer_transformer, infer_vae
from cogvx_jax.convert.inspection import inspect
from cogvx_jax.convert.safetensors import Tensor
from cogvx_jax.convert.sat import PREFIXES, read_sat, write_sat
from cogvx_jax.convert.sources import open_source, read_spec
from cogvx_jax.convert.targets import write_model
from cogvx_jax.convert.tensors import Stored
from cogvx_jax.convert.torch_writer import write_torch
from cogvx_jax.given import Given
from cogvx_jax.models import vae as vaes
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.models.vae import VAE
from cogvx_jax.pipelines.model import resolve
from cogvx_jax.pipelines.weights import load_component
from cogvx_jax.presets import PRESETS

GOLDEN = Path(__file__).parent / "golden"
NATIVE = dict(sample_height=8, sample_width=12, sample_frames=9, text_length=8)
KINDS = ["2b", "5b", "5b-i2v", "1.5-5b", "1.5-5b-i2v"]


def assert_identical(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert (a[key].dtype, a[key].shape) == (b[key].dtype, b[key].shape), key
        assert a[key].tobytes() == b[key].tobytes(), key


def arrays_of(tensors):
    return {tensor.key: tensor.make() for tensor in tensors}


# Recorded checkpoints.


@pytest.mark.parametrize(
    "file, component, seed, dtype, count",
    [
        ("sat_5b/transformer/1000/mp_rank_00_model_states.pt", "transformer", 400, ml_dtypes.bfloat16, 64),
        ("sat_5b/vae/3d-vae.pt", "vae", 401, np.float32, 236),
    ],
)
def test_recorded_weights_are_read_and_written_to_the_bit(file, component, seed, dtype, count):
    theirs = open_tensors(GOLDEN / file)
    found = read_all(read_sat(theirs, component))
    drawn = weights({key: array.shape for key, array in found.items()}, seed)
    assert len(found) == count
    assert_identical(found, {key: array.astype(dtype) for key, array in drawn.items()})
    back = write_sat([Tensor.of(key, array) for key, array in found.items()], component)
    prefix = PREFIXES[component] if component == "transformer" else ""
    wanted = {key.removeprefix(prefix): array for key, array in read_all(theirs).items() if "loss" not in key}
    assert_identical(arrays_of(back), wanted)


@pytest.mark.parametrize("kind, position", [("sat_5b", "rope"), ("sat_2b_lora", "sincos")])
def test_recorded_transformers_answer_as_recorded(kind, position):
    """The LoRA is merged with its scale of 1 / rank: without it the answer is off by 1.8, with scale 1 by 4.1."""
    with np.load(GOLDEN / kind / "expected.npz") as file:
        golden = dict(file)
    source = open_source(GOLDEN / kind / "transformer" / "1000", Given(position=position, **NATIVE))
    spec = source.spec()
    params = load_params(source, spec, "transformer")
    latents = golden["latents"].transpose(0, 1, 3, 4, 2)
    run = jax.jit(Transformer(spec.transformer).apply)
    v = np.asarray(run({"params": params}, latents, golden["text"], golden["timestep"]))
    np.testing.assert_allclose(v.transpose(0, 1, 4, 2, 3), golden["v"], rtol=0, atol=1e-4)


@pytest.mark.full  # its program takes seconds to compile
def test_the_recorded_vae_decodes_as_recorded():
    with np.load(GOLDEN / "sat_5b" / "vae_expected.npz") as file:
        golden = dict(file)
    tensors = read_sat(open_tensors(GOLDEN / "sat_5b" / "vae" / "3d-vae.pt"), "vae")
    document = infer_vae(tensors, PRESETS["5b"])
    assert document["block_out_channels"] == [4, 4, 4, 4] and document["layers_per_block"] == 1
    cfg = dataclasses.replace(PRESETS["5b"].vae, channels=(4, 4, 4, 4), layers=1, latent_channels=2, groups=2)
    spec = dataclasses.replace(PRESETS["5b"], vae=cfg)
    files = open_source(GOLDEN / "sat_5b" / "transformer" / "1000", Given(vae=str(GOLDEN / "sat_5b/vae/3d-vae.pt")))
    params = load_params(files, spec, "vae")
    vae = VAE(cfg)
    run = jax.jit(lambda p, z, cache: vae.apply({"params": p}, z, cache, method="decode_batch"))
    pixels = vaes.decode(vae, params, golden["latents"].transpose(0, 2, 3, 4, 1), decode_batch=run)
    error = np.asarray(pixels).transpose(0, 4, 1, 2, 3) - golden["pixels"]
    assert np.abs(error).max() <= 1e-4 * np.abs(golden["pixels"]).max()


# Every kind of model.


@pytest.mark.parametrize("kind, count", zip(KINDS, [556, 772, 773, 772, 776], strict=True))
def test_sizes_of_the_published_models(kind, count):
    """Their names and shapes make SAT's, 18 a layer and 16, and back; and the shapes tell the model."""
    spec = PRESETS[kind]
    tensors = [
        Tensor(key, p.their_shape, np.dtype(np.float16), lambda: pytest.fail("a tensor was read"))
        for p in component_parameters(spec, "transformer")
        for key in p.keys
    ]
    theirs = write_sat(tensors, "transformer")
    assert len(theirs) == count
    entries = {PREFIXES["transformer"] + t.key: Stored(t.shape, t.dtype, "x.pt", 0) for t in theirs}
    back = read_sat(open_tensors(GOLDEN / "sat_5b/vae/3d-vae.pt").of(entries), "transformer")
    assert {key: entry.shape for key, entry in back.items()} == {t.key: t.shape for t in tensors}
    document, like = infer_transformer(back)
    assert like == spec
    assert document["num_layers"] == spec.transformer.layers


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """kind -> the folder of a small model of random numbers, and of the same in SAT's layout."""
    made = {}

    def make(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp("sat") / kind
            published = write_small(folder / "published", small_spec(kind))
            write_model(open_source(published), folder / "sat", "sat")
            made[kind] = published, folder / "sat"
        return made[kind]

    return make


@pytest.mark.parametrize(
    "kind", [kind if kind in ("5b", "1.5-5b-i2v") else pytest.param(kind, marks=pytest.mark.full) for kind in KINDS]
)
def test_every_kind_goes_to_sat_and_back(saved, kind, tmp_path):
    published, sat = saved(kind)
    assert read_spec(sat) == read_spec(published)
    for component in ("transformer", "vae", "text_encoder"):
        spec = read_spec(sat)
        ours, theirs = (published_tensors(open_source(place), spec, component) for place in (published, sat))
        assert_identical(arrays_of(ours), arrays_of(theirs))
    write_model(open_source(sat), tmp_path / "back", "diffusers")
    write_model(open_source(tmp_path / "back"), tmp_path / "sat", "sat")
    for file in (f"transformer/1/{STATES}", "vae/3d-vae.pt"):
        assert (tmp_path / "sat" / file).read_bytes() == (sat / file).read_bytes()


@pytest.mark.parametrize("layout", ["single", "diffusers", "orbax"])
def test_other_layouts_open_as_the_same_model(saved, layout, tmp_path):
    published, sat = saved("5b")
    write_model(open_source(sat), tmp_path / "new", layout)
    source, spec = open_source(tmp_path / "new"), read_spec(published)
    assert source.spec() == spec and source.inferred() == []
    for component in ("transformer", "vae", "text_encoder"):
        wanted = arrays_of(published_tensors(open_source(published), spec, component))
        assert_identical(arrays_of(published_tensors(source, spec, component)), wanted)
    assert sorted(p.name for p in Path(source.tokenizer).iterdir()) == sorted(
        p.name for p in (published / "tokenizer").iterdir()
    )


def test_a_folder_of_sat_is_a_model(saved, capsys):
    published, sat = saved("5b")
    whole, loaded = cx.load(published), cx.load(sat)
    assert loaded.spec == whole.spec and loaded.compute == whole.compute
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.params, whole.params))
    assert loaded.tokenizer("a red circle").input_ids == whole.tokenizer("a red circle").input_ids
    assert "schedule" not in capsys.readouterr().err  # a configuration beside it tells all of it


def test_blocks_of_sharded_devices(saved):
    """qkv is one tensor of SAT's; each device gets its block of the published ones."""
    published, sat = saved("2b")
    mesh = cx.make_mesh(fsdp=4, tensor=2)
    spec = read_spec(sat)
    found, wanted = (load_component(place, spec, "transformer", "float32", mesh) for place in (sat, published))
    assert jax.tree.all(jax.tree.map(np.array_equal, found, wanted))


def test_a_bucket_is_read_in_ranges(saved, monkeypatch):
    """No file is read whole: the pickle, the list of entries, and the numbers."""
    published, sat = saved("5b")
    system = fsspec.filesystem("memory")
    system.put(str(sat), "/bucket/sat", recursive=True)
    read, spans = MemoryFileSystem.cat_file, []

    def noted(self, path, start=None, end=None, **options):
        if path.endswith(".pt"):
            spans.append((path, start, end))
        return read(self, path, start, end, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", noted)
    monkeypatch.setattr(MemoryFileSystem, "open", lambda *_, **__: pytest.fail("a file was opened whole"))
    try:
        assert resolve("memory://bucket/sat/") == "memory://bucket/sat"
        loaded, wanted = cx.load("memory://bucket/sat"), cx.load(published)
        assert loaded.spec == wanted.spec and all(start is not None for _, start, _ in spans)
        assert jax.tree.all(jax.tree.map(np.array_equal, loaded.params, wanted.params))
        file = open_source(f"memory://bucket/sat/transformer/1/{STATES}", Given(position="rope"))
        assert file.spec().transformer.width == 48
    finally:
        system.rm("/bucket", recursive=True)


# Ways in which they lie, and what files do not tell.


@pytest.fixture
def bare(saved, tmp_path):
    """A folder of SAT's without any configuration, to change."""
    folder = Path(shutil.copytree(saved("5b")[1], tmp_path / "bare"))
    for path in folder.rglob("*.json"):
        if path.parent.name != "t5-v1_1-xxl":
            path.unlink()
    return folder


GIVEN = dict(sample_height=4, sample_width=6, sample_frames=9, text_length=24, scaling_factor=0.7, groups=2)


def test_what_is_inferred_is_printed_and_the_rest_can_be_given(saved, bare, capsys):
    with pytest.raises(
        ValueError, match="its width 48 is that of no published model, .* give position, sincos or rope"
    ):
        cx.load(bare)
    spec = cx.load(bare, position="rope", **GIVEN, components=("transformer",)).spec
    original = read_spec(saved("5b")[0])
    for part in ("transformer", "vae", "schedule"):
        assert getattr(spec, part) == getattr(original, part)
    said = capsys.readouterr().err
    assert f"cogvx: {bare}: transformer: as given: sample_height 4, sample_width 6, sample_frames 9" in said
    assert "from its tensors: num_layers 1, num_attention_heads 3, attention_head_dim 16, in_channels 4" in said
    assert (
        "vae: as given: scaling_factor 0.7, norm_num_groups 2; from its tensors: block_out_channels [4, 4, 8, 8]"
        in said
    )
    assert "schedule: as CogVideoX-5b has it: snr_shift_scale 1.0" in said
    assert read_spec(open_source(bare, Given(position="sincos", snr_shift=2.0, groups=2))).schedule.snr_shift == 2.0
    with pytest.raises(TypeError, match="unknown option 'positions' of a model; the known ones are text_encoder, vae"):
        cx.load(bare, positions="rope")
    with pytest.raises(ConversionError, match="text_length|max_text_seq_length 0 is not supported, only 1 to 8192 is"):
        cx.load(bare, position="rope", groups=2, text_length=0)


def test_a_configuration_beside_a_file_is_read(saved, bare):
    published, _ = saved("5b")
    file = bare / "transformer" / "1" / STATES
    shutil.copy(published / "transformer" / "config.json", file.parent / "config.json")
    given = Given(vae=str(bare / "vae" / "3d-vae.pt"), groups=2, scaling_factor=0.7)
    spec = open_source(file, given).spec()
    assert spec.transformer == read_spec(published).transformer
    for name in ("config.json", f"{file.stem}.json"):  # of another model
        for text in ('{"model_type": "umt5"}', '{"_class_name": "ConsisIDTransformer3DModel"}'):
            (file.parent / name).write_text(text)
            kind = text.split('"')[3]
            with pytest.raises(ValueError, match=f"{name} says that the weights beside it are '{kind}', which is not"):
                open_source(file, given).spec()
    file.with_suffix(".json").unlink()
    shutil.copy(published / "vae" / "config.json", file.parent)  # of another part
    with pytest.raises(ValueError, match="give position"):
        open_source(file, given).spec()
    shutil.copy(published / "transformer" / "config.json", file.with_suffix(".json"))
    assert open_source(file, given).spec() == spec
    file.with_suffix(".json").write_text('{"use_rotary_positional_embeddings": true, "max_text_seq_length": 99}')
    assert open_source(file, given).spec().transformer.text_length == 99
    file.with_suffix(".json").write_text('{"use_rotary_positional_embeddings": true, "trainedWords": ["x"]}')
    with pytest.raises(ValueError, match="give position"):  # of others' programs
        open_source(file, given).spec()
    file.with_suffix(".json").write_text("[]")
    with pytest.raises(ValueError, match="mp_rank_00_model_states.json: not a JSON object"):
        open_source(file, given).spec()


def test_a_file_a_tag_or_the_folder_with_latest(saved, bare):
    spec = read_spec(open_source(bare, Given(position="rope", **GIVEN)))
    for place in (bare / "transformer", bare / "transformer" / "1", bare / "transformer" / "1" / STATES):
        source = open_source(resolve(place), Given(position="rope", vae=str(bare / "vae/3d-vae.pt"), **GIVEN))
        assert source.spec().transformer == spec.transformer
        assert len(source.tensors("transformer")) == 24 + 16


def test_tags_and_what_is_missing(saved, bare):
    folder = bare / "transformer"
    shutil.copytree(folder / "1", folder / "1-ema")
    given = Given(position="rope", groups=2)
    assert open_source(folder / "1-ema", given).spec().kind == "t2v"
    (folder / "latest").write_text("1-ema\n")
    assert open_source(bare, given).places()["transformer"] == folder / "1-ema" / STATES
    for text, words in [
        ("7", r"latest names '7', which is not there; give one of the folders in .*: 1, 1-ema"),
        ("../x", "names no tag but '../x'"),
        ("", "names no tag but ''"),
        ("x" * 300, "names no tag: 300 bytes"),
        ("\xff", "names no tag"),
    ]:
        (folder / "latest").write_text(text, encoding="latin-1")
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            open_source(bare, given).spec()
    (folder / "latest").unlink()
    for place in (bare, folder):
        with pytest.raises(FileNotFoundError, match=r"the tags 1, 1-ema and no latest, .* give .* such as .*/1$"):
            open_source(resolve(place), given).spec()
    (folder / "1").rename(bare / "kept")
    assert open_source(folder, given).places()["transformer"] == folder / "1-ema" / STATES  # the only one
    (bare / "kept").rename(folder / "1")
    (folder / "latest").write_text("1")
    (folder / "1" / "mp_rank_01_model_states.pt").touch()
    with pytest.raises(ValueError, match="is one of 2 model-parallel ranks that a model is split over; merge them"):
        open_source(bare, given).spec()
    (folder / "1" / STATES).rename(folder / "1" / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    (folder / "1" / "mp_rank_01_model_states.pt").unlink()
    with pytest.raises(ValueError, match="was saved by ZeRO's third stage, which is not read; convert it on"):
        open_source(bare, given).spec()


def share(arrays, rank, ranks):
    """What a model-parallel rank of SAT's has of them."""
    found = {}
    for key, array in arrays.items():
        if "query_key_value" in key or "dense_h_to_4h" in key:
            parts = np.split(array, 3 if "query_key_value" in key else 1)
            found[key] = np.concatenate([np.split(part, ranks)[rank] for part in parts])
        elif key.endswith(("attention.dense.weight", "dense_4h_to_h.weight")):
            found[key] = np.split(array, ranks, 1)[rank]
        else:
            found[key] = array
    return found


def test_one_rank_of_a_split_model_is_refused(saved, tmp_path):
    """As a file among others, and alone under any name: its shapes tell."""
    published, sat = saved("5b")
    arrays = read_all(open_tensors(sat / "transformer" / "1" / STATES))
    names = [f"mp_rank_0{rank}_model_states.pt" for rank in range(2)]
    for rank, name in enumerate([*names, "alone.pt"]):
        tensors = [Tensor.of(key, array) for key, array in share(arrays, rank % 2, 2).items()]
        write_torch(tmp_path / name, tensors, "module")
    shutil.copy(published / "transformer" / "config.json", tmp_path / "config.json")
    for name in (*names, "alone.pt"):
        words = f"{tmp_path / name} is one of 2 model-parallel ranks that a model is split over; merge them with SAT's"
        with pytest.raises(ValueError, match=f"^{words}"):
            cx.load_spec(tmp_path / name)
    assert words in str(inspect(tmp_path / "alone.pt")["model"])
    for read in (inspect, open_lora):
        with pytest.raises(ValueError, match="is one of 2 model-parallel ranks"):
            read(tmp_path / names[1])
    (tmp_path / names[0]).unlink()
    for name in (names[1], "z3_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=f"{name} (is one of 2 model|was saved by ZeRO's third stage)"):
            cx.load_spec(tmp_path / name)


def test_parts_that_are_missing_are_named_before_any_is_read(bare, monkeypatch):
    shutil.rmtree(bare / "t5-v1_1-xxl")
    with pytest.raises(FileNotFoundError, match=f"{bare} holds no text encoder; give text_encoder, a file or a folder"):
        cx.load(bare, position="rope", **GIVEN)
    (bare / "vae" / "3d-vae.pt").unlink()
    with pytest.raises(FileNotFoundError, match=f"{bare} holds no vae; give vae, a file or a folder"):
        cx.load(bare, position="rope", **GIVEN, components=("transformer", "vae"))
    assert cx.load(bare, position="rope", **GIVEN, components=("transformer",)).params.keys() == {"transformer"}


@pytest.fixture
def fine_tuned(saved, tmp_path):
    """A file as SAT saves it after training: transformer, VAE and T5 in one, each after its prefix."""
    published, sat = saved("5b")
    return published, tmp_path / "run", fine_tuned_file(published, sat, tmp_path / "run")


def test_a_fine_tuned_file_holds_the_vae_and_t5_too(fine_tuned):
    published, run, _ = fine_tuned
    whole = cx.load(published)
    given = dict(position="rope", **GIVEN, tokenizer=published / "tokenizer")
    for place in (run, run / "500" / STATES):
        loaded = cx.load(place, **given)
        assert loaded.spec.transformer == whole.spec.transformer and loaded.spec.vae == whole.spec.vae
        assert loaded.spec.text_encoder == whole.spec.text_encoder
        assert jax.tree.all(jax.tree.map(np.array_equal, loaded.params, whole.params))
    with pytest.raises(FileNotFoundError, match="has no tokenizer; give tokenizer, a folder with tokenizer.json"):
        cx.load(run, position="rope", **GIVEN)


def test_a_name_that_is_nobodys_is_spare(fine_tuned):
    _, run, tensors = fine_tuned
    tensors["something.else"] = np.zeros(3, np.float32)
    tensors[f"{PREFIXES['transformer']}transformer.layers.7.strange"] = np.zeros(3, np.float32)
    write_torch(run / "500" / STATES, [Tensor.of(key, array) for key, array in tensors.items()], "module")
    with pytest.raises(ConversionError) as error:
        cx.load(run, position="rope", **GIVEN, components=("transformer",))
    assert sorted(error.value.problems) == [
        "spare: something.else (3,)",
        "spare: transformer.layers.7.strange (3,)",
    ]


# DeepSpeed.


@pytest.mark.parametrize("ranks, prefix", [(1, ""), (3, "bf16_")])
def test_masters_of_deepspeed(saved, tmp_path, ranks, prefix):
    """Of SAT's names, of two groups, one tensor frozen."""
    published, sat = saved("5b")
    arrays = read_all(open_tensors(sat / "transformer" / "1" / STATES))
    arrays = {key: array.astype(np.float32) for key, array in arrays.items()}
    keys = list(arrays)
    deepspeed(tmp_path / "1", arrays, ranks, [keys[1::2], keys[2::2]], prefix=prefix)
    (tmp_path / "latest").write_text("1")
    spec = read_spec(published)
    given = Given(position="rope", **GIVEN, vae=str(sat / "vae" / "3d-vae.pt"), masters=True)
    found = open_source(tmp_path, given).tensors("transformer")
    wanted = read_all(open_source(published).tensors("transformer"))
    for key, array in wanted.items():
        if found[key].dtype == np.float32:
            np.testing.assert_array_equal(found.read(key), array)
        else:
            np.testing.assert_array_equal(found.read(key), array.astype(np.float16))
    frozen = [key for key, entry in found.items() if entry.dtype != np.float32]
    assert frozen == list(read_sat(open_tensors(sat / "transformer" / "1" / STATES), "transformer"))[: len(frozen)]
    assert len(frozen) == 3 if "query_key_value" in keys[0] else len(frozen) == 1
    assert open_source(tmp_path, given).spec().transformer == spec.transformer
    half = open_source(tmp_path, dataclasses.replace(given, masters=False)).tensors("transformer")
    assert {str(entry.dtype) for entry in half.values()} == {"float16"}


def test_the_official_trainers_shards_have_published_names(saved, tmp_path):
    published, sat = saved("2b")
    source, spec = open_source(published), read_spec(published)
    arrays = arrays_of(published_tensors(source, spec, "transformer"))
    deepspeed(tmp_path / "pytorch_model", arrays, 2, [list(arrays)], dtype=ml_dtypes.bfloat16)
    (tmp_path / "latest").write_text("pytorch_model")
    shutil.copy(published / "transformer" / "config.json", tmp_path / "pytorch_model" / "config.json")
    given = Given(vae=str(published / "vae"), text_encoder=str(published / "text_encoder"), masters=True)
    found = open_source(tmp_path, given)
    assert found.spec().transformer == spec.transformer
    assert_identical(read_all(found.tensors("transformer")), arrays)
    loaded = cx.load(tmp_path, **vars(given))
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.params, cx.load(published).params))


def test_a_damaged_file_of_deepspeed_is_named(tmp_path):
    arrays = {"a": np.ones((3, 4), np.float32)}
    names = [STATES, *(f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2))]
    for name in names:
        deepspeed(tmp_path, arrays, 2, [["a"]])
        for damaged in ((tmp_path / name).read_bytes()[:400], b"", b"hello" * 100):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(ValueError, match=f"^{tmp_path / name} cannot be read: truncated"):
                open_source(tmp_path, Given(masters=True)).tensors("transformer")


@pytest.mark.parametrize(
    "options, words",
    [
        (
            dict(stage=3),
            "zero_pp_rank_0_mp_rank_00_optim_states.pt cannot be read: it has no single_.*, as ZeRO's third stage",
        ),
        (dict(count=4), "is one of 4 shards, of which 2 are there"),
        (dict(remove=0), "lacks the shard of rank 0, though it has zero_pp_rank_1_mp_rank_00_optim_states.pt"),
        (dict(remove=1), "is one of 2 shards, of which 1 are there"),
        (dict(shape=(100, 100)), "its shards hold [0-9]+ numbers, too few for b"),
        (dict(shape="x"), "mp_rank_00_model_states.pt cannot be read: its param_shapes are damaged"),
        (dict(shape=(-1,)), "mp_rank_00_model_states.pt cannot be read: its param_shapes are damaged"),
    ],
)
def test_shards_that_do_not_fit(tmp_path, options, words):
    remove, shape = options.pop("remove", None), options.pop("shape", None)
    arrays = {"a": np.ones((3, 4), np.float32), "b": np.ones(5, np.float32)}
    deepspeed(tmp_path, arrays, 2, [["a", "b"]], **options)
    if remove is not None:
        (tmp_path / f"zero_pp_rank_{remove}_mp_rank_00_optim_states.pt").unlink()
    if shape is not None:
        save(tmp_path / STATES, {"module": arrays, "param_shapes": [{"a": (3, 4), "b": shape}]})
    with pytest.raises(ValueError, match=words):
        open_source(tmp_path, Given(masters=True)).tensors("transformer")


# What cannot be.


def damaged(saved, tmp_path, change):
    """The error of a SAT file after `change(arrays)`."""
    _, sat = saved("5b")
    arrays = read_all(open_tensors(sat / "transformer" / "1" / STATES))
    change(arrays)
    write_torch(tmp_path / "x.pt", [Tensor.of(key, array) for key, array in arrays.items()], "module")
    with pytest.raises(ValueError) as raised:
        cx.load(tmp_path / "x.pt", position="rope", **GIVEN, components=("transformer",))
    return raised.value


LAYER = f"{PREFIXES['transformer']}transformer.layers.0.attention"


def test_missing_spare_and_misshapen_are_listed_by_their_names(saved, tmp_path):
    def change(arrays):
        del arrays[f"{LAYER}.dense.bias"]
        arrays[f"{LAYER}.query_key_value.bias"] = np.zeros(143, np.float32)
        arrays[f"{PREFIXES['transformer']}mixins.adaln_layer.adaLN_modulations.0.1.bias"] = np.zeros(24, np.float32)

    error = damaged(saved, tmp_path, change)
    assert isinstance(error, ConversionError)
    assert sorted(error.problems) == [
        "misshapen: transformer_blocks.0.norm1.linear.bias is (12,), not (288,)",
        "misshapen: transformer_blocks.0.norm2.linear.bias is (12,), not (288,)",
        "missing: transformer_blocks.0.attn1.to_k.bias (48,)",
        "missing: transformer_blocks.0.attn1.to_out.0.bias (48,)",
        "missing: transformer_blocks.0.attn1.to_q.bias (48,)",
        "missing: transformer_blocks.0.attn1.to_v.bias (48,)",
        "spare: transformer.layers.0.attention.query_key_value.bias (143,)",
    ]


@pytest.mark.parametrize("side, shape", [("matrix_A.1", (4, 47)), ("matrix_B.2", (48, 3)), ("matrix_B.2", (4,))])
def test_a_lora_that_does_not_fit(saved, tmp_path, side, shape):
    def change(arrays):
        name = f"{LAYER}.query_key_value"
        arrays[f"{name}.original.weight"] = arrays.pop(f"{name}.weight")
        arrays |= {f"{name}.matrix_A.{i}": np.ones((4, 48), np.float32) for i in range(3)}
        arrays |= {f"{name}.matrix_B.{i}": np.ones((48, 4), np.float32) for i in range(3)}
        arrays[f"{name}.{side}"] = np.ones(shape, np.float32)

    error = damaged(saved, tmp_path, change)
    assert f"spare: transformer.layers.0.attention.query_key_value.{side} {shape}" in error.problems


def test_a_file_without_a_transformer_says_what_it_holds(saved, tmp_path):
    _, sat = saved("5b")
    with pytest.raises(ValueError, match="3d-vae.pt holds no transformer; it holds the vae"):
        cx.load(sat / "vae" / "3d-vae.pt")
    save(tmp_path / "x.pt", {"a": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="x.pt holds no transformer; its tensors are called a"):
        cx.load(tmp_path / "x.pt")


def test_a_vae_or_t5_of_another_place_fits_a_published_folder(saved):
    published, sat = saved("5b")
    model = cx.load(published)
    other = cx.load(published, vae=sat / "vae" / "3d-vae.pt", text_encoder=sat / "t5-v1_1-xxl")
    assert other.spec == model.spec
    assert jax.tree.all(jax.tree.map(np.array_equal, other.params, model.params))


def test_another_vae_is_taken_with_orbax_checkpoints_too(saved, tmp_path):
    published, sat = saved("5b")
    write_model(open_source(published), tmp_path / "orbax", "orbax")
    other = write_small(tmp_path / "other", small_spec("5b"), seed=7)
    loaded = cx.load(tmp_path / "orbax", vae=other / "vae", components=("vae",)).params["vae"]
    assert_identical(*({"x": np.asarray(p["decoder"]["conv_in"]["kernel"])} for p in (loaded, whole_vae(other))))


def whole_vae(folder):
    return load_params(folder, read_spec(folder), "vae")


# Writing.


def test_parts_and_targets(saved, tmp_path, capsys):
    published, sat = saved("5b")
    write_model(open_source(sat), tmp_path / "new", "diffusers", parts=("transformer",))
    assert sorted(p.name for p in (tmp_path / "new" / "transformer").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    assert not (tmp_path / "new" / "tokenizer").exists()
    with pytest.raises(FileExistsError):
        write_model(open_source(sat), tmp_path / "new", "sat")
    with pytest.raises(ValueError, match="orbax holds whole models"):
        write_model(open_source(sat), tmp_path / "o", "orbax", parts=("vae",))
    with pytest.raises(ValueError, match="sat is written to a folder of this machine, not to gs://x/y"):
        write_model(open_source(sat), "gs://x/y", "sat")
    assert not (tmp_path / "o").exists()


def test_half_written_models_do_not_appear(saved, tmp_path, monkeypatch):
    published, _ = saved("5b")
    monkeypatch.setattr("cogvx_jax.convert.targets.write_torch", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError):
        write_model(open_source(published), tmp_path / "new", "sat")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout, name", [("diffusers", "{}"), ("single", "{}"), ("sat", "SAT"), ("orbax", "ours")])
@pytest.mark.parametrize("bad", [np.nan, -np.inf, 1e38])
def test_weights_that_are_not_finite_are_not_written(saved, tmp_path, layout, name, bad):
    """Nor are those that a narrower type cannot hold."""
    published, _ = saved("5b")
    folder = shutil.copytree(published, tmp_path / "model")
    key = "transformer_blocks.0.ff.net.2.weight"
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    arrays = read_all(open_tensors(file))
    arrays[key][-1, -1] = bad
    save_file(arrays, file)
    names = {"SAT": "model.diffusion_model.transformer.layers.0.mlp.dense_4h_to_h.weight"}
    names |= {"ours": "transformer/blocks/mlp/down/kernel"}
    words = f"^{names.get(name, key)} holds numbers that are not finite: .*; nothing was written$"
    dtype = "float16" if np.isfinite(bad) else None
    with pytest.raises(ValueError, match=words) as raised:
        write_model(open_source(folder), tmp_path / "out", layout, dtype)
    assert ("too large for float16" in str(raised.value)) == (dtype is not None)
    assert not (tmp_path / "out").exists()


def test_a_dtype_is_of_all_but_the_vae(saved, tmp_path):
    published, _ = saved("5b")
    write_model(open_source(published), tmp_path / "new", "sat", "bfloat16")
    types = {
        file: {str(entry.dtype) for entry in open_tensors(tmp_path / "new" / file).values()}
        for file in (f"transformer/1/{STATES}", "vae/3d-vae.pt", "t5-v1_1-xxl")
    }
    assert list(types.values()) == [{"bfloat16"}, {"float32"}, {"bfloat16"}]


@pytest.mark.parametrize("sharded", [False, True])
def test_a_component_in_bin_files(saved, tmp_path, sharded):
    """As CogVideoX-Fun and T5 have it: `torch.save` in place of safetensors."""
    published, _ = saved("2b")
    folder = Path(shutil.copytree(published, tmp_path / "model"))
    for component, stem in (("transformer", "diffusion_pytorch_model"), ("text_encoder", "pytorch_model")):
        arrays = read_all(open_source(published).tensors(component))
        for path in (folder / component).glob("*.safetensors"):
            path.unlink()
        if not sharded:
            save(folder / component / f"{stem}.bin", arrays)
            continue
        names = {key: f"{stem}-0000{i % 2 + 1}-of-00002.bin" for i, key in enumerate(arrays)}
        for file in set(names.values()):
            save(folder / component / file, {key: arrays[key] for key in arrays if names[key] == file})
        (folder / component / f"{stem}.bin.index.json").write_text(json.dumps({"weight_map": names}))
    assert jax.tree.all(jax.tree.map(np.array_equal, cx.load(folder).params, cx.load(published).params))


def test_float16_of_a_model_that_overflows_in_it_is_said(saved, tmp_path, capsys):
    write_model(open_source(saved("5b")[0]), tmp_path / "half", "sat", "float16")
    model = cx.load(tmp_path / "half", components=("transformer",))
    assert "its numbers are float16, in which small-5b overflows; compute in bfloat16" in capsys.readouterr().err
    assert model.spec.trained_dtype == "bfloat16"


def test_shapes_of_t5_tell_its_sizes(saved):
    published, _ = saved("5b")
    spec = read_spec(published)
    document = infer_text_encoder(open_source(published).tensors("text_encoder"), PRESETS["5b"])
    config = json.loads((published / "text_encoder" / "config.json").read_text())
    for key in ("num_layers", "d_model", "num_heads", "d_kv", "d_ff", "vocab_size", "relative_attention_num_buckets"):
        assert document[key] == config[key]
    assert document["num_layers"] == spec.text_encoder.layers


def test_a_t5_whose_words_have_their_second_name_alone(saved, tmp_path):
    """As safetensors' `save_model` leaves it, which keeps the first name of the alphabet."""
    published, _ = saved("5b")
    arrays = arrays_of(published_tensors(open_source(published), read_spec(published), "text_encoder"))
    arrays["encoder.embed_tokens.weight"] = arrays.pop("shared.weight")
    save_file({key: np.float32(array) for key, array in arrays.items()}, tmp_path / "t5.safetensors")
    source = open_source(published, Given(text_encoder=str(tmp_path / "t5.safetensors")))
    ours, theirs = (load_params(place, read_spec(published), "text_encoder") for place in (source, published))
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))


def test_two_transformers_beside_one_vae(saved, tmp_path):
    """As the authors publish 1.5: the folder of one is a model with the VAE and T5 above it."""
    published, sat = saved("1.5-5b")
    for name in ("transformer_i2v", "transformer_t2v"):
        shutil.copytree(sat / "transformer", tmp_path / name)
    for name in ("vae", "t5-v1_1-xxl"):
        shutil.copytree(sat / name, tmp_path / name)
    words = f"{tmp_path} holds transformer_i2v and transformer_t2v; give the folder of one, such as {tmp_path}/trans"
    with pytest.raises(FileNotFoundError, match=words):
        cx.load(tmp_path)
    facts = inspect(tmp_path)
    assert facts["transformers"] == ["transformer_i2v", "transformer_t2v"]
    assert facts["use"] == [f"cogvx inspect {tmp_path}/{name}" for name in facts["transformers"]]
    loaded = cx.load(tmp_path / "transformer_t2v")
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.params, cx.load(published).params))
    shutil.rmtree(tmp_path / "transformer_i2v")
    assert cx.load_spec(tmp_path).transformer == loaded.spec.transformer  # the only one
