"""A folder that holds what differs from a model beside it."""

import json

import numpy as np
import pytest
from conftest import KINDS
from safetensors.numpy import save_file

import cogvx_jax as cx
from cogvx_jax.convert import ConversionError, load_params
from cogvx_jax.convert.checkpoint import open_parameters
from cogvx_jax.convert.inspection import inspect
from cogvx_jax.convert.sources import CHANGES, open_source
from cogvx_jax.convert.targets import write_model


@pytest.fixture
def changed(small, tmp_path):
    """A folder in which `new` is `base` with more channels, and the model of `base`."""
    folder, model = small("5b")
    (tmp_path / "base").symlink_to(folder)
    new = tmp_path / "new"
    (new / "transformer").mkdir(parents=True)
    (new / CHANGES).write_text(json.dumps({"of": "base"}))
    (new / "generation.json").write_text(json.dumps({"name": "new", "num_inference_steps": 7}))
    (new / "transformer" / "config.json").write_text(json.dumps({"in_channels": KINDS["inpaint"]["in_channels"]}))
    kernel = np.random.default_rng(0).standard_normal((model.spec.transformer.width, 9, 2, 2)).astype(np.float16)
    save_file({"patch_embed.proj.weight": kernel}, new / "transformer" / "diffusion_pytorch_model.safetensors")
    return new, model, kernel


def test_what_differs_comes_before_what_is_beside_it(changed, tmp_path):
    folder, base, kernel = changed
    model = cx.load(folder)
    assert (model.spec.name, model.spec.kind, model.spec.defaults.num_inference_steps) == ("new", "inpaint", 7)
    assert model.spec.defaults.height == base.spec.defaults.height and model.spec.vae == base.spec.vae
    np.testing.assert_array_equal(
        model.params["transformer"]["patch"]["kernel"], np.float32(kernel).reshape(len(kernel), -1).T
    )
    for part, path in (("transformer", ("out", "kernel")), ("vae", ("decoder", "conv_out", "bias"))):
        ours, theirs = model.params[part], base.params[part]
        for name in path:
            ours, theirs = ours[name], theirs[name]
        np.testing.assert_array_equal(ours, theirs)
    assert "lacks" not in inspect(folder) and inspect(folder)["model"] == "new"

    write_model(open_source(folder), tmp_path / "whole", "diffusers")  # a model of its own
    whole = open_source(tmp_path / "whole")
    for path, x in load_params(whole, model.spec, "transformer")["patch"].items():
        np.testing.assert_array_equal(x, model.params["transformer"]["patch"][path])


@pytest.mark.parametrize(
    "of, problem",
    [
        ("nowhere", "nowhere is no model in the published layout"),
        ("new", "new is no model in the published layout"),
        ("../base", "no name of a folder beside it"),
        (3, "of 3 is no name of a folder beside it"),
    ],
)
def test_a_base_must_lie_beside_it(changed, of, problem):
    folder, _, _ = changed
    (folder / CHANGES).write_text(json.dumps({"of": of}))
    with pytest.raises(ConversionError) as raised:
        open_source(folder).spec()
    assert problem in str(raised.value)


def test_what_does_not_fit_is_named(changed):
    folder, model, kernel = changed
    (folder / "generation.json").write_text("[")
    with pytest.raises(ConversionError, match="generation.json"):
        open_source(folder).spec()
    (folder / "generation.json").unlink()
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({"patch_embed.proj.weight": kernel[:, :8]}, file)
    with pytest.raises(ConversionError, match="patch_embed.proj.weight"):
        open_parameters(open_source(folder), open_source(folder).spec(), "transformer")
    save_file({"patch_embed.proj.other": kernel}, file)
    with pytest.raises(ConversionError, match="spare: patch_embed.proj.other"):
        open_source(folder).tensors("transformer")
