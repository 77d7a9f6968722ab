"""Tasks beyond text: inpainting and control models, pictures at frames, masks; what is asked and what comes out."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_files import small_spec, weights, write_small

import cogvx_jax as cx
from cogvx_jax.configs import TransformerConfig, VAEConfig
from cogvx_jax.pipelines import tasks
from cogvx_jax.pipelines.generate import sample, sampler_of
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.request import check_request

GOLDEN = Path(__file__).parent / "golden"


def last(x):
    """(B, C, F, H, W) to channels-last."""
    return np.moveaxis(x, 1, -1)


# The recorded runs of CogVideoX-Fun.


class Recorded:
    """A source of recorded noise; inpainting from noise asks for nothing else."""

    def __init__(self, latents):
        self._latents = latents

    def latents(self, shape):
        assert self._latents.shape == shape
        return self._latents


@pytest.fixture(scope="module")
def recorded_model(tmp_path_factory):
    spec = small_spec("5b")
    spec = dataclasses.replace(
        spec,
        transformer=TransformerConfig(
            layers=2, heads=2, head_dim=16, in_channels=33, text_dim=24, time_dim=16, position="rope"
        ),
        vae=VAEConfig(channels=(4, 4, 4, 4), layers=1, groups=2, scaling_factor=0.7),
        text_encoder=dataclasses.replace(spec.text_encoder, width=24),
    )
    folder = write_small(tmp_path_factory.mktemp("recorded") / "model", spec)
    for seed, part in ((500, "transformer"), (501, "vae")):
        (path,) = (folder / part).glob("*.safetensors")
        shapes = {key: array.shape for key, array in load_file(path).items()}
        assert len(shapes) == {"transformer": 64, "vae": 236}[part]
        save_file({key: np.ascontiguousarray(x) for key, x in weights(shapes, seed).items()}, path)
    return cx.load(folder, components=("transformer", "vae"), dtype="float32")


def test_inpainting_is_that_of_cogvideox_fun(recorded_model):
    golden = np.load(GOLDEN / "fun_inpaint.npz")
    options = Options(
        video=last(golden["video"])[0],
        mask=golden["mask"][0, 0].astype(bool),
        size=(32, 48),
        frames=9,
        steps=3,
        guidance_scale=6.0,
        sampler="ddim",
    )
    request = check_request(recorded_model.spec, "x", options)
    noise = Recorded(np.moveaxis(golden["noise"], 2, -1))
    inputs = tasks.sampling_inputs(recorded_model, request, noise, sampler_of(recorded_model, request))
    expected = np.moveaxis(golden["inpaint_latents"], 2, -1)
    np.testing.assert_allclose(inputs.condition.channels, expected[:1], atol=1e-4)
    text = golden["text"], golden["negative"]
    latents = sample(recorded_model, request, noise=noise, progress=False, text=text)
    result = np.moveaxis(golden["result"], 2, -1)
    assert np.linalg.norm(latents - result) <= 2e-4 * np.linalg.norm(result)


@pytest.mark.parametrize("case", ["first", "first_last", "first_four", "last_four", "box"])
def test_masks_are_resized_as_recorded(case):
    golden = np.load(GOLDEN / "fun_masks.npz")
    mask, expected = golden[f"{case}_mask"][0, 0], golden[f"{case}_latent"][0, 0]
    np.testing.assert_array_equal(tasks.resize_known(mask == 0, expected.shape), expected)
    if case == "first_last":
        assert not expected[-1].any()  # the model sees the last frame by its latents alone
