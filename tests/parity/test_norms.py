"""GroupNorm where a group's mean is large against its spread: torch's accuracy, judged by float64."""

import copy

import pytest

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from cogvx_jax.configs import ModelSpec, VAEConfig  # noqa: E402
from cogvx_jax.convert import load_params  # noqa: E402
from cogvx_jax.models import vae as vaes  # noqa: E402
from cogvx_jax.nn.norms import GroupNorm  # noqa: E402

CFG = VAEConfig(channels=(8, 8, 8, 16), layers=1, groups=4, latent_channels=4)
EPS = 1e-6
FLOOR = 1e-5  # what float32 may lose in any case, of results near 1


def channels_last(x):
    return np.moveaxis(x, 1, -1)


@pytest.mark.parametrize("mean", [0, 1, 100, -300, 1000])
def test_group_norm_is_as_accurate_as_torch_at_every_mean(mean):
    x = np.random.default_rng(0).normal(mean, 1, (2, 16, 3, 24, 40))
    x = np.float32(x)  # (B, C, F, H, W): only in this order of axes does torch avoid E[x^2] - E[x]^2 itself
    exact, theirs = (
        torch.nn.functional.group_norm(torch.from_numpy(x).to(dtype), 4, eps=EPS).numpy()
        for dtype in (torch.float64, torch.float32)
    )
    params = {"scale": jnp.ones(16), "bias": jnp.zeros(16)}
    (ours,) = GroupNorm(groups=4, eps=EPS).apply({"params": params}, channels_last(x))
    assert np.abs(ours - channels_last(exact)).max() <= max(FLOOR, 2 * np.abs(theirs - exact).max())


@pytest.mark.parametrize("raised", [pytest.param(0, marks=pytest.mark.full), 100])
def test_a_decoder_with_a_raised_bias_is_as_accurate_as_torch(raised, tmp_path):
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=CFG.channels,
        layers_per_block=CFG.layers,
        norm_num_groups=CFG.groups,
        latent_channels=CFG.latent_channels,
    ).eval()
    with torch.no_grad():
        theirs.decoder.conv_in.conv.bias.add_(raised)
    theirs.save_pretrained(tmp_path / "vae")
    vae, params = vaes.VAE(CFG), load_params(tmp_path, ModelSpec(vae=CFG), "vae")
    z = np.float32(np.random.default_rng(0).normal(size=(1, CFG.latent_channels, 3, 6, 8)))
    ours = vaes.decode(
        vae,
        params,
        channels_last(z),
        decode_batch=jax.jit(lambda p, z, cache: vae.apply({"params": p}, z, cache, method="decode_batch")),
    )
    with torch.no_grad():
        single = theirs.decode(torch.from_numpy(z)).sample.numpy()
        double = copy.deepcopy(theirs).double().decode(torch.from_numpy(z).double()).sample.numpy()
    error, their_error = (np.abs(y - channels_last(double)).max() for y in (ours, channels_last(single)))
    assert error <= 4 * their_error
