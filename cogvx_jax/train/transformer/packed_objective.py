"""The training objective of packed rows, see `train.pack`: each clip has its own timestep, text and loss.

    loss = make_packed_loss(spec, Compute(), Objective())
    value = loss(transformer_params, pack(...), key)

What `Objective` says of images does not matter, as image-to-video models cannot be packed.

Shapes: R rows, N video tokens a row, C clips a row at most.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp

from cogvx_jax.configs import Compute, ModelSpec, TransformerConfig
from cogvx_jax.diffusion import objective, schedule
from cogvx_jax.models import vae as vaes
from cogvx_jax.models.transformer import Transformer, check_packs
from cogvx_jax.train.step import Loss, Rows
from cogvx_jax.train.transformer.objective import drop_text
from cogvx_jax.train.transformer.settings import Objective


def make_packed_loss(spec: ModelSpec, compute: Compute, options: Objective) -> Loss:
    """`loss(params, batch, key) -> scalar`, the mean over the batch's clips, whatever their sizes.

    The batch is that of `pack`, and holds empty: (L, text_dim), states of "", where `options.empty` is
    "encoded". What stands at padding does not matter.

    Raises: ValueError for an image-to-video model.
    """
    return Loss(make_packed_draw(spec, options), lambda params, rows, batch: _mean(spec, compute, params, rows))


def make_partial_packed_loss(
    spec: ModelSpec, compute: Compute, options: Objective, whole: Callable[[Any, Any], Any]
) -> Loss:
    """The same of a part of the parameters, or of adapters; see `objective.make_partial_loss`."""
    draw = make_packed_draw(spec, options)
    return Loss(draw, lambda part, rows, batch: _mean(spec, compute, whole(batch["base"], part), rows))


def make_packed_draw(spec: ModelSpec, options: Objective) -> Callable[..., Rows]:
    """`draw(batch, key)`: all that is random about the loss, for every row; see `clip_losses`, and `weight` (R, C)."""
    check_packs(spec.transformer)

    def draw(batch: Mapping[str, Any], key: jax.Array) -> Rows:
        keys = iter(jax.random.split(key, 5))
        used = clips_in(batch["clip"], batch["text"].shape[1])  # (R, C)
        real = (batch["clip"] >= 0)[..., None]
        x0 = _draw_latents(spec, jnp.where(real, batch["moments"], 0), batch["copies"], next(keys))
        t = draw_clip_timesteps(next(keys), used, spec.schedule.steps, options.timesteps)
        noise = jax.random.normal(next(keys), x0.shape, jnp.float32)
        if options.noise_offset:
            each = options.noise_offset * jax.random.normal(next(keys), used.shape, jnp.float32)
            noise = noise + _of_clip(each, batch["clip"])[..., None]
        text = drop_text(batch, next(keys), options)
        # The mean over rows of what is weighted so is that over clips, whichever rows are computed together.
        weight = used * (len(used) / jnp.maximum(jnp.sum(used), 1))
        kept = {name: batch[name] for name in ("clip", "positions")}
        return {"x0": x0, "noise": noise, "t": t, "text": text, "weight": weight, **kept}

    return draw


def _mean(spec: ModelSpec, compute: Compute, params: Any, rows: Rows) -> jax.Array:
    losses = clip_losses(spec, compute, params, rows, rows["x0"], rows["noise"], rows["t"])
    return jnp.sum(losses * rows["weight"]) / len(losses)


def clip_losses(
    spec: ModelSpec,
    compute: Compute,
    params: Any,
    batch: Mapping[str, Any],
    x0: jax.Array,
    noise: jax.Array,
    t: jax.Array,
) -> jax.Array:
    """The loss of every clip at a given noise and timestep: (R, C) float32, 0 where a row has no such clip.

    Args:
      batch: `clip`, `positions` and `text`, as `pack` makes them.
      x0, noise: (R, N, features) float32, patches; whatever they hold at padding counts nowhere.
      t: (R, C) integers.
    """
    clip, count = batch["clip"], t.shape[1]
    real = (clip >= 0)[..., None]
    x0, noise = jnp.where(real, x0, 0), jnp.where(real, noise, 0)
    # To the formulas, which know rows with a noise level each, every token is a row.
    level = _of_clip(jnp.asarray(schedule.alphas_bar(spec.schedule), jnp.float32)[t], clip).ravel()
    x0, noise = (x.reshape(-1, x.shape[-1]) for x in (x0, noise))
    x = objective.add_noise(x0, noise, level).reshape(*clip.shape, -1)
    method = Transformer.packed
    prediction = cast(
        jax.Array,
        Transformer(spec.transformer, compute.of("transformer")).apply(
            {"params": params}, x, batch["text"], t, clip, batch["positions"], method=method
        ),
    )
    errors = objective.loss(prediction.reshape(x0.shape), x0, noise, level).reshape(clip.shape)
    is_of = clip[..., None] == jnp.arange(count)[None, None]  # (R, N, C)
    total = jnp.sum(jnp.where(is_of, errors[..., None], 0), axis=1)
    return total / jnp.maximum(jnp.sum(is_of, axis=1), 1)


def clips_in(clip: jax.Array, count: int) -> jax.Array:
    """Which of the `count` places for clips are taken, (R, N) -> (R, C) bool."""
    return jnp.any(clip[..., None] == jnp.arange(count)[None, None], axis=1)


def draw_clip_timesteps(key: jax.Array, used: jax.Array, steps: int, how: str) -> jax.Array:
    """Training timesteps (R, C) int32, by `Objective.timesteps`; `used` (R, C) says which places are taken.

    The "explicit" parts of the range, as many as there are clips, are dealt out at random: in their own order
    a row's first clip, the largest, would always get an early one.
    """
    order_key, key = jax.random.split(key)
    if how == "uniform":
        return objective.uniform_timesteps(key, used.size, steps).reshape(used.shape)
    lot = jnp.where(used, jax.random.uniform(order_key, used.shape), jnp.inf).ravel()
    part = jnp.argsort(jnp.argsort(lot))  # 0 .. clips - 1, then the places without a clip
    t = (part + jax.random.uniform(key, part.shape)) * (steps / jnp.maximum(jnp.sum(used), 1))
    return jnp.minimum(t.astype(jnp.int32), steps - 1).reshape(used.shape)


def _draw_latents(spec: ModelSpec, moments: jax.Array, copies: jax.Array, key: jax.Array) -> jax.Array:
    """Scaled samples of the posterior in patches (R, N, features); copied frames stay copies."""
    mean = moments[..., : moments.shape[-1] // 2]
    x0 = vaes.sample(moments, jax.random.normal(key, mean.shape, jnp.float32)) * spec.vae.scaling_factor
    return _copy_first(spec.transformer, x0, copies)


def _copy_first(cfg: TransformerConfig, patches: jax.Array, copies: jax.Array) -> jax.Array:
    """Gives the first `copies` (R, N) frames of each patch the values of the frame after them."""
    if cfg.patch_t is None:
        return patches
    apart = patches.reshape(*patches.shape[:-1], cfg.out_channels, cfg.patch_t, cfg.patch**2)
    source = jnp.maximum(jnp.arange(cfg.patch_t)[None, None], copies[..., None])  # (R, N, patch_t)
    return jnp.take_along_axis(apart, source[:, :, None, :, None], axis=3).reshape(patches.shape)


def _of_clip(x: jax.Array, clip: jax.Array) -> jax.Array:
    """Each token's number of its clip: (R, C), (R, N) -> (R, N)."""
    return jnp.take_along_axis(x, jnp.maximum(clip, 0), axis=1)
