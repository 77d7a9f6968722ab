"""Trains the `tiny` model from nothing: the VAE, then text encoder and transformer together.

    python -m cogvx_jax.scripts.train_tiny --folder runs/tiny

Every stage resumes from its newest checkpoint; a finished stage is skipped. The result is written
to FOLDER/model in the published layout, with the model card.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import linen as nn

from cogvx_jax.configs import (
    GenerationDefaults,
    ModelSpec,
    ScheduleConfig,
    T5Config,
    TransformerConfig,
    VAEConfig,
)
from cogvx_jax.convert import export
from cogvx_jax.diffusion import objective, schedule
from cogvx_jax.models import vae as vaes
from cogvx_jax.models.t5 import T5Encoder
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.tiny import shapes
from cogvx_jax.tiny.tokenizer import build_tokenizer
from cogvx_jax.train import optim
from cogvx_jax.train.loop import Input, Update, run_updates
from cogvx_jax.train.progress import Span
from cogvx_jax.train.vae import objective as vae_objective

VAE_OBJECTIVE = vae_objective.VAEObjective(l1=1.0, squared=2.0, lpips=0.0, kl=1e-4)
VAE = VAEConfig(channels=(16, 24, 32, 64), layers=1, groups=8, sample_height=64, sample_width=64)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of the VAE's training. Each starts from the averaged parameters of the one before."""

    steps: int
    tx: optax.GradientTransformation
    clips: int  # a batch
    size: int  # pixels: a random crop of the clip, or all of it
    edge: float = shapes.EDGE
    decoder_only: bool = False  # the latents stay as they are
    stars: float = 1.0  # how many times as often as another a clip shows a star: the finest outlines


# Random crops first, four times cheaper a clip, then whole clips, whose norms see the real statistics.
VAE_STAGES = (
    Stage(1600, optim.adamw(2e-3, 3100), clips=4, size=32, edge=1.0),
    Stage(1300, optim.muon(3e-3, 1500), clips=4, size=32),
    Stage(300, optim.muon(1e-3, 400), clips=1, size=64),
    Stage(1500, optim.muon(6e-4, 1500), clips=1, size=64),
    Stage(600, optim.muon(5e-4, 600), clips=1, size=64, decoder_only=True),
    Stage(400, optim.muon(3e-4, 400), clips=1, size=64, decoder_only=True),
    Stage(500, optim.muon(4e-4, 500), clips=1, size=64, decoder_only=True),
    Stage(1200, optim.muon(5e-4, 1200), clips=1, size=64, decoder_only=True, stars=2.0),
)
TEXT = T5Config(layers=2, width=128, heads=4, head_dim=32, mlp=256, vocab=128)
TRANSFORMER = TransformerConfig(
    layers=6,
    heads=5,
    head_dim=32,
    text_dim=TEXT.width,
    time_dim=128,
    position="rope",
    sample_height=8,
    sample_width=8,
    sample_frames=shapes.FRAMES,
)
SCHEDULE = ScheduleConfig(snr_shift=3.0)
CLIPS = 10584  # seven of every training scene
BATCH = 24
TEXT_DROPOUT = 0.1  # of captions replaced by the empty one: what guidance steers away from
# Captions have at most 24 tokens, the model 226: most updates see the short form, at a third of the
# cost, and enough see the long one to learn that padding says nothing.
SHORT, LONG_EVERY, LONG_TAIL = 24, 24, 60


@dataclasses.dataclass(frozen=True)
class TextStage:
    """A part of the training of text encoder and transformer, from the averages of the one before."""

    steps: int
    tx: optax.GradientTransformation
    schedule: ScheduleConfig = SCHEDULE
    # Timesteps of every other clip come from this range. A plain background can be read off latents that are
    # nearly all noise, so the text is needed, and learnt, near the end of the range only; outlines are
    # drawn near its beginning.
    focus: tuple[int, int] = (0, 1000)
    # How many times as often as another a clip shows a star, or something that spins: what is learnt last.
    stars: float = 1.0
    spins: float = 1.0


TEXT_STAGES = (
    TextStage(2500, optim.muon(2e-3, 2500, warmup=200), ScheduleConfig(snr_shift=1.0)),
    TextStage(1400, optim.muon(2e-3, 2000, warmup=100), focus=(800, 1000)),
    TextStage(3000, optim.muon(2e-3, 8000, warmup=100), focus=(800, 1000)),
    TextStage(5000, optim.muon(2e-3, 5000), focus=(0, 500)),
    TextStage(5000, optim.muon(2e-3, 5000, warmup=100), focus=(0, 600), stars=3.0, spins=2.0),
    TextStage(5500, optim.muon(2e-3, 5500, warmup=100), focus=(0, 600), stars=3.0, spins=2.0),
    TextStage(3500, optim.muon(2e-3, 3500, warmup=100), focus=(100, 700), stars=2.5, spins=5.0),
    TextStage(6000, optim.muon(2e-3, 6000, warmup=100), focus=(100, 700), stars=2.5, spins=4.0),
)


def main(folder: Path = Path("runs/tiny")) -> None:
    """Trains what is not yet trained below `folder` and writes the model to `folder`/model.

    Args:
      folder: where checkpoints, logs, cached latents and the result go.
    """
    vae_params = train_vae(folder)
    moments, scale = encode_clips(folder, vae_params)
    build_tokenizer(folder / "tokenizer", TRANSFORMER.text_length)
    params = train_transformer(folder, moments, scale)
    write_model(folder, params | {"vae": vae_params}, scale)


def train_vae(folder: Path):
    """The VAE's averaged parameters after VAE_STAGES."""
    vae = vaes.VAE(VAE)
    params = nn.unbox(vae.init(jax.random.key(0), jnp.zeros((1, 9, 32, 32, 3))))["params"]
    for number, stage in enumerate(VAE_STAGES):
        params = train_vae_stage(folder / f"vae_{number}", params, stage, number)
    return params


def train_vae_stage(folder: Path, params, stage: Stage, number: int):
    """The averaged parameters after one stage."""
    vae = vaes.VAE(VAE)
    scenes, _ = shapes.split()
    chances = chance(scenes, stars=stage.stars)

    def batches(step):
        rng = np.random.default_rng((1, number, step))
        chosen = rng.choice(len(scenes), size=stage.clips, p=chances)
        clips = (shapes.draw(scenes[i], rng, edge=stage.edge) for i in chosen)
        return np.stack([crop(clip, stage.size, rng) for clip in clips])

    frozen = {"encoder": params["encoder"]} if stage.decoder_only else {}
    moving = {name: part for name, part in params.items() if name not in frozen}

    def loss(moving, pixels, key):
        return vae_loss(vae, frozen | moving, pixels, key)

    update = Update(loss=loss, tx=stage.tx, decay=0.99)
    state = run_updates(moving, Input(batches=batches), update, Span(steps=stage.steps), folder, seed=number)
    return frozen | state.exported


def chance(scenes: list[shapes.Scene], *, stars: float = 1.0, spins: float = 1.0) -> np.ndarray:
    """The probability of each scene to be drawn, of one with a star `stars` times another's."""
    weights = np.array([stars ** (s.shape == "star") * spins ** (s.motion == "spins") for s in scenes])
    return weights / weights.sum()


def vae_loss(vae: vaes.VAE, params, pixels: jax.Array, key: jax.Array) -> jax.Array:
    """L1 and squared error of the reconstruction, and a little KL. pixels: (B, F, H, W, 3) uint8."""
    return vae_objective.vae_loss(VAE_OBJECTIVE, vae, params, vae_objective.to_signed(pixels), key)


def crop(clip: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random square of `size` pixels out of (F, H, W, 3)."""
    top, left = rng.integers(clip.shape[1] - size + 1, size=2)
    return clip[:, top : top + size, left : left + size]


def encode_clips(folder: Path, vae_params) -> tuple[np.ndarray, float]:
    """Posteriors of CLIPS drawn clips, clip i showing training scene i mod their number.

    Returns: (CLIPS, T, h, w, 32), and the scaling factor that gives samples a standard deviation of 1.
    """
    cache = folder / "latents.npy"
    if not cache.exists():
        vae = vaes.VAE(VAE)
        encode = jax.jit(lambda p, x: vaes.encode(vae, p, x.astype(jnp.float32) / 127.5 - 1))
        scenes, _ = shapes.split()
        moments = []
        for start in range(0, CLIPS, 24):
            numbers = range(start, start + 24)
            clips = [shapes.draw(scenes[i % len(scenes)], np.random.default_rng((2, i))) for i in numbers]
            moments.append(np.asarray(encode(vae_params, np.stack(clips))))
        np.save(cache.with_suffix(".part.npy"), np.concatenate(moments))
        cache.with_suffix(".part.npy").rename(cache)
    moments = np.load(cache)
    mean, logvar = np.split(moments, 2, axis=-1)
    return moments, float(1 / np.sqrt(mean.var() + np.exp(logvar).mean()))


def train_transformer(folder: Path, moments: np.ndarray, scale: float):
    """Text encoder and transformer, trained together: {"text_encoder": ..., "transformer": ...}."""
    keys = jax.random.split(jax.random.key(3))
    latents, text = jnp.zeros((1, *moments.shape[1:-1], VAE.latent_channels)), jnp.zeros((1, SHORT, TEXT.width))
    params = {
        "text_encoder": nn.unbox(T5Encoder(TEXT).init(keys[0], jnp.zeros((1, SHORT), jnp.int32)))["params"],
        "transformer": nn.unbox(Transformer(TRANSFORMER).init(keys[1], latents, text, jnp.zeros(1)))["params"],
    }
    for number, stage in enumerate(TEXT_STAGES):
        params = train_text_stage(folder, params, stage, number, moments, scale)
    return params


def train_text_stage(folder: Path, params, stage: TextStage, number: int, moments: np.ndarray, scale: float):
    """The averaged parameters after one stage."""
    from transformers import T5Tokenizer

    tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer")
    mean, logvar = np.split(moments, 2, axis=-1)
    scenes, _ = shapes.split()
    text_encoder, transformer = T5Encoder(TEXT), Transformer(TRANSFORMER)
    alphas_bar = jnp.asarray(schedule.alphas_bar(stage.schedule), jnp.float32)
    shown = [scenes[i % len(scenes)] for i in range(len(mean))]
    chances = chance(shown, stars=stage.stars, spins=stage.spins)

    def batches(step):
        rng = np.random.default_rng((4, number, step))
        chosen = rng.choice(len(mean), size=BATCH, p=chances)
        captions = ["" if rng.random() < TEXT_DROPOUT else shapes.caption(shown[i], rng) for i in chosen]
        long = step % LONG_EVERY == 0 or step >= stage.steps - LONG_TAIL
        length = TRANSFORMER.text_length if long else SHORT
        ids = tokenizer(captions, padding="max_length", max_length=length, truncation=True).input_ids
        draws = rng.standard_normal((BATCH, *mean.shape[1:]), np.float32)
        x0 = scale * (mean[chosen] + np.exp(0.5 * logvar[chosen]) * draws)
        return {"ids": np.asarray(ids, np.int32), "x0": x0.astype(np.float32)}

    def loss(params, batch, key):
        noise_key, time_key = jax.random.split(key)
        x0 = batch["x0"]
        noise = jax.random.normal(noise_key, x0.shape)
        # One timestep per stratum of the range, so that each batch sees all of it evenly.
        part = (jnp.arange(BATCH) + jax.random.uniform(time_key, (BATCH,))) / BATCH
        focused = jnp.arange(BATCH) % 2 == 1
        first, last = jnp.where(focused, stage.focus[0], 0), jnp.where(focused, stage.focus[1], stage.schedule.steps)
        t = jnp.floor(first + part * (last - first)).astype(jnp.int32)
        text = text_encoder.apply({"params": params["text_encoder"]}, batch["ids"])
        noisy = objective.add_noise(x0, noise, alphas_bar[t])
        prediction = transformer.apply({"params": params["transformer"]}, noisy, text, t)
        return jnp.mean(objective.loss(prediction, x0, noise, alphas_bar[t]))

    update, span = Update(loss=loss, tx=stage.tx), Span(steps=stage.steps)
    where = folder / f"transformer_{number}"
    return run_updates(params, Input(batches=batches), update, span, where, seed=5 + number).exported


def write_model(folder: Path, params, scale: float) -> None:
    """FOLDER/model: the published layout, and the card."""
    from transformers import T5Tokenizer

    spec = ModelSpec(
        name="tiny",
        transformer=TRANSFORMER,
        vae=dataclasses.replace(VAE, scaling_factor=scale),
        text_encoder=TEXT,
        schedule=SCHEDULE,
        defaults=GenerationDefaults(
            height=shapes.SIZE,
            width=shapes.SIZE,
            num_frames=shapes.FRAMES,
            fps=shapes.FPS,
            num_inference_steps=20,
            guidance_scale=3.5,
            sampler="ddim",
        ),
        trained_dtype="float32",
    )
    export(folder / "model", spec, params, tokenizer=T5Tokenizer.from_pretrained(folder / "tokenizer"))
    shutil.copy(folder / "tokenizer" / "spiece.model", folder / "model" / "tokenizer")
    (folder / "model" / "README.md").write_text(card(folder))


def card(folder: Path) -> str:
    """The model card, with a summary of the logged curves and, where it is there, of `eval.json`."""
    rows = ["| part | updates | loss at 5% | at half | at the end | seconds an update |", "|---|---|---|---|---|---|"]
    for log in sorted(folder.glob("*/log.jsonl")):
        curve = [json.loads(line) for line in log.read_text().splitlines()]
        at = [curve[min(int(len(curve) * part), len(curve) - 1)]["loss"] for part in (0.05, 0.5, 1)]
        pace = np.median([row["seconds_per_step"] for row in curve])
        losses = " | ".join(f"{loss:.4f}" for loss in at)
        rows.append(f"| {log.parent.name} | {curve[-1]['step']} | {losses} | {pace:.2f} |")
    scores = folder / "eval.json"
    measured = "Not evaluated yet: run `python -m cogvx_jax.scripts.eval_tiny`."
    if scores.exists():
        found = json.loads(scores.read_text())
        parts = ", ".join(f"{name} {found[name]:.1%}" for name in ("colour", "shape", "motion", "background"))
        measured = (
            f"`python -m cogvx_jax.scripts.eval_tiny`: of {found['prompts']} held-out prompts, "
            f"{found['all']:.1%} are right in all four parts ({parts}). "
            f"VAE on held-out clips: {found['psnr']:.1f} dB PSNR."
        )
    return CARD.format(curves="\n".join(rows), measured=measured)


CARD = """---
license: apache-2.0
library_name: cogvx_jax
---
# tiny

A CogVideoX small enough to ship: 64x64, 17 frames at 8 fps, for prompts of the grammar
`a {{colour}} {{shape}} {{motion}} on a {{colour}} background` (`cogvx_jax/tiny/shapes.py`). The layout is that of
diffusers, whose `CogVideoXPipeline` opens it, too.

Made by `python -m cogvx_jax.scripts.train_tiny` on two CPU cores from clips that `tiny/shapes.py` draws; seeds are
in the script. 224 of the 1736 combinations are held out of all training. The VAE is trained first on crops, then
on whole clips; then text encoder and transformer learn on its latents. The shipped run was short of time: stages
were cut to the step counts below while they ran (the learning rate of transformer_0 followed schedules of 9600, 4000
and 2500 updates up to update 800, 1400 and 2500), and transformer_0 and _1 saw the latents of the VAE before
vae_3. Stars were as small as other shapes, 1/1.2 of what they are now, but from vae_7 and transformer_5 on; before
transformer_7 there were three clips of a scene, not seven. A run from nothing will end a little elsewhere.

{measured}

{curves}

A circle that spins looks like one that stays still, so no clip shows it. Words outside the grammar are
spelled out in letters and mean nothing to the model.
"""


if __name__ == "__main__":
    tyro.cli(main)
