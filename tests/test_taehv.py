"""The tiny autoencoder of taehv: recorded numbers, whole and in batches, and as the VAE of a model."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from packings import spec_of_16, write_taehv
from small_files import small_spec, write_small

import cogvx_jax as cx
from cogvx_jax.configs import Compute, VAEConfig
from cogvx_jax.convert import ConversionError, load_params
from cogvx_jax.convert.inspection import inspect
from cogvx_jax.convert.sources import open_source
from cogvx_jax.convert.targets import write_model
from cogvx_jax.given import Given
from cogvx_jax.models import vae as vaes
from cogvx_jax.models.taehv import vae_of
from cogvx_jax.pipelines.latents import decode_frames
from cogvx_jax.train.vae.run import train_vae
from cogvx_jax.train.vae.settings import VAERunConfig


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent / "golden" / "taecvx.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """`taecvx.safetensors` of numbers drawn from names: 128 tensors, 11,315,539 numbers."""
    return write_taehv(tmp_path_factory.mktemp("taehv") / "taecvx.safetensors")


@pytest.fixture(scope="module")
def model(file, tmp_path_factory):
    """A small model with it."""
    folder = write_small(tmp_path_factory.mktemp("model") / "model", spec_of_16())
    return folder, cx.load(folder, vae=file, components=("vae",))


@pytest.fixture(scope="module")
def run(model):
    vae = model[1].vae
    decode = jax.jit(lambda p, z, c: vae.apply({"params": p}, z, c, method="decode_batch"))
    encode = jax.jit(lambda p, x, c: vae.apply({"params": p}, x, c, method="encode_batch"))
    return {"decode_batch": decode}, {"encode_batch": encode}


def last(x):
    """(B, F, C, H, W) to channels-last."""
    return x.transpose(0, 1, 3, 4, 2)


def test_it_decodes_as_recorded(model, golden, run):
    found = model[1]
    assert found.spec.vae.taehv and found.spec.vae.scaling_factor == 1
    pixels = vaes.decode(found.vae, found.params["vae"], last(golden["latents"]), **run[0])
    assert pixels.shape == (1, 9, 16, 24, 3)
    unit = np.clip(np.asarray(pixels) / 2 + 0.5, 0, 1)
    np.testing.assert_allclose(unit, last(golden["pixels"]), rtol=0, atol=1e-4)


def test_it_encodes_as_recorded(model, golden, run):
    found = model[1]
    video = last(golden["video"]).astype(np.float32) / 255 * 2 - 1
    moments = vaes.encode(found.vae, found.params["vae"], video, **run[1])
    np.testing.assert_allclose(np.asarray(vaes.mode(moments)), last(golden["encoded"]), rtol=0, atol=1e-4)
    noise = np.random.default_rng(0).standard_normal((1, 3, 2, 3, 16), np.float32)
    np.testing.assert_allclose(np.asarray(vaes.sample(moments, noise)), last(golden["encoded"]), rtol=0, atol=1e-4)


MORE_BATCHES = [pytest.param(*case, marks=pytest.mark.full) for case in ((1, 1), (3, 9), (4, 16))]


@pytest.mark.parametrize("count, frames", MORE_BATCHES)
def test_batches_of_any_size_give_the_whole(model, golden, run, count, frames):
    found = model[1]
    params, latents = found.params["vae"], last(golden["latents"])
    latents = np.concatenate([latents, latents], axis=1)[:, :count]
    whole, _ = run[0]["decode_batch"](params, latents, None)
    assert whole.shape[1] == frames
    streamed = vaes.decode(found.vae, params, latents, **run[0])
    np.testing.assert_allclose(np.asarray(streamed), np.asarray(whole), rtol=0, atol=2e-5)
    if count == 3:  # frame by frame
        first, cache = run[0]["decode_batch"](params, latents[:, :1], None)
        parts = [first]
        for i in range(1, count):
            part, cache = run[0]["decode_batch"](params, latents[:, i : i + 1], cache)
            parts.append(part)
        np.testing.assert_allclose(np.concatenate(parts, axis=1), np.asarray(whole), rtol=0, atol=2e-5)


@pytest.mark.full
def test_a_model_decodes_with_it(model, golden):
    frames = np.concatenate(list(decode_frames(model[1], last(golden["latents"]))))
    wanted = last(golden["pixels"])[0] * 255
    assert frames.dtype == np.uint8 and np.abs(frames - wanted).max() < 0.6


def test_it_is_said_and_can_be_scaled(model, file, capsys):
    folder, _ = model
    given = dict(vae=file, position="rope")
    transformer = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    for place in (folder, transformer):
        source = open_source(place, Given.of(given | {"scaling_factor": 0.7}))
        assert source.spec().vae.taehv and source.spec().vae.scaling_factor == 0.7
    assert "vae: the tiny one of taehv; latents are divided by 0.7" in source.inferred()
    facts = inspect(file)
    assert facts["holds"] == "the vae (taehv names)"
    assert facts["use"] == [f"cogvx generate 'a panda' --model MODEL --vae {file}"]


def test_what_does_not_fit_and_what_cannot_hold_it(model, file, tmp_path):
    folder, found = model
    with pytest.raises(ConversionError, match="its VAE is the tiny one of taehv"):
        write_model(open_source(folder, Given(vae=str(file))), tmp_path / "out", "diffusers")
    assert not (tmp_path / "out").exists()
    other = write_small(tmp_path / "other", small_spec("5b"))
    with pytest.raises(ConversionError, match=re.escape("misshapen: decoder.1.weight is (256, 16, 3, 3), not (256, 4")):
        cx.load(other, vae=file, components=("vae",))
    assert vae_of(VAEConfig(), Compute()).__class__ is vaes.VAE
    with pytest.raises(ValueError, match="has the tiny autoencoder of taehv, which is not trained"):
        train_vae(found, (), (), VAERunConfig(), tmp_path / "run", source="x")
    source = open_source(folder)
    assert not source.spec().vae.taehv and load_params(source, source.spec(), "vae")
