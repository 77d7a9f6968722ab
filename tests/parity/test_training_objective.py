"""The training loss against the arithmetic of diffusers' trainers, in torch, on the same random numbers."""

import importlib.util
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import cogvx_jax  # noqa: E402
from cogvx_jax.train.transformer import objective  # noqa: E402

_spec = importlib.util.spec_from_file_location("record", Path(__file__).parents[1] / "golden" / "record.py")
record = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(record)

T = [7, 500, 999]  # timesteps


@pytest.mark.parametrize(
    "kind, frames, size",
    [
        ("2b", 3, (4, 6)),
        ("1.5-i2v", 5, (4, 6)),
        pytest.param("5b", 3, (8, 12), marks=pytest.mark.full),
        pytest.param("5b-i2v", 3, (8, 12), marks=pytest.mark.full),
        pytest.param("1.5", 3, (4, 6), marks=pytest.mark.full),
    ],
)
def test_loss(kind, frames, size, tmp_path, monkeypatch):
    pipe, model = record.build(kind, tmp_path / kind), cogvx_jax.load(tmp_path / kind, dtype="float32")
    rng = np.random.default_rng(0)
    channels = pipe.vae.config.latent_channels

    def normal(*shape):
        return rng.standard_normal(shape, np.float32)

    mean = normal(3, frames, *size, channels)
    padded = frames + frames % (model.spec.transformer.patch_t or 1)
    noise, text = normal(3, padded, *size, channels), normal(3, record.TEXT_LENGTH, 24)
    batch = {"moments": np.concatenate([mean, np.full_like(mean, -30)], axis=-1), "text": text}
    if kind.endswith("i2v"):
        batch |= {"image": rng.uniform(-1, 1, (3, 8 * size[0], 8 * size[1], 3)).astype(np.float32)}
        batch |= {"vae": model.params["vae"]}
    # The posterior's noise is off, so that both sides have the same latents; the rest is given.
    monkeypatch.setattr(objective.vaes, "sample", lambda moments, noise: objective.vaes.mode(moments))
    monkeypatch.setattr(objective, "draw_noise", lambda *_: jnp.asarray(noise))
    monkeypatch.setattr(objective, "draw_timesteps", lambda *_: jnp.asarray(T))
    options = objective.Objective(
        text_dropout=0, image_dropout=0, image_noise=False, image_scale=pipe.vae.config.scaling_factor
    )
    loss = jax.jit(objective.make_loss(model.spec, model.compute, options))
    ours = float(loss(model.params["transformer"], batch, jax.random.key(0)))

    theirs = float(trainer_loss(pipe, record.switch(pipe, "dpm").scheduler, mean, noise, text, batch.get("image")))
    print(f"\n{kind}: {abs(ours - theirs) / theirs:.1e}")
    assert abs(ours - theirs) <= 1e-5 * theirs


@torch.no_grad()
def trainer_loss(pipe, scheduler, mean, noise, text, image):
    """As the official trainers have it: x0's error over 1 - alpha_bar, the frame in front, ofs."""

    def theirs(x):  # channels after frames
        return torch.from_numpy(np.moveaxis(x, -1, 2).copy())

    scale, patch_t = pipe.vae.config.scaling_factor, pipe.transformer.config.patch_size_t
    x0, t = theirs(mean) * scale, torch.tensor(T)
    if patch_t is not None and x0.shape[1] % patch_t:
        x0 = torch.cat([x0[:, : x0.shape[1] % patch_t], x0], dim=1)
    noisy = scheduler.add_noise(x0, theirs(noise), t)
    seen = noisy
    if image is not None:
        pixels = torch.from_numpy(np.moveaxis(image, -1, 1)).unsqueeze(2)
        latents = pipe.vae.encode(pixels).latent_dist.mode().permute(0, 2, 1, 3, 4) * scale
        padding = latents.new_zeros((len(latents), noisy.shape[1] - 1, *latents.shape[2:]))
        seen = torch.cat([noisy, torch.cat([latents, padding], dim=1)], dim=2)
    rope = ofs = None
    if pipe.transformer.config.use_rotary_positional_embeddings:
        height, width = noisy.shape[3:]
        rope = pipe._prepare_rotary_positional_embeddings(8 * height, 8 * width, noisy.shape[1], "cpu")
    if pipe.transformer.config.ofs_embed_dim is not None:
        ofs = torch.full((1,), 2.0)
    out = pipe.transformer(seen, torch.from_numpy(text), t, ofs=ofs, image_rotary_emb=rope, return_dict=False)[0]
    predicted = scheduler.get_velocity(out, noisy, t)
    weights = 1 / (1 - scheduler.alphas_cumprod[t].float())
    return torch.mean(weights.view(-1, 1, 1, 1, 1) * (predicted - x0) ** 2)
