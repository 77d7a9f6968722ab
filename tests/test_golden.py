"""Our parts against arrays recorded from diffusers and transformers by `tests/golden/record.py`, in float32."""

from pathlib import Path

import jax
import numpy as np
import pytest

import cogvx_jax
from cogvx_jax.convert import load_params, read_spec
from cogvx_jax.models import vae as vaes
from cogvx_jax.models.t5 import T5Encoder
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.models.vae import VAE

pytestmark = pytest.mark.device

GOLDEN = Path(__file__).parent / "golden"
PROMPT = "a red circle moves right on a white background"


def arrays(kind):
    with np.load(GOLDEN / kind / "arrays.npz") as file:
        return dict(file)


def part(kind, component):
    spec = read_spec(GOLDEN / kind)
    return getattr(spec, component), load_params(GOLDEN / kind, spec, component)


def assert_close(ours, theirs, tolerance):
    """Largest difference, relative to the largest number. A norm with a wrong epsilon is 7e-6 off."""
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert difference <= tolerance, f"{difference:.2e}"


@pytest.mark.parametrize("kind", ["2b", "5b", "5b-i2v", "1.5", "1.5-i2v"])
def test_transformer(kind):
    golden, (cfg, params) = arrays(kind), part(kind, "transformer")
    v = jax.jit(Transformer(cfg).apply)({"params": params}, golden["latents"], golden["text"], golden["t"])
    assert_close(v, golden["v"], 5e-6)


@pytest.mark.full
def test_vae_encodes_17_frames():
    golden, (cfg, params) = arrays("2b"), part("2b", "vae")
    vae = VAE(cfg)
    run = jax.jit(lambda p, x, cache: vae.apply({"params": p}, x, cache, method="encode_batch"))
    moments = vaes.encode(vae, params, golden["encode/pixels"], encode_batch=run)
    assert_close(moments, golden["encode/moments"], 2e-5)


@pytest.mark.full
def test_vae_decodes_5_latents():
    golden, (cfg, params) = arrays("2b"), part("2b", "vae")
    vae = VAE(cfg)
    run = jax.jit(lambda p, z, cache: vae.apply({"params": p}, z, cache, method="decode_batch"))
    pixels = vaes.decode(vae, params, golden["decode/latents"], decode_batch=run)
    assert_close(pixels, golden["decode/pixels"], 2e-5)


def test_text_encoder():
    golden, (cfg, params) = arrays("2b"), part("2b", "text_encoder")
    states = jax.jit(T5Encoder(cfg).apply)({"params": params}, golden["text/ids"])
    assert_close(states, golden["text/states"], 5e-6)


class Noise:
    """A noise source of recorded arrays."""

    def __init__(self, latents, steps):
        self._latents, self._steps = latents, steps

    def latents(self, shape):
        assert self._latents.shape == shape
        return self._latents

    def posterior(self, shape):
        raise AssertionError("text to video encodes no pixels")

    def step(self, index, shape):
        assert self._steps[index].shape == shape
        return self._steps[index]


@pytest.mark.parametrize("sampler", ["ddim", "dpm"])
def test_text_to_video(sampler):
    golden, model = arrays("2b"), cogvx_jax.load(GOLDEN / "2b", dtype="float32")
    latents = cogvx_jax.generate(
        model,
        PROMPT,
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=5,
        guidance_scale=6.0,
        use_dynamic_cfg=True,
        sampler=sampler,
        noise=Noise(golden[f"{sampler}/noise"], golden[f"{sampler}/steps"]),
        output="latents",
        progress=False,
    )
    assert_close(latents, golden[f"{sampler}/latents"], 1e-4)
