"""Trains the `tiny` model from nothing: first the VAE, then text encoder and transformer together."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cogvx_jax.configs import VAEConfig
from cogvx_jax.data import shapes
from cogvx_jax.models import vae as vaes
from cogvx_jax.train import optim
from cogvx_jax.train.loop import fit

VAE = VAEConfig(channels=(16, 24, 32, 64), layers=1, groups=8, sample_height=64, sample_width=64)
# Random crops first, four times cheaper a clip, then whole clips, whose norms see the real statistics.
VAE_STAGES = ((2600, 4, 32), (500, 2, 64))  # updates, clips, pixels


def train_vae(folder: Path):
    vae = vaes.VAE(VAE)
    params = nn.unbox(vae.init(jax.random.key(0), jnp.zeros((1, 9, 32, 32, 3))))["params"]
    scenes, _ = shapes.split()
    total = sum(steps for steps, _, _ in VAE_STAGES)

    def batches(step):
        rng = np.random.default_rng((1, step))
        _, count, size = VAE_STAGES[0] if step < VAE_STAGES[0][0] else VAE_STAGES[1]
        return np.stack([crop(shapes.draw(scenes[rng.integers(len(scenes))], rng), size, rng) for _ in range(count)])

    state = fit(
        params, batches, functools.partial(vae_loss, vae), optim.adamw(2e-3, total), steps=total, folder=folder, seed=0, decay=0.99
    )
    return state.average


def vae_loss(vae: vaes.VAE, params, pixels: jax.Array, key: jax.Array) -> jax.Array:
    """L1 and squared error of the reconstruction, and a little KL. pixels: (B, F, H, W, 3) uint8."""
    pixels = pixels.astype(jnp.float32) / 127.5 - 1
    moments = vaes.encode(vae, params, pixels)
    noise = jax.random.normal(key, (*moments.shape[:-1], vae.cfg.latent_channels))
    error = vaes.decode(vae, params, vaes.sample(moments, noise)) - pixels
    return jnp.mean(jnp.abs(error)) + 2 * jnp.mean(jnp.square(error)) + 1e-4 * jnp.mean(vaes.kl(moments))


def crop(clip: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random square of `size` pixels out of (F, H, W, 3)."""
    top, left = rng.integers(clip.shape[1] - size + 1, size=2)
    return clip[:, top : top + size, left : left + size]


if __name__ == "__main__":
    train_vae(Path("runs/tiny/vae"))
