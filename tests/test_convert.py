import dataclasses
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors
from flax import traverse_util

from cogvx_jax.configs import GenerationDefaults, T5Config
from cogvx_jax.convert import ConversionError, export, load_params, read_spec, write_configs
from cogvx_jax.convert.checkpoint import component_parameters, expected_shapes
from cogvx_jax.convert.containers import Checkpoint
from cogvx_jax.convert.tables import COMPONENTS, Row, resolve, table
from cogvx_jax.json_files import POINTER
from cogvx_jax.presets import HUB, LICENCES, PRESETS

CONFIGS = Path(__file__).parent / "data" / "configs"  # the five published sets of JSON files

# Numbers and tensors of the published files. A file may hold the token embedding twice, see ALIASES.
VAE_SIZE, T5_SIZE = (215_583_907, 436), (4_762_310_656, 219)
TRANSFORMER_SIZE = {
    "2b": (1_693_783_872, 736),
    "5b": (5_570_283_072, 1024),
    "5b-i2v": (5_570_479_680 + 17_776 * 3072, 1025),  # with its learned positions
    "1.5-5b": (5_570_676_352, 1024),
    "1.5-5b-i2v": (5_571_594_880, 1028),
}


def small(preset):
    """A model of the preset's kind; sizes that could be confused differ."""
    spec = PRESETS[preset]
    cfg = spec.transformer
    transformer = dataclasses.replace(
        cfg,
        layers=2,
        heads=2,
        head_dim=16,
        in_channels=cfg.in_channels // 4,
        out_channels=4,
        text_dim=24,
        text_length=6,
        time_dim=40,
        ofs_dim=cfg.ofs_dim and 40,
        sample_height=4,
        sample_width=6,
        sample_frames=9,
    )
    vae = dataclasses.replace(spec.vae, channels=(4, 8, 8, 12), layers=1, latent_channels=4, groups=4)
    text_encoder = T5Config(layers=2, width=24, heads=3, head_dim=4, mlp=20, vocab=32)
    return dataclasses.replace(spec, transformer=transformer, vae=vae, text_encoder=text_encoder)


def random_params(spec, component, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    shapes = expected_shapes(spec, component).items()
    flat = {path: rng.standard_normal(shape, np.float32).astype(dtype) for path, shape in shapes}
    return traverse_util.unflatten_dict(flat, sep="/")


def assert_identical(a, b):
    a, b = traverse_util.flatten_dict(a, sep="/"), traverse_util.flatten_dict(b, sep="/")
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].dtype == b[path].dtype and a[path].shape == b[path].shape, path
        assert a[path].tobytes() == b[path].tobytes(), path


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A sound folder; tests that damage it take a copy."""
    spec, folder = small("2b"), tmp_path_factory.mktemp("exported") / "model"
    export(folder, spec, {c: random_params(spec, c) for c in COMPONENTS}, max_shard_bytes=8_000)
    return spec, folder


@pytest.fixture
def copy(exported, tmp_path):
    return exported[0], Path(shutil.copytree(exported[1], tmp_path / "copy"))


# Sizes and tables.


SOME = [p if p in ("5b", "1.5-5b-i2v") else pytest.param(p, marks=pytest.mark.full) for p in PRESETS]


@pytest.mark.parametrize("preset", [p if p == "5b" else pytest.param(p, marks=pytest.mark.full) for p in PRESETS])
def test_sizes_are_the_published_ones(preset):
    spec = PRESETS[preset]
    for component, size in zip(COMPONENTS, (TRANSFORMER_SIZE[preset], VAE_SIZE, T5_SIZE), strict=True):
        parameters = component_parameters(spec, component)
        assert sum(map(math.prod, expected_shapes(spec, component).values())) == size[0]
        theirs = {key: p.their_shape for p in parameters for key in p.keys}
        assert (sum(map(math.prod, theirs.values())), len(theirs)) == size
        assert sum(len(p.keys) for p in parameters) == len(theirs)  # no tensor is used twice


@pytest.mark.parametrize("preset", SOME)
def test_every_parameter_has_one_row_and_every_row_a_use(preset):
    spec = PRESETS[preset]
    for component in COMPONENTS:
        shapes = expected_shapes(spec, component)
        assert [p.path for p in component_parameters(spec, component)] == list(shapes)
        for row in table(spec, component):
            optional = ("ofs/" in row.ours and spec.transformer.ofs_dim is None) or (
                row.ours == "position" and spec.transformer.position != "rope+learned"
            )
            try:
                resolve([row], shapes)
                fits = len(shapes)
            except ConversionError as error:
                fits = len(shapes) - len(error.problems)
            assert (fits == 0) == optional, row


def test_shapes_of_the_checkpoint():
    """Of each change one, against the reference's layout."""
    for preset, component, key, shape in [
        ("2b", "transformer", "patch_embed.proj.weight", (1920, 16, 2, 2)),
        ("5b-i2v", "transformer", "patch_embed.proj.weight", (3072, 32, 2, 2)),
        ("5b-i2v", "transformer", "patch_embed.pos_embedding", (1, 17776, 3072)),
        ("1.5-5b", "transformer", "patch_embed.proj.weight", (3072, 128)),
        ("1.5-5b", "transformer", "proj_out.weight", (128, 3072)),
        ("2b", "transformer", "transformer_blocks.29.ff.net.0.proj.weight", (7680, 1920)),
        ("2b", "vae", "encoder.conv_in.conv.weight", (128, 3, 3, 3, 3)),
        ("2b", "vae", "encoder.down_blocks.2.downsamplers.0.conv.weight", (256, 256, 3, 3)),
        ("2b", "vae", "encoder.down_blocks.1.resnets.0.conv_shortcut.weight", (256, 128, 1, 1, 1)),
        ("2b", "vae", "decoder.up_blocks.3.resnets.0.norm1.conv_y.conv.weight", (256, 16, 1, 1, 1)),
        ("2b", "vae", "decoder.norm_out.norm_layer.weight", (128,)),
        ("2b", "text_encoder", "encoder.block.23.layer.1.DenseReluDense.wo.weight", (4096, 10240)),
        ("2b", "text_encoder", "shared.weight", (32128, 4096)),
    ]:
        parameters = component_parameters(PRESETS[preset], component)
        assert [p.their_shape for p in parameters if key in p.keys] == [shape]


def test_a_table_that_does_not_fit_is_refused():
    with pytest.raises(ConversionError) as error:
        resolve([Row("a", "x"), Row("b", "{l}"), Row("c", "1")], {"x": (1,), "1": (2,), "y": (3,)})
    assert error.value.problems == ("1: 2 rows", "y: 0 rows")
    with pytest.raises(ValueError, match="component must be one of transformer, vae, text_encoder, got 'unet'"):
        table(PRESETS["2b"], "unet")


# Configuration files.


@pytest.mark.parametrize("preset", SOME)
def test_read_spec_of_the_published_files(preset):
    spec = PRESETS[preset]
    assert read_spec(CONFIGS / spec.name) == spec
    assert spec.kind == ("i2v" if "i2v" in preset else "t2v")
    assert HUB[preset] == f"zai-org/{spec.name}" and LICENCES.keys() == PRESETS.keys()


@pytest.mark.parametrize("preset", PRESETS)
def test_write_configs_says_what_the_published_files_say(preset, tmp_path):
    spec = PRESETS[preset]
    write_configs(spec, tmp_path)
    assert read_spec(tmp_path) == spec
    for path in sorted((CONFIGS / spec.name).rglob("*.json")):
        theirs = json.loads(path.read_text())
        theirs.pop("_name_or_path", None)
        ours = json.loads((tmp_path / path.relative_to(CONFIGS / spec.name)).read_text())
        assert theirs.items() <= ours.items()


@pytest.mark.parametrize("preset", PRESETS)
def test_configs_round_trip(preset, tmp_path):
    spec = dataclasses.replace(
        small(preset),
        name="mine",
        trained_dtype="float32",
        defaults=GenerationDefaults(height=32, width=48, num_frames=9, fps=5, guidance_scale=1.0, sampler="dpm"),
    )
    write_configs(spec, tmp_path)
    assert read_spec(tmp_path) == spec


def test_generation_defaults_from_sample_sizes(tmp_path):
    for preset, expected in [
        ("2b", GenerationDefaults(height=32, width=48, num_frames=9, fps=8, sampler="ddim")),
        ("1.5-5b", GenerationDefaults(height=32, width=48, num_frames=9, fps=16, sampler="dpm")),
    ]:
        folder = tmp_path / preset
        write_configs(small(preset), folder)
        (folder / "generation.json").write_text('{"guidance_scale": 3}')
        spec = read_spec(folder)
        assert spec.defaults == dataclasses.replace(expected, guidance_scale=3.0)
        assert (spec.name, spec.trained_dtype) == (preset, "float32")


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_unsupported_values_are_listed_together(tmp_path):
    folder = Path(shutil.copytree(CONFIGS / "CogVideoX-2b", tmp_path / "model"))
    edit(folder / "model_index.json", _class_name="CogVideoXImageToVideoPipeline")
    edit(
        folder / "transformer/config.json",
        activation_fn="gelu",
        num_layers="many",
        use_learned_positional_embeddings=True,
        patch_bias=False,  # means nothing
    )
    edit(folder / "vae/config.json", use_quant_conv=True, up_block_types=["UpBlock"], latent_channels=8)
    edit(folder / "text_encoder/config.json", feed_forward_proj="relu", d_model=512)
    edit(folder / "scheduler/scheduler_config.json", prediction_type="epsilon", timestep_spacing="leading")
    (folder / "generation.json").write_text('{"sampler": "pndm", "steps": 4}')
    with pytest.raises(ConversionError) as error:
        read_spec(folder)
    assert [p.replace("/config.json", "") for p in error.value.problems] == [
        "transformer: num_layers 'many' is not supported",
        "transformer: activation_fn 'gelu' is not supported, only 'gelu-approximate' is",
        "transformer: use_rotary_positional_embeddings False, use_learned_positional_embeddings True, "
        "patch_size_t None together are not supported",
        "vae: use_quant_conv True is not supported, only False is",
        "text_encoder: feed_forward_proj 'relu' is not supported, only 'gated-gelu' is",
        "scheduler/scheduler_config.json: prediction_type 'epsilon' is not supported, only 'v_prediction' is",
        "scheduler/scheduler_config.json: timestep_spacing 'leading' is not supported, only 'trailing' is",
        "vae: up_block_types ['UpBlock'] is not supported, only 'CogVideoXUpBlock3D' is",
        "transformer: out_channels 16 does not fit latent_channels 8 of vae",
        "transformer: text_embed_dim 4096 does not fit d_model 512 of text_encoder",
        "model_index.json: _class_name 'CogVideoXImageToVideoPipeline' does not fit a transformer for t2v",
        "generation.json: sampler 'pndm' is not supported",
        "generation.json: unknown field 'steps'",
    ]


def test_absent_scheduler_fields_are_the_references_and_not_ours(tmp_path):
    folder = Path(shutil.copytree(CONFIGS / "CogVideoX-2b", tmp_path / "model"))
    (folder / "scheduler/scheduler_config.json").write_text("{}")
    with pytest.raises(ConversionError) as error:
        read_spec(folder)
    assert [p.split()[1:3] for p in error.value.problems] == [
        ["prediction_type", "'epsilon'"],
        ["timestep_spacing", "'leading'"],
    ]


def test_missing_and_broken_files_are_listed_together(tmp_path):
    folder = Path(shutil.copytree(CONFIGS / "CogVideoX-2b", tmp_path / "model"))
    (folder / "vae/config.json").unlink()
    (folder / "transformer/config.json").write_text("{")
    (folder / "scheduler/scheduler_config.json").write_text("[]")
    with pytest.raises(ConversionError) as error:
        read_spec(folder)
    assert [p.split(",")[0] for p in error.value.problems] == [
        "transformer/config.json: not JSON",
        "vae/config.json: missing",
        "scheduler/scheduler_config.json: not a JSON object",
    ]
    with pytest.raises(ConversionError, match="no such folder"):
        read_spec(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "file, values, problem",
    [
        ("transformer", {"num_layers": 100_000}, "num_layers 100000 is not supported, only 1 to 1024 is"),
        ("transformer", {"num_layers": 0}, "num_layers 0 is not supported, only 1 to 1024 is"),
        ("transformer", {"num_layers": -1}, "num_layers -1 is not supported, only 1 to 1024 is"),
        ("transformer", {"num_attention_heads": 1000, "attention_head_dim": 1000}, "are wider than 65536"),
        (
            "transformer",
            {"num_attention_heads": 1, "attention_head_dim": 24},
            "24 is not supported, only multiples of 16",
        ),
        ("transformer", {"patch_size": 0}, "patch_size 0"),
        ("transformer", {"patch_size": True}, "patch_size True is not supported"),
        ("transformer", {"spatial_interpolation_scale": 0}, "only above 0 to 1000 is"),
        ("transformer", {"norm_eps": -1e-5}, "only above 0 to 1 is"),
        ("transformer", {"sample_width": 10**9}, "sample_width 1000000000 is not supported, only 1 to 8192 is"),
        ("transformer", {"in_channels": [[[]]]}, "in_channels .* is not supported"),
        ("vae", {"block_out_channels": [8] * 100_000}, "is not supported, only 1 to 8 numbers is"),
        ("vae", {"block_out_channels": []}, "only 1 to 8 numbers is"),
        ("vae", {"block_out_channels": [128, 256, 256, 10**9]}, "only numbers of 1 to 8192 is"),
        ("vae", {"norm_num_groups": 48}, r"norm_num_groups 48 does not divide block_out_channels \(128, 256"),
        ("vae", {"norm_num_groups": 0}, "norm_num_groups 0"),
        ("vae", {"temporal_compression_ratio": 3}, "only 1, 2, 4, 8 is"),
        ("vae", {"scaling_factor": 0}, "scaling_factor 0 is not supported, only above 0"),
        ("vae", {"layers_per_block": 10**6}, "only 1 to 32 is"),
        ("vae", {"down_block_types": 5}, "down_block_types 5"),
        ("vae", {"up_block_types": [["CogVideoXUpBlock3D"]]}, "up_block_types"),
        ("text_encoder", {"vocab_size": 10**10}, "vocab_size 10000000000"),
        ("text_encoder", {"relative_attention_num_buckets": 2}, "only 4 to 4096 is"),
        (
            "text_encoder",
            {"relative_attention_max_distance": 8},
            "max_distance 8 is not supported, only numbers above 8",
        ),
        ("scheduler", {"beta_start": 0.5, "beta_end": 0.1}, "only 0 < beta_start <= beta_end < 1 are"),
        ("scheduler", {"num_train_timesteps": 10**12}, "num_train_timesteps 1000000000000"),
        ("scheduler", {"snr_shift_scale": 0}, "snr_shift_scale 0"),
        ("generation", {"fps": 0}, "fps 0 is not supported, only 1 to 1000 is"),
        ("generation", {"height": -480}, "height -480"),
        ("generation", {"guidance_scale": 1e30}, "guidance_scale 1e"),
        ("generation", {"name": "x" * 100_000}, "only text of at most 200 characters is"),
        ("generation", {"name": "a\nb"}, "only text of at most 200"),
        ("generation", {"x" * 100_000: 1}, "unknown field 'xxx"),
    ],
)
def test_sizes_are_bounded_before_anything_grows_with_them(tmp_path, file, values, problem):
    folder = Path(shutil.copytree(CONFIGS / "CogVideoX-2b", tmp_path / "model"))
    (folder / "generation.json").write_text("{}")
    names = {"scheduler": "scheduler/scheduler_config.json", "generation": "generation.json"}
    name = names.get(file, f"{file}/config.json")
    edit(folder / name, **values)
    with pytest.raises(ConversionError, match=problem) as error:
        read_spec(folder)
    assert error.value.problems[0].startswith(f"{name}: ") and len(str(error.value)) < 1200


def test_a_preset_is_chosen_by_all_parts_and_by_name(tmp_path, monkeypatch):
    """Presets that share a transformer are told apart; the first is not always right."""
    two = PRESETS["2b"]
    twin = dataclasses.replace(
        two,
        name="Twin",
        vae=dataclasses.replace(two.vae, scaling_factor=0.5),
        defaults=dataclasses.replace(two.defaults, fps=30),
        trained_dtype="bfloat16",
    )
    monkeypatch.setitem(PRESETS, "twin", twin)
    folder = Path(shutil.copytree(CONFIGS / "CogVideoX-2b", tmp_path / "CogVideoX-2b"))
    assert read_spec(folder) == two
    edit(folder / "vae/config.json", scaling_factor=0.5)
    folder = folder.rename(tmp_path / "model")
    assert read_spec(folder) == twin
    (folder / "generation.json").write_text('{"name": "CogVideoX-2b"}')
    assert read_spec(folder) == dataclasses.replace(two, vae=twin.vae)


def test_what_the_files_cannot_say_is_refused(tmp_path):
    spec = PRESETS["2b"]
    odd = dataclasses.replace(
        spec,
        transformer=dataclasses.replace(spec.transformer, position="rope", patch_t=2),
        vae=dataclasses.replace(spec.vae, encode_frames=None),
    )
    with pytest.raises(ConversionError) as error:
        write_configs(odd, tmp_path / "model")
    assert error.value.problems == (
        "transformer.position: 'rope' would be read as 'rope_slice'",
        "vae.encode_frames: None would be read as 8",
    )
    assert not (tmp_path / "model").exists()


# Weights.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("preset", PRESETS)
def test_round_trip(preset, dtype, tmp_path):
    spec = small(preset)
    params = {c: random_params(spec, c, dtype, seed) for seed, c in enumerate(COMPONENTS)}
    folder = tmp_path / "model"
    export(folder, spec, params, max_shard_bytes=30_000)
    assert read_spec(folder) == spec
    for component in COMPONENTS:
        assert_identical(load_params(folder, spec, component, dtype), params[component])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_types_are_cast_on_the_way(tmp_path):
    spec = small("5b")
    params = {c: random_params(spec, c) for c in COMPONENTS}
    export(tmp_path / "model", spec, params, dtype="bfloat16")
    half = traverse_util.path_aware_map(lambda _, x: x.astype("bfloat16"), params["transformer"])
    assert_identical(load_params(tmp_path / "model", spec, "transformer", "bfloat16"), half)
    single = traverse_util.path_aware_map(lambda _, x: x.astype(np.float32), half)
    assert_identical(load_params(tmp_path / "model", spec, "transformer"), single)


def test_files_are_as_published(exported):
    spec, folder = exported
    assert sorted(p.name for p in folder.iterdir()) == [
        "generation.json",
        "model_index.json",
        "scheduler",
        "text_encoder",
        "transformer",
        "vae",
    ]
    for component, stem in [("transformer", "diffusion_pytorch_model"), ("text_encoder", "model")]:
        index = json.loads((folder / component / f"{stem}.safetensors.index.json").read_text())
        shards = sorted(set(index["weight_map"].values()))
        count = len(shards)
        assert shards == [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)] and count > 1
        total = 0
        for shard in shards:
            # The library's own reader, which checks every offset.
            with safetensors.safe_open(folder / component / shard, "numpy") as file:
                assert file.metadata() == {"format": "pt"}
                assert set(file.keys()) == {k for k, v in index["weight_map"].items() if v == shard}
                arrays = {key: file.get_tensor(key) for key in file.keys()}
            assert len(arrays) == 1 or sum(a.nbytes for a in arrays.values()) <= 8_000
            total += sum(a.nbytes for a in arrays.values())
            checkpoint = Checkpoint(folder / component)
            assert all(np.array_equal(checkpoint.read(key), a) for key, a in arrays.items())
        assert index["metadata"] == {"total_size": total}
        assert len(checkpoint) == len(index["weight_map"])


def test_mixed_types_in_one_file(tmp_path):
    spec = small("2b")
    params = {c: random_params(spec, c) for c in COMPONENTS}
    params["transformer"]["out"]["bias"] = params["transformer"]["out"]["bias"][:].astype(np.float16)
    params["transformer"]["blocks"]["mlp"] = random_params(spec, "transformer", "bfloat16")["blocks"]["mlp"]
    export(tmp_path / "model", spec, params)
    with safetensors.safe_open(tmp_path / "model/transformer/diffusion_pytorch_model.safetensors", "numpy") as file:
        types = {str(file.get_tensor(key).dtype) for key in file.keys()}
    assert types == {"float32", "float16", "bfloat16"}
    back = load_params(tmp_path / "model", spec, "transformer")
    np.testing.assert_array_equal(back["out"]["bias"], params["transformer"]["out"]["bias"].astype(np.float32))


def test_export_refuses(exported, tmp_path):
    spec, folder = exported
    params = {c: random_params(spec, c) for c in COMPONENTS}
    with pytest.raises(FileExistsError, match="exists and is not an empty folder; nothing was written"):
        export(folder, spec, params)
    del params["vae"], params["transformer"]["text"]["bias"]
    params["transformer"]["extra"] = np.zeros(3)
    params["transformer"]["out"]["bias"] = np.zeros(3, np.int32)
    params["transformer"]["blocks"]["mlp"]["up"]["bias"] = np.zeros((2, 128), np.int32)
    with pytest.raises(ConversionError, match="not the parameters of CogVideoX-2b") as error:
        export(tmp_path / "model", spec, params)
    assert sorted(error.value.problems) == [
        "misshapen: transformer/out/bias is (3,), not (16,)",
        "missing: transformer/text/bias (32,)",
        "missing: vae",
        "spare: transformer/extra (3,)",
        "transformer/blocks/mlp/up/bias: type int32, not one of F64, F32, F16, BF16, F8_E4M3, F8_E5M2",
    ]
    assert not list(tmp_path.iterdir())


def test_export_leaves_nothing_behind_when_it_fails(exported, tmp_path):
    class Broken:
        def save_pretrained(self, folder):
            raise RuntimeError("disk full")

    spec = exported[0]
    (tmp_path / "model").mkdir()
    with pytest.raises(RuntimeError, match="disk full"):
        export(tmp_path / "model", spec, {c: random_params(spec, c) for c in COMPONENTS}, Broken())
    assert [p.name for p in tmp_path.iterdir()] == ["model"] and not list((tmp_path / "model").iterdir())


def test_export_writes_nothing_that_is_not_finite(exported, tmp_path):
    spec = exported[0]
    params = {c: random_params(spec, c) for c in COMPONENTS}
    params["transformer"]["blocks"]["mlp"]["up"]["bias"][1, 3] = np.nan
    with pytest.raises(ValueError, match=r"^transformer_blocks\.1\.ff\.net\.0\.proj\.bias holds numbers that are not"):
        export(tmp_path / "model", spec, params)
    assert not list(tmp_path.iterdir())


# Folders that are not right.


def rewrite(folder, change):
    """Stores a component's tensors anew, after `change(tensors)`, in one file."""
    checkpoint = Checkpoint(folder)
    tensors = {key: np.array(checkpoint.read(key)) for key in checkpoint}
    change(tensors)
    for path in folder.glob("*safetensors*"):
        path.unlink()
    from safetensors.numpy import save_file

    stem = "model" if folder.name == "text_encoder" else "diffusion_pytorch_model"
    save_file(tensors, folder / f"{stem}.safetensors")


def failure(folder, spec, component="transformer"):
    with pytest.raises(ConversionError) as error:
        load_params(folder, spec, component)
    assert all(problem in str(error.value) for problem in error.value.problems)
    return list(error.value.problems)


def test_missing_spare_and_misshapen_tensors_in_one_error(copy, monkeypatch):
    spec, folder = copy

    def change(tensors):
        del tensors["proj_out.bias"], tensors["transformer_blocks.1.ff.net.2.weight"]
        tensors["ofs_embedding.linear_1.bias"] = np.zeros(40, np.float32)
        tensors["transformer_blocks.2.norm1.norm.bias"] = np.zeros(32, np.float32)
        tensors["patch_embed.text_proj.weight"] = tensors["patch_embed.text_proj.weight"].T.copy()

    rewrite(folder / "transformer", change)
    monkeypatch.setattr(Checkpoint, "read", lambda *_: pytest.fail("a tensor was read"))
    assert sorted(failure(folder, spec)) == [
        "misshapen: patch_embed.text_proj.weight is (24, 32), not (32, 24)",
        "missing: proj_out.bias (16,)",
        "missing: transformer_blocks.1.ff.net.2.weight (32, 128)",
        "spare: ofs_embedding.linear_1.bias (40,)",
        "spare: transformer_blocks.2.norm1.norm.bias (32,)",
    ]


def test_t5_may_hold_its_embedding_twice(copy):
    spec, folder = copy
    before = load_params(folder, spec, "text_encoder")
    alias = "encoder.embed_tokens.weight"
    rewrite(folder / "text_encoder", lambda t: t.update({alias: t["shared.weight"]}))
    assert len(Checkpoint(folder / "text_encoder")) == len(component_parameters(spec, "text_encoder")) + 9 + 1
    assert_identical(load_params(folder, spec, "text_encoder"), before)
    rewrite(folder / "text_encoder", lambda t: t.update({alias: t["shared.weight"][:3]}))
    assert failure(folder, spec, "text_encoder") == [f"misshapen: {alias} is (3, 24), not (32, 24)"]


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64"])
def test_weights_are_floating_point(copy, dtype):
    spec, folder = copy
    key = "decoder.conv_in.conv.bias"
    rewrite(folder / "vae", lambda t: t.update({key: np.ones(12, dtype)}))
    assert failure(folder, spec, "vae") == [f"of another type: {key} is {dtype}, not floating-point"]
    rewrite(folder / "vae", lambda t: t.update({key: np.ones(12), "n": np.ones(2, dtype)}))
    assert failure(folder, spec, "vae") == ["spare: n (2,)"]


def test_damaged_files_are_listed_together(copy):
    spec, folder = copy
    shards = sorted((folder / "transformer").glob("*.safetensors"))
    whole = shards[0].stat().st_size
    shards[0].write_bytes(shards[0].read_bytes()[:-5])
    shards[1].unlink()
    data = shards[2].read_bytes()
    shards[2].write_bytes(data[:8] + b"?" + data[9:])
    shards[3].write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    shards[4].write_bytes(shards[4].read_bytes() + b"0")
    shards[5].write_bytes(shards[5].read_bytes()[:100])
    problems = failure(folder, spec)
    assert [p.split(": ")[0] for p in problems] == [s.name for s in shards[:6]]
    assert problems[0].endswith(f": truncated: {whole - 5} of {whole} bytes")
    assert problems[1].endswith(": missing")
    assert ": corrupt header: not JSON, Expecting value" in problems[2]
    assert problems[3].endswith(": a git-lfs pointer, not the file itself; run `git lfs pull` where it lies")
    assert ": corrupt: " in problems[4]
    assert ": truncated: 100 bytes, of which the header alone would take " in problems[5]


def test_headers_that_lie(copy):
    spec, folder = copy
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"

    def store(header):
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))

    (path.parent / f"{path.name}.index.json").unlink()
    store({"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]}})
    assert failure(folder, spec) == [f"{path.name}: corrupt header: a F32 (5,) does not take 16 bytes"]
    store({"a": {"dtype": "F4", "shape": [32], "data_offsets": [0, 16]}})
    assert failure(folder, spec) == [
        f"{path.name}: a is of type F4, not one of F64, F32, F16, BF16, F8_E4M3, F8_E5M2, "
        "I8, U8, BOOL, I16, U16, I32, U32, I64, U64"
    ]
    store({"a": {"dtype": "F32", "shape": [4]}})
    assert failure(folder, spec) == [f"{path.name}: corrupt header: a has the data_offsets None"]


@pytest.fixture
def one_file(tmp_path):
    """`one_file(header)`: a folder whose only file has that header, as JSON or text, and 32 bytes of numbers."""

    def make(header):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        file = tmp_path / "model.safetensors"
        file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(32))
        return tmp_path

    return make


F32 = {"dtype": "F32", "shape": [4]}
A = F32 | {"data_offsets": [0, 16]}
B = F32 | {"data_offsets": [16, 32]}


@pytest.mark.parametrize(
    "header, words",
    [
        ({"a": A, "b": F32 | {"data_offsets": [8, 24]}, "c": B}, "b begins at byte 8, not 16: it overlaps the tensor"),
        ({"a": A, "b": A, "c": B}, "b begins at byte 0, not 16: it overlaps"),
        ({"b": B}, "b begins at byte 16, not 0: it leaves a hole"),
        ({"a": A}, "corrupt: "),  # 16 bytes beyond
        (b'{"a": %s, "a": %s}' % (json.dumps(A).encode(), json.dumps(B).encode()), "the key 'a' stands in it twice"),
        ({"a": A | {"shape": [-4]}, "b": B}, r"a has the shape \[-4\]"),
        ({"a": A | {"shape": [True, 4]}, "b": B}, r"a has the shape \[True, 4\]"),
        ({"a": A | {"shape": [2.0, 2]}, "b": B}, "a has the shape"),
        ({"a": A | {"shape": [2**40] * 1000}, "b": B}, "a has the shape"),
        ({"a": A | {"shape": [2**40] * 8}, "b": B}, "a has the shape"),
        ({"a": A | {"shape": "4"}, "b": B}, "a has the shape '4'"),
        ({"a": F32 | {"data_offsets": [16, 0]}, "b": B}, "a F32 .* does not take -16 bytes"),
        ({"a": F32 | {"data_offsets": [0, 16, 16]}, "b": B}, "data_offsets"),
        ({"a": A | {"dtype": 5}, "b": B}, "a has the type 5"),
        ({"a": A | {"dtype": "F" * 10**5}, "b": B}, "a is of type FFFFFFFFFFFFFFFFFFFF, not one of"),
        ({"a" * 10**6: A, "b": B}, "is no name of a tensor"),
        ({"a\nb": A, "b": B}, r"'a\\nb' is no name of a tensor"),
        ({"a": [A], "b": B}, "not an object"),
        ({"__metadata__": {"x": 5}, "a": A, "b": B}, "its metadata are not texts"),
        ({"__metadata__": "x", "a": A, "b": B}, "its metadata are not texts"),
        (b"\xff" * 10**5, "its byte 0 is not UTF-8"),
        (b'{"a":' * 10**5, "nested too deep"),
    ],
)
def test_a_file_that_is_wrong_is_one_short_sentence(one_file, header, words):
    with pytest.raises(ConversionError, match=f"model.safetensors: .*{words}") as error:
        Checkpoint(one_file(header))
    assert len(error.value.problems) == 1 and len(str(error.value)) < 600


def test_what_looks_odd_but_is_right_is_read(one_file):
    nothing = {"dtype": "F16", "shape": [0, 3], "data_offsets": [16, 16]}
    found = Checkpoint(one_file({"b": B, "nothing": nothing, "a": A, "__metadata__": {"format": "pt"}}))
    assert found.read("nothing").shape == (0, 3) and found.read("b").shape == (4,)


def test_headers_have_a_size(one_file):
    with pytest.raises(ConversionError, match="its header takes 16777217 bytes, where at most 16777216 are read"):
        Checkpoint(one_file(b" " * (2**24 + 1)))


@pytest.mark.parametrize("prefix", ["transformer.", "module.", "model.diffusion_model.", "_orig_mod."])
def test_a_common_prefix_of_all_names_is_taken_off(copy, prefix):
    spec, folder = copy
    before = load_params(folder, spec, "transformer")

    def change(tensors):
        named = {prefix + key: tensors.pop(key) for key in list(tensors)}
        tensors |= named

    rewrite(folder / "transformer", change)
    assert_identical(load_params(folder, spec, "transformer"), before)
    rewrite(folder / "transformer", lambda tensors: tensors.pop(f"{prefix}proj_out.bias"))
    assert failure(folder, spec) == ["missing: proj_out.bias (16,)"]


def test_a_long_list_of_problems_is_cut(copy):
    spec, folder = copy

    def change(tensors):
        for key in list(tensors):
            tensors[f"{key}.{'x' * 330}"] = tensors.pop(key)

    rewrite(folder / "transformer", change)
    with pytest.raises(ConversionError) as error:
        load_params(folder, spec, "transformer")
    lines = str(error.value).splitlines()
    assert len(lines) == 1 + 20 + 1 and max(map(len, lines)) < 320
    assert lines[-1] == f"  and {len(error.value.problems) - 20} more" and len(error.value.problems) > 100


@pytest.mark.parametrize(
    "name",
    ["../vae/diffusion_pytorch_model.safetensors", "/etc/x.safetensors", "..", ".", "", "a/b.safetensors", 5, None],
)
def test_an_index_names_files_beside_it(copy, name):
    spec, folder = copy
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["proj_out.bias"] = name
    path.write_text(json.dumps(index))
    [problem] = failure(folder, spec)
    assert problem.startswith(f"{path.name}: it has 'proj_out.bias' in ") and "no safetensors file beside it" in problem


def test_folders_and_pointers_in_place_of_files(copy):
    spec, folder = copy
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    assert failure(folder, spec) == [f"{path.name}: {POINTER}"]
    path.unlink()
    path.mkdir()
    assert failure(folder, spec) == [f"{path.name}: a folder, not a file"]
    config = folder / "transformer" / "config.json"
    config.unlink()
    os.mkfifo(config)
    with pytest.raises(ConversionError) as error:
        read_spec(folder)
    assert error.value.problems == ("transformer/config.json: a FIFO, not a file",)


def test_an_index_that_lies(copy):
    spec, folder = copy
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index = json.loads(path.read_text())
    shard = index["weight_map"].pop("proj_out.bias")
    index["weight_map"]["nothing"] = shard
    path.write_text(json.dumps(index))
    assert failure(folder, spec) == [
        f"{shard}: lacks nothing, which the index says it holds",
        f"{shard}: holds proj_out.bias, which the index lacks",
    ]
    path.write_text("{}")
    assert failure(folder, spec) == [f"{path.name}: not a JSON object with a weight_map"]


def test_folders_without_weights(copy):
    spec, folder = copy
    for path in (folder / "transformer").glob("*safetensors*"):
        path.unlink()
    (folder / "transformer" / "tf_model.h5").touch()
    assert failure(folder, spec) == [
        "no diffusion_pytorch_model.safetensors[.index.json] and no model.safetensors[.index.json]; "
        "there is config.json, tf_model.h5"
    ]
    shutil.rmtree(folder / "transformer")
    assert failure(folder, spec) == ["no such folder"]
