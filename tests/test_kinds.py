"""Kinds of models are told by more than their channels."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest
from small_files import small_spec, write_small

import cogvx_jax as cx
from cogvx_jax.convert import ConversionError
from cogvx_jax.convert.config import documents_of, parse_documents, write_configs
from cogvx_jax.convert.infer import infer_transformer
from cogvx_jax.convert.inspection import inspect
from cogvx_jax.convert.sources import open_source, read_spec
from cogvx_jax.convert.targets import write_model
from cogvx_jax.convert.tensors import Stored
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.request import check_request
from cogvx_jax.presets import PRESETS
from cogvx_jax.train.transformer.run import check_kind

# Shape of the patches' weight, what else a file has -> kind and published model that the rest is taken from.
TABLE = [
    ((1920, 16, 2, 2), (), "t2v", "2b"),
    ((3072, 16, 2, 2), (), "t2v", "5b"),
    ((3072, 32, 2, 2), ("patch_embed.pos_embedding",), "i2v", "5b-i2v"),
    ((3072, 32, 2, 2), (), "control", "5b"),
    ((1920, 32, 2, 2), (), "control", "2b"),
    ((1920, 33, 2, 2), (), "inpaint", "2b"),
    ((3072, 33, 2, 2), (), "inpaint", "5b"),
    ((3072, 128), (), "t2v", "1.5-5b"),
    ((3072, 256), ("ofs_embedding.linear_1.weight",), "i2v", "1.5-5b-i2v"),
    ((3072, 256), (), "control", "1.5-5b"),
    ((3072, 264), (), "inpaint", "1.5-5b"),
]


@pytest.mark.parametrize("patch, more, kind, preset", TABLE)
def test_kinds_are_told_apart(patch, more, kind, preset):
    spec = PRESETS[preset]
    like = "patch_embed.proj.weight", "proj_out.weight", "patch_embed.text_proj.weight"
    shapes = dict(zip(like, [patch, (128 if len(patch) == 2 else 64, 3072), (3072, 4096)], strict=True))
    shapes |= {"transformer_blocks.0.attn1.norm_q.weight": (64,), "time_embedding.linear_1.weight": (512, 3072)}
    shapes |= {name: (512, 512) for name in more}
    found = {name: Stored(shape, np.dtype(np.float16), "x", 0) for name, shape in shapes.items()}
    document, like = infer_transformer(found)
    assert like == spec
    problems = []
    made = parse_documents(
        documents_of(like) | {"transformer/config.json": document, "model_index.json": {}}, "x", problems
    )
    assert (made.kind, problems) == (kind, [])
    assert made.transformer.in_channels == document["in_channels"] == patch[1] // (8 if len(patch) == 2 else 1)


def fun(kind, channels, base="5b"):
    """A model of CogVideoX-Fun's kind; `channels` count as one in 16."""
    spec = small_spec(base)
    transformer = dataclasses.replace(spec.transformer, in_channels=channels, control=kind == "control")
    return dataclasses.replace(spec, name=f"Fun-{kind}", transformer=transformer)


@pytest.fixture(scope="module", params=[("control", 8, "5b"), ("inpaint", 9, "5b"), ("inpaint", 9, "1.5-5b")])
def other(request, tmp_path_factory):
    """A folder of a Fun model, and its kind."""
    kind, channels, base = request.param
    return write_small(tmp_path_factory.mktemp("fun") / "model", fun(kind, channels, base)), kind


def test_fun_models_load_and_say_what_they_take(other, tmp_path):
    folder, kind = other
    model = cx.load(folder, components=("transformer",))
    assert model.spec.kind == kind and f", {kind}, " in repr(model)
    assert (
        cx.load(folder / "transformer" / "diffusion_pytorch_model.safetensors", components=("transformer",)).spec.kind
        == kind
    )
    wrong = {"control": {}, "inpaint": {"control": np.zeros((9, 32, 48, 3), np.uint8)}}[kind]
    words = {"control": "makes videos from a control video; give control", "inpaint": "takes no control video"}[kind]
    with pytest.raises(ValueError, match=f"^Fun-{kind} .*{words}"):
        check_request(model.spec, "a panda", Options.from_keywords(**wrong))
    refused = pytest.raises(ValueError, match="^Fun-control is of the kind control, which cannot be trained here")
    with refused if kind == "control" else contextlib.nullcontext():
        check_kind(model.spec)
    write_model(open_source(folder), tmp_path / "single", "single")
    assert read_spec(tmp_path / "single") == read_spec(folder)
    flags = {"control": "--control VIDEO", "inpaint": "--video VIDEO --mask MASK"}[kind]
    assert inspect(folder)["use"][0] == f"cogvx generate 'a panda' --model {folder} {flags}"


@pytest.mark.parametrize(
    "name, kind",
    [
        ("CogVideoXFunControlPipeline", "control"),
        ("CogVideoX_Fun_Pipeline_Control", "control"),
        ("CogVideoXImageToVideoPipeline", "i2v"),
    ],
)
def test_the_pipelines_class_tells_the_kind(tmp_path, name, kind):
    write_configs(fun("control", 8), tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    (tmp_path / "generation.json").unlink()
    found = read_spec(tmp_path)
    assert found.kind == kind
    assert found.defaults.sampler == ("ddim" if kind == "control" else "dpm")  # CogVideoX-Fun's own
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "CogVideoXPipeline"}))
    with pytest.raises(ConversionError, match="'CogVideoXPipeline' does not fit a transformer for i2v"):
        read_spec(tmp_path)


def test_what_a_fun_model_of_15s_layout_makes_where_nothing_is_said(tmp_path):
    """Its configuration says 300x300 latents, the bounds of positions, and 85 frames, which need no padding."""
    spec = PRESETS["1.5-5b"]
    transformer = dataclasses.replace(spec.transformer, in_channels=33, sample_frames=85)
    write_configs(dataclasses.replace(spec, transformer=transformer), tmp_path)
    (tmp_path / "generation.json").unlink()
    own = read_spec(tmp_path).defaults
    assert (own.height, own.width, own.num_frames, own.fps, own.sampler) == (768, 1360, 81, 8, "ddim")
    assert check_request(read_spec(tmp_path), "x").padding == 1 and own.image_noise == 0
    path = tmp_path / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"add_noise_in_inpaint_model": True}))
    noisy = read_spec(tmp_path)
    assert noisy.defaults.image_noise == 0.0563
    picture = np.zeros((8, 8, 3), np.uint8)
    asked = (Options(image=picture), Options(image=picture, image_noise=0), Options(image=picture, image_noise=0.1))
    assert [check_request(noisy, "x", options).image_noise for options in asked] == [0.0563, None, 0.1]
    write_configs(noisy, tmp_path / "again")
    assert read_spec(tmp_path / "again").defaults == noisy.defaults


def test_a_model_of_images_with_the_shapes_of_a_control_model_stays_one(tmp_path):
    spec = dataclasses.replace(fun("i2v", 8), name="own")
    assert spec.kind == "i2v"
    folder = write_small(tmp_path / "model", spec)
    write_model(open_source(folder), tmp_path / "single", "single")
    assert not (tmp_path / "single" / "model_index.json").exists()
    assert read_spec(tmp_path / "single") == read_spec(folder)


def test_other_channels_are_refused(tmp_path):
    write_configs(small_spec("5b"), tmp_path)
    path = tmp_path / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"in_channels": 7}))
    with pytest.raises(
        ConversionError, match=r"in_channels 7 .* only 4 \(text\), 8 \(text and image, or control\) and 9"
    ):
        read_spec(tmp_path)
