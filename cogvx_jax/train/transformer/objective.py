"""The training objective of the transformer, for text and image to video and for inpainting, as a pure function.

    loss = make_loss(spec, Compute(), Objective())
    value = loss(transformer_params, batch, key)

Clips come as posteriors of the VAE, drawn anew at every step; prompts as states of the text encoder.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from cogvx_jax.configs import Compute, ModelSpec
from cogvx_jax.diffusion import objective, schedule
from cogvx_jax.models import lora
from cogvx_jax.models import vae as vaes
from cogvx_jax.models.per_block import PerBlock
from cogvx_jax.models.taehv import vae_of
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.pipelines.latents import image_scale
from cogvx_jax.pipelines.tasks import BLACK, resize_known
from cogvx_jax.train.step import Loss, Rows
from cogvx_jax.train.transformer.masks import draw_masks
from cogvx_jax.train.transformer.settings import Objective


def make_loss(spec: ModelSpec, compute: Compute, options: Objective) -> Loss:
    """`loss(params, batch, key) -> scalar`, the mean over the batch; `params` are the transformer's.

    The batch holds
      moments: (B, T, h, w, 32) float32, mean and log variance of the clips' posterior, not scaled;
      text: (B, L, text_dim), states of the prompts;
      empty: (L, text_dim), states of "", where `options.empty` is "encoded";
      image: (B, H, W, 3) in [-1, 1], for image-to-video models;
      pixels: (B, F, H, W, 3) uint8, for inpainting models;
      vae: the VAE's parameters, for both.
    """
    errors = make_errors(spec, compute)
    return Loss(make_draw(spec, compute, options), lambda params, rows, batch: jnp.mean(errors(params, rows)))


def make_partial_loss(spec: ModelSpec, compute: Compute, options: Objective, whole: Callable[[Any, Any], Any]) -> Loss:
    """The same of a part of the parameters, or of adapters, whose gradient alone is taken.

    `whole(base, part)` gives the transformer's parameters; the batch holds the frozen ones as `base`. They
    are part of the batch so that a compiled step takes them as an argument, not as constants.
    """
    draw, errors = make_draw(spec, compute, options), make_errors(spec, compute)
    return Loss(draw, lambda part, rows, batch: jnp.mean(errors(whole(batch["base"], part), rows)))


def make_lora_loss(spec: ModelSpec, compute: Compute, options: Objective, scale: float) -> Loss:
    """`make_partial_loss` of adapters."""
    return make_partial_loss(spec, compute, options, lambda base, adapters: lora.merge(base, adapters, scale))


def make_draw(spec: ModelSpec, compute: Compute, options: Objective) -> Callable[..., Rows]:
    """`draw(batch, key, t=None)`: all that is random about the loss, for every clip of a batch; see `make_loss`.

    Gives x, what the transformer sees, x0 and noise, what it is to predict, text and timesteps t, (B, ...) each.
    """
    alphas_bar = np.asarray(schedule.alphas_bar(spec.schedule), np.float32)
    vae = vae_of(spec.vae, compute.of("vae"))

    def draw(batch: Mapping[str, Any], key: jax.Array, t: jax.Array | None = None) -> Rows:
        keys = iter(jax.random.split(key, 7))
        x0 = _clip_latents(spec, batch["moments"], next(keys))
        count, time_key = x0.shape[0], next(keys)
        t = draw_timesteps(time_key, count, spec.schedule.steps, options.timesteps) if t is None else t
        noise = draw_noise(next(keys), x0.shape, options.noise_offset)
        text = drop_text(batch, next(keys), options)
        x = objective.add_noise(x0, noise, jnp.asarray(alphas_bar)[t])
        if spec.kind == "i2v":
            condition = _image_latents(spec, vae, batch, options, next(keys), next(keys))
            kept = jax.random.uniform(next(keys), (count, 1, 1, 1)) >= options.image_dropout
            first = jnp.where(kept, condition, 0)[:, None]
            # Where patches of two frames need a frame more, the image stands at that one: it is the first.
            rest = ((0, 0), (0, x.shape[1] - 1), (0, 0), (0, 0), (0, 0))
            x = jnp.concatenate([x, jnp.pad(first, rest)], axis=-1)
        if spec.kind == "inpaint":
            known = known_channels(spec, vae, batch, options, next(keys))
            x = jnp.concatenate([x, _lengthened(spec, known)], axis=-1)
        return {"x": x, "x0": x0, "noise": noise, "text": text, "t": t}

    return draw


def make_errors(spec: ModelSpec, compute: Compute) -> Callable[..., jax.Array]:
    """`errors(params, rows, per_block=None)`: the loss (B,) of each clip that `make_draw` has drawn."""
    transformer = Transformer(spec.transformer, compute.of("transformer"))
    alphas_bar = np.asarray(schedule.alphas_bar(spec.schedule), np.float32)

    def errors(params: Any, rows: Rows, per_block: PerBlock | None = None) -> jax.Array:
        seen = rows["x"], rows["text"], rows["t"]
        prediction = cast(jax.Array, transformer.apply({"params": params}, *seen, per_block=per_block))
        return objective.loss(prediction, rows["x0"], rows["noise"], jnp.asarray(alphas_bar)[rows["t"]])

    return errors


def draw_timesteps(key: jax.Array, batch: int, steps: int, how: str) -> jax.Array:
    """Training timesteps (batch,) int32, by `Objective.timesteps`."""
    draw = objective.explicit_timesteps if how == "explicit" else objective.uniform_timesteps
    return draw(key, batch, steps)


def draw_noise(key: jax.Array, shape: tuple[int, ...], offset: float) -> jax.Array:
    """Standard normal noise (B, ...), plus one number per sample of deviation `offset`."""
    noise = jax.random.normal(key, shape, jnp.float32)
    if offset:
        each = (shape[0], *(1,) * (len(shape) - 1))
        noise = noise + offset * jax.random.normal(jax.random.fold_in(key, 1), each, jnp.float32)
    return noise


def drop_text(batch: Mapping[str, Any], key: jax.Array, options: Objective) -> jax.Array:
    """The prompts' states, some of them replaced: (B, L, text_dim), or (B, C, L, text_dim) of C clips a row."""
    text = batch["text"]
    if not options.text_dropout:
        return text
    dropped = jax.random.uniform(key, (*text.shape[:-2], 1, 1)) < options.text_dropout
    empty = jnp.zeros_like(text) if options.empty == "zeros" else batch["empty"].astype(text.dtype)
    return jnp.where(dropped, jax.lax.broadcast_to_rank(empty, text.ndim), text)


def noisy_image(image: jax.Array, key: jax.Array, options: Objective) -> jax.Array:
    """Pixels (B, ..., 3) with noise of a deviation drawn for each.

    Source: SAT's image-to-video training. The diffusers trainer draws one deviation for the whole batch.
    """
    if not options.image_noise:
        return image
    level_key, noise_key = jax.random.split(key)
    each = (len(image), *(1,) * (image.ndim - 1))
    level = options.image_noise_mean + options.image_noise_spread * jax.random.normal(level_key, each)
    return image + jnp.exp(level) * jax.random.normal(noise_key, image.shape)


def _clip_latents(spec: ModelSpec, moments: jax.Array, key: jax.Array) -> jax.Array:
    """Scaled samples of the posterior, the first frame repeated in front to whole patches."""
    mean = moments[..., : spec.vae.latent_channels]
    x0 = vaes.sample(moments, jax.random.normal(key, mean.shape, jnp.float32)) * spec.vae.scaling_factor
    return _lengthened(spec, x0)


def _lengthened(spec: ModelSpec, latents: jax.Array) -> jax.Array:
    """Latents (B, T, ...) with the first one repeated in front to whole patches."""
    extra = -latents.shape[1] % (spec.transformer.patch_t or 1)
    return jnp.concatenate([jnp.repeat(latents[:, :1], extra, axis=1), latents], axis=1)


def _image_latents(
    spec: ModelSpec, vae: vaes.VAE, batch: Mapping[str, Any], options: Objective, noise_key, sample_key
) -> jax.Array:
    """(B, h, w, 16), scaled; nothing of it is trained."""
    pixels = noisy_image(batch["image"].astype(jnp.float32), noise_key, options)[:, None]
    moments = jax.lax.stop_gradient(vaes.encode(vae, batch["vae"], pixels))[:, 0]
    latents = vaes.sample(moments, jax.random.normal(sample_key, (*moments.shape[:-1], spec.vae.latent_channels)))
    return latents * (image_scale(spec) if options.image_scale is None else options.image_scale)


def known_channels(
    spec: ModelSpec, vae: vaes.VAE, batch: Mapping[str, Any], options: Objective, key: jax.Array
) -> jax.Array:
    """What an inpainting model is told of clips (B, T, h, w, 17), scaled: how far it is known, and its latents.

    What is to be made is black before it is encoded. Where that is all of a clip, most are told by zeros.
    Source: CogVideoX-Fun's trainer, which draws from the posterior; its pipeline takes the mode.
    """
    mask_key, noise_key, sample_key, zeros_key = jax.random.split(key, 4)
    clips = batch["pixels"].astype(jnp.float32) / 127.5 - 1
    made = draw_masks(mask_key, len(clips), clips.shape[1:4], options.masks)
    pixels = jnp.where(made[..., None], BLACK, clips)
    if spec.defaults.image_noise:  # it was trained with noise on pictures; black ones get none
        pixels = jnp.where(pixels == BLACK, pixels, noisy_image(pixels, noise_key, options))
    moments = jax.lax.stop_gradient(vaes.encode(vae, batch["vae"], pixels))
    latents = vaes.sample(moments, jax.random.normal(sample_key, (*moments.shape[:-1], spec.vae.latent_channels)))
    _, frames, height, width, _ = latents.shape
    known = jax.vmap(lambda one: resize_known(~one, (frames, height, width)))(made)[..., None]
    channels = jnp.concatenate([known, latents], axis=-1) * spec.vae.scaling_factor
    empty = made.all(axis=(1, 2, 3)) & (jax.random.uniform(zeros_key, (len(clips),)) < options.text_alone)
    return jnp.where(empty[:, None, None, None, None], 0, channels)
