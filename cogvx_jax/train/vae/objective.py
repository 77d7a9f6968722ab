"""What a VAE is trained for: reconstructions that are near in pixels, near to the eye, and look real to an adversary.

The paper's recipe (arXiv:2408.06072, section 2.1) is L1, LPIPS and KL, and after a few thousand updates a 3D
discriminator; it prints no weights. Those here are of the family (Rombach et al. 2022, arXiv:2112.10752).
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp

from cogvx_jax.metrics.lpips import LPIPS
from cogvx_jax.models import vae as vaes
from cogvx_jax.models.discriminator import Discriminator, generator_loss, hinge_loss
from cogvx_jax.models.vae import VAE
from cogvx_jax.train.step import Gradient
from cogvx_jax.train.vae.settings import VAEObjective

Terms = dict[str, jax.Array]  # scalars by name
LAST_LAYER = ("decoder", "conv_out", "kernel")  # where the two gradients of reconstructions are weighed


# Of pictures x and y, (N, H, W, 3) in [-1, 1], (N,) distances.
Perceptual = Callable[[jax.Array, jax.Array], jax.Array]


def reconstruct(
    vae: VAE, params: Any, pixels: jax.Array, key: jax.Array | None, *, remat: bool = False
) -> tuple[jax.Array, jax.Array]:
    """A clip through the VAE, frame batch by frame batch as in use.

    Args:
      pixels: (B, F, H, W, 3) in [-1, 1]; F is 1 or 8N + 1.
      key: to draw latents from the posterior with; None takes its mode.
      remat: compute each frame batch anew in the backward pass.
    Returns: the reconstruction, as `pixels` but not clipped, and the posterior's moments (B, T, h, w, 32).
    """

    def part(method):
        run = functools.partial(_apply, vae, method)
        return jax.checkpoint(run) if remat else run

    moments = vaes.encode(vae, params, pixels, encode_batch=part("encode_batch"))
    latents = vaes.mode(moments)
    if key is not None:
        latents = vaes.sample(moments, jax.random.normal(key, latents.shape))
    return vaes.decode(vae, params, latents, decode_batch=part("decode_batch")), moments


def likeness(
    objective: VAEObjective, found: jax.Array, pixels: jax.Array, perceptual: Perceptual | None, key: jax.Array
) -> tuple[jax.Array, Terms]:
    """How far reconstructions are from clips (B, F, H, W, 3) in [-1, 1]: the weighted sum, and its terms."""
    error = found - pixels
    terms = {"l1": jnp.mean(jnp.abs(error)), "squared": jnp.mean(jnp.square(error))}
    loss = objective.l1 * terms["l1"] + objective.squared * terms["squared"]
    if perceptual is not None:
        if objective.lpips_frames is not None and objective.lpips_frames < pixels.shape[1]:
            chosen = jax.random.permutation(key, pixels.shape[1])[: objective.lpips_frames]
            found, pixels = found[:, chosen], pixels[:, chosen]
        terms["lpips"] = frame_distance(perceptual, found, pixels)
        loss += objective.lpips * terms["lpips"]
    return loss, terms


def frame_distance(perceptual: Perceptual, found: jax.Array, pixels: jax.Array) -> jax.Array:
    """The mean distance of frames of clips (B, F, H, W, 3), a scalar.

    Computed for one frame of every clip at a time, and anew in the backward pass: of a long clip, the features of
    all frames would take far more memory than the VAE. Clips may lie on different devices.
    """
    one = jax.checkpoint(lambda pair: perceptual(*pair))
    return jnp.mean(jax.lax.map(one, (found.swapaxes(0, 1), pixels.swapaxes(0, 1))))


def vae_loss(objective: VAEObjective, vae: VAE, params: Any, pixels: jax.Array, key: jax.Array) -> jax.Array:
    """The terms that need neither LPIPS nor an adversary, summed. pixels: (B, F, H, W, 3) in [-1, 1]."""
    found, moments = reconstruct(vae, params, pixels, key)
    return likeness(objective, found, pixels, None, key)[0] + objective.kl * jnp.mean(vaes.kl(moments))


def make_gradient(
    objective: VAEObjective,
    vae: VAE,
    lpips: LPIPS | None,
    discriminator: Discriminator | None,
    *,
    remat: bool = False,
) -> Gradient:
    """What moves {"vae": ..., "discriminator": ...}, the latter where there is an adversary.

    Both are moved by the same reconstruction, which so is computed once. Before `discriminator_start` updates the
    adversary is neither computed nor moved. Of a VAE whose encoder is frozen, "vae" holds the decoder alone.

    A batch is a dict: "pixels" (B, F, H, W, 3) uint8, "frozen" the rest of the VAE's parameters, and "lpips" those
    of `lpips`. The numbers to show are the terms of the loss, and 1 / the deviation of the latents as "latent_scale",
    which is what their scaling factor should be.
    """

    def of(params: Any, batch: Any, step: jax.Array, key: jax.Array):
        latent_key, frame_key = jax.random.split(key)
        pixels = to_signed(batch["pixels"])
        perceptual = distance_of(lpips, batch)

        def forward(moving):
            return reconstruct(vae, batch["frozen"] | moving, pixels, latent_key, remat=remat)

        (found, moments), backward = jax.vjp(forward, params["vae"])
        near = functools.partial(likeness, objective, pixels=pixels, perceptual=perceptual, key=frame_key)
        (loss, terms), by_found = jax.value_and_grad(near, has_aux=True)(found)
        terms["kl"], by_moments = jax.value_and_grad(lambda m: jnp.mean(vaes.kl(m)))(moments)
        loss += objective.kl * terms["kl"]
        grads: dict[str, Any] = {}
        if discriminator is not None and objective.discriminator_start is not None:
            begun = step >= objective.discriminator_start
            played, by_fake, grads["discriminator"] = _play(
                discriminator, params["discriminator"], found, pixels, begun
            )
            weight = jnp.asarray(objective.adversarial)
            if objective.adaptive:
                # Of this backward pass, only the last layer is used, and so computed.
                last = jax.vmap(lambda by: _last(backward((by, jnp.zeros_like(moments)))[0]))
                rest, fake = last(jnp.stack([by_found, by_fake]))
                weight *= jnp.clip(jnp.linalg.norm(rest) / (jnp.linalg.norm(fake) + 1e-4), 0, 1e4)
            weight = jnp.where(begun, weight, 0)
            by_found += weight * by_fake
            loss += weight * played["generator"]
            terms |= played | {"adversarial_weight": weight}
        (grads["vae"],) = backward((by_found, objective.kl * by_moments))
        mean, logvar = jnp.split(moments, 2, axis=-1)
        terms["latent_scale"] = jax.lax.rsqrt(jnp.var(mean) + jnp.mean(jnp.exp(jnp.clip(logvar, -30, 20))))
        return loss, grads, terms

    return Gradient(of)


def distance_of(lpips: LPIPS | None, batch: Any) -> Perceptual | None:
    """The distance by `lpips`, whose parameters are in the batch."""
    if lpips is None:
        return None

    def distance(x: jax.Array, y: jax.Array) -> jax.Array:
        return cast(jax.Array, lpips.apply({"params": batch["lpips"]}, x, y))

    return distance


def to_signed(pixels: jax.Array) -> jax.Array:
    """uint8 -> float32 in [-1, 1]."""
    return pixels.astype(jnp.float32) / 127.5 - 1


def _apply(vae: VAE, method: str, params: Any, x: jax.Array, cache: Any):
    return vae.apply({"params": params}, x, cache, method=method)


def _last(grads: Any) -> jax.Array:
    return functools.reduce(lambda tree, name: tree[name], LAST_LAYER, grads)


def _play(discriminator: Discriminator, params: Any, found: jax.Array, pixels: jax.Array, begun: jax.Array):
    """Terms of the game, and its gradients by the reconstruction and by the adversary's parameters; zeros before."""

    def judge(params, clips):
        return discriminator.apply({"params": params}, clips)

    def play(found):
        fooled, by_fake = jax.value_and_grad(lambda x: generator_loss(judge(params, x)))(found)
        caught, by_params = jax.value_and_grad(lambda p: hinge_loss(judge(p, pixels), judge(p, found)))(params)
        return {"generator": fooled, "discriminator": caught}, by_fake, by_params

    def wait(found):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(play, found))

    return jax.lax.cond(begun, play, wait, found)
