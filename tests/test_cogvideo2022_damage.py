"""Folders of CogVideo (2022) that are wrong, with the one that ships as what was right: each is told by its name."""

import json
import shutil
import types
import warnings

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_cli import fails, run

from cogvx_jax.convert.cogvideo2022_folder import ASSETS, compare_bases, open_parts, read_images
from cogvx_jax.pipelines.cogvideo2022.load import load_cogvideo2022
from cogvx_jax.pipelines.cogvideo2022.text import TextTokenizer
from cogvx_jax.train.cogvideo2022.batches import warn_of_long
from cogvx_jax.train.cogvideo2022.beginning import begin


@pytest.fixture
def copy(tmp_path):
    """A copy of `tiny2022`."""
    return shutil.copytree(ASSETS / "tiny2022", tmp_path / "copy")


def spoil(file, ending, value):
    """Puts a number into a tensor of a file, and gives its name."""
    tensors = load_file(file)
    name = next(key for key in tensors if key.endswith(ending))
    tensors[name].flat[5] = value
    save_file(tensors, file)
    return name


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_tokenizer_that_is_not_finite_is_named(value, copy):
    spoil(copy / "image_tokenizer.safetensors", "conv_in.weight", value)
    parts = open_parts(copy)
    with pytest.raises(ValueError, match=f"image tokenizer of {copy} holds numbers that are not finite in .*conv_in"):
        read_images(parts, parts.image_sizes)


def test_a_base_that_is_not_finite_is_neither_quantised_nor_trained(copy, tmp_path, monkeypatch, capsys):
    spoil(copy / "base.safetensors", "layers.1.mlp.dense_h_to_4h.weight", np.nan)
    said = fails("quantize", copy, tmp_path / "integers", monkeypatch=monkeypatch, capsys=capsys)
    assert "numbers that are not finite" in said and not (tmp_path / "integers").exists()
    with pytest.raises(ValueError, match=f"^{copy} holds numbers that are not finite in blocks/base"):
        begin(open_parts(copy), "sequential")


def test_a_stage_that_was_copied_over_the_other_is_refused(copy):
    shutil.copy(copy / "sequential.safetensors", copy / "interpolation.safetensors")
    sizes = json.loads((copy / "cogvideo2022.json").read_text())
    sizes["stages"]["interpolation"]["extra_positions"] = sizes["stages"]["sequential"]["extra_positions"]
    (copy / "cogvideo2022.json").write_text(json.dumps(sizes))
    with pytest.raises(ValueError, match="has the sequential stage twice"):
        compare_bases(open_parts(copy))


def test_a_truncated_file_is_named(copy):
    file = copy / "base.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=f"^{file}: truncated"):
        open_parts(copy)


@pytest.mark.parametrize("axis", ["context", "cfg", "sp"])
def test_axes_that_split_nothing_are_refused(axis):
    mesh = types.SimpleNamespace(shape={axis: 2, "tensor": 1})
    with pytest.raises(ValueError, match=f"^{axis}=2 splits nothing .* data, fsdp, tensor"):
        load_cogvideo2022("tiny2022", mesh=mesh)
    with pytest.raises(ValueError, match=f"^{axis}=2 splits nothing"):
        begin(open_parts("tiny2022"), "sequential", mesh=mesh)


def test_captions_that_are_cut_are_told():
    parts = open_parts("tiny2022")
    cfg = parts.stages["sequential"]
    tokenizer = TextTokenizer.read(parts.text_model, offset=cfg.codes, language="English")
    short, long = "a red circle moves right on a white background", "a red circle " * 20
    with pytest.warns(UserWarning, match="^1 captions have more than 16 tokens .* the first is 'a red circle"):
        warn_of_long(tokenizer, [short, long, long], cfg.text_length)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_long(tokenizer, [short], cfg.text_length)


def test_a_copy_is_not_the_published_model_and_its_run_is_known(copy, tmp_path, monkeypatch, capsys):
    run("info", copy, monkeypatch=monkeypatch)
    assert "it is not the published model" in capsys.readouterr().out
    trained = tmp_path / "trained"
    trained.mkdir()
    said = {"trains": "cogvideo2022", "source": "tiny2022", "channel": "interpolation"}
    (trained / "run.json").write_text(json.dumps(said))
    run("inspect", trained, monkeypatch=monkeypatch)
    assert "the interpolation channel of CogVideo (2022), from tiny2022" in capsys.readouterr().out
