"""Tiled encoding and decoding against diffusers with tiling on."""

import pytest

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from cogvx_jax.configs import ModelSpec, VAEConfig  # noqa: E402
from cogvx_jax.convert import load_params  # noqa: E402
from cogvx_jax.models import tiling  # noqa: E402
from cogvx_jax.models import vae as vaes  # noqa: E402

CFG = VAEConfig(channels=(8, 8, 8, 16), layers=1, groups=4, latent_channels=4, sample_height=96, sample_width=160)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """diffusers' VAE with random numbers in every tensor, and the same ones as our parameters."""
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=CFG.channels,
        layers_per_block=CFG.layers,
        norm_num_groups=CFG.groups,
        latent_channels=CFG.latent_channels,
        sample_height=CFG.sample_height,
        sample_width=CFG.sample_width,
    ).eval()
    with torch.no_grad():
        for tensor in theirs.parameters():
            if tensor.ndim == 1:  # biases and norms, which are 0 and 1 at first
                tensor.add_(0.2 * torch.randn_like(tensor))
    folder = tmp_path_factory.mktemp("model")
    theirs.save_pretrained(folder / "vae")
    return theirs, vaes.VAE(CFG), load_params(folder, ModelSpec(vae=CFG), "vae")


# Three by three tiles, their last ones cut; a size that is one tile.
@pytest.mark.parametrize("frames, height, width", [pytest.param(9, 96, 160, marks=pytest.mark.full), (1, 48, 80)])
def test_tiled_is_the_references(pair, frames, height, width):
    theirs, vae, params = pair
    theirs.enable_tiling()
    rng = np.random.default_rng(frames)
    pixels = np.float32(rng.uniform(-1, 1, (1, frames, height, width, 3)))
    z = np.float32(rng.normal(size=(1, (frames - 1) // 4 + 1, height // 8, width // 8, CFG.latent_channels)))
    with torch.no_grad():
        posterior = theirs.encode(torch.from_numpy(np.moveaxis(pixels, -1, 1))).latent_dist
        expected = np.moveaxis(theirs.decode(torch.from_numpy(np.moveaxis(z, -1, 1))).sample.numpy(), 1, -1)
    run = {
        method: jax.jit(lambda p, x, cache, method=method: vae.apply({"params": p}, x, cache, method=method))
        for method in ("encode_batch", "decode_batch")
    }
    moments = tiling.encode_tiled(vae, params, jnp.asarray(pixels), encode_batch=run["encode_batch"])
    assert moments.shape == (*z.shape[:-1], 2 * CFG.latent_channels)
    np.testing.assert_allclose(moments, np.moveaxis(posterior.parameters.numpy(), 1, -1), rtol=0, atol=1e-4)
    decoded = tiling.decode_tiled(vae, params, jnp.asarray(z), decode_batch=run["decode_batch"])
    assert decoded.shape == pixels.shape
    np.testing.assert_allclose(decoded, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(480, 720), (96, 160), (192, 320), (288, 80)])
def test_geometry_is_the_references(size):
    theirs = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        sample_height=size[0],
        sample_width=size[1],
    )
    ours = tiling.Tiling.of(VAEConfig(sample_height=size[0], sample_width=size[1]))
    assert ours.tile == (theirs.tile_latent_min_height, theirs.tile_latent_min_width)
    factors = (1 - theirs.tile_overlap_factor_height, 1 - theirs.tile_overlap_factor_width)
    assert ours.stride == tuple(int(t * f) for t, f in zip(ours.tile, factors, strict=True))
    sample = (theirs.tile_sample_min_height, theirs.tile_sample_min_width)
    assert tuple(8 * s for s in ours.stride) == tuple(int(t * f) for t, f in zip(sample, factors, strict=True))
