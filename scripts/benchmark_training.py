"""The training workloads of `benchmark.py`: one LoRA update and one full update, beside diffusers, peft and torch.

Both sides take the same batch, noise and timestep, AdamW with its defaults and clipping at 1, in float32. What a run
gives is the loss and the gradient's norm, so that the printed difference compares the updates, too: each run's loss
comes after those before it.
"""

import dataclasses
import functools
import gc
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cogvx_jax.allocator import give_back_freed_memory
from cogvx_jax.configs import Compute
from cogvx_jax.models import lora
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.nn.backend import formulations
from cogvx_jax.scripts.benchmark_generate import FULL, SMALL, Run, Sizes, Workload, normal, our_params
from cogvx_jax.train import step as update

RATE, CLIP, WEIGHT_DECAY = 1e-4, 1.0, 1e-4
BETAS = (0.9, 0.95)
TIMESTEP = 500.0
# 1728 tokens of video and 226 of text, six layers of width 768.
TRAIN_FULL = dataclasses.replace(FULL, tokens=(3, 48, 48))
TRAIN_SMALL = SMALL


def rank(sizes: Sizes) -> int:
    return 64 if sizes.spec.transformer.width >= 768 else 4


def inputs(sizes: Sizes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noisy latents, text states and the v to predict: only the transformer is timed."""
    cfg = sizes.spec.transformer
    x = normal(2, *sizes.tokens, cfg.in_channels)
    return x[:1], normal(1, cfg.text_length, cfg.text_dim), x[1:]


def our_update(sizes: Sizes, folder: Path, *, adapters: bool) -> Run:
    transformer = Transformer(sizes.spec.transformer, Compute(remat=formulations().remat))
    base = our_params(sizes, folder, "transformer")
    tx = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(RATE, *BETAS, weight_decay=WEIGHT_DECAY))

    def error(params: Any, batch: Any) -> jax.Array:
        prediction = transformer.apply({"params": params}, batch["x"], batch["text"], jnp.float32([TIMESTEP]))
        return jnp.mean(jnp.square(prediction - batch["v"]))

    def loss(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        return error(lora.merge(batch["base"], params, 1.0) if adapters else params, batch)

    batch = dict(zip(("x", "text", "v"), map(jnp.asarray, inputs(sizes)), strict=True))
    params = base
    if adapters:
        batch["base"] = base
        params = lora.init(jax.random.key(0), base, lora.LoRAConfig(rank=rank(sizes), alpha=float(rank(sizes))))
    step = jax.jit(functools.partial(update.step, loss_fn=loss, tx=tx, decay=0.0), donate_argnums=0)
    states = [update.init(jax.tree.map(jnp.copy, params), tx, average=False)]  # torch has no average
    del params, base
    gc.collect()  # the arrays that were read
    key = jax.random.key(0)
    compiled: list[bool] = []

    def run():
        states[0], metrics = step(states[0], batch, key)
        found = np.float32([metrics["loss"], metrics["grad_norm"]])
        if not compiled:
            compiled.append(True)
            give_back_freed_memory()  # as `train.loop` does
        return found

    return run


def their_update(sizes: Sizes, folder: Path, *, adapters: bool) -> Run:
    import torch
    from diffusers import CogVideoXTransformer3DModel
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    torch.set_grad_enabled(True)
    cfg = sizes.spec.transformer
    model = CogVideoXTransformer3DModel.from_pretrained(folder, subfolder="transformer")
    if adapters:
        import peft

        model.requires_grad_(False)
        targets = ["to_k", "to_q", "to_v", "to_out.0"]
        model.add_adapter(peft.LoraConfig(r=rank(sizes), lora_alpha=rank(sizes), target_modules=targets))
    model.train()
    x, text, v = (torch.from_numpy(a) for a in inputs(sizes))
    x, v = (a.permute(0, 1, 4, 2, 3).contiguous() for a in (x, v))  # (B, T, C, h, w)
    frames, *grid = sizes.tokens[0], sizes.tokens[1] // cfg.patch, sizes.tokens[2] // cfg.patch
    crops = get_resize_crop_region_for_grid(grid, cfg.sample_width // cfg.patch, cfg.sample_height // cfg.patch)
    rope = get_3d_rotary_pos_embed(cfg.head_dim, crops, grid, frames)
    moving = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)
    t = torch.tensor([TIMESTEP])

    def run():
        prediction = model(x, text, t, image_rotary_emb=rope, return_dict=False)[0]
        loss = torch.mean((prediction - v) ** 2)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(moving, CLIP)
        optimizer.step()
        return np.float32([loss.item(), norm.item()])

    return run


WORKLOADS = {
    "lora": Workload(
        title="LoRA update",
        ours=functools.partial(our_update, adapters=True),
        theirs=functools.partial(their_update, adapters=True),
        needs=("peft",),
    ),
    "full": Workload(
        title="full update",
        ours=functools.partial(our_update, adapters=False),
        theirs=functools.partial(their_update, adapters=False),
    ),
}
