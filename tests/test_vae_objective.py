"""The VAE's loss: its terms, its adversary, and the gradient that moves both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogvx_jax.configs import VAEConfig
from cogvx_jax.convert import read_lpips
from cogvx_jax.models import vae as vaes
from cogvx_jax.models.discriminator import (
    Discriminator,
    DiscriminatorConfig,
    generator_loss,
    hinge_loss,
)
from cogvx_jax.scripts import train_tiny
from cogvx_jax.train import step as update
from cogvx_jax.train.vae import objective as vae_objective
from cogvx_jax.train.vae.objective import VAEObjective, frame_distance, make_gradient

CFG = VAEConfig(channels=(4, 4, 8, 8), layers=1, groups=2, latent_channels=4)
ADVERSARY = DiscriminatorConfig(width=4, layers=2, groups=4)


@pytest.fixture(scope="module")
def vae(random_params):
    vae = vaes.VAE(CFG)
    return vae, random_params(vae, jnp.zeros((1, 1, 16, 16, 3)))


@pytest.fixture(scope="module")
def adversary(random_params):
    discriminator = Discriminator(ADVERSARY)
    return discriminator, random_params(discriminator, jnp.zeros((1, 9, 16, 16, 3)))


def clips():
    return np.random.default_rng(0).integers(0, 256, (2, 9, 16, 16, 3)).astype(np.uint8)


@pytest.mark.full
def test_the_loss_of_tiny_is_what_it_was(vae):
    model, params = vae
    key = jax.random.key(3)

    @jax.jit
    def before(params, pixels):
        pixels = pixels.astype(jnp.float32) / 127.5 - 1
        moments = vaes.encode(model, params, pixels)
        noise = jax.random.normal(key, (*moments.shape[:-1], CFG.latent_channels))
        error = vaes.decode(model, params, vaes.sample(moments, noise)) - pixels
        return jnp.mean(jnp.abs(error)) + 2 * jnp.mean(jnp.square(error)) + 1e-4 * jnp.mean(vaes.kl(moments))

    now = jax.jit(lambda params, pixels: train_tiny.vae_loss(model, params, pixels, key))
    np.testing.assert_allclose(now(params, clips()), before(params, clips()), rtol=1e-6)


def test_the_adversary_has_a_logit_a_patch_and_sees_its_own_clip_alone(adversary):
    model, params = adversary
    judge = jax.jit(lambda x: model.apply({"params": params}, x))
    x = np.random.default_rng(1).uniform(-1, 1, (2, 17, 16, 24, 3)).astype(np.float32)
    logits = judge(x)
    assert logits.shape == (2, 5, 4, 6)
    np.testing.assert_allclose(judge(x[::-1]), logits[::-1], atol=1e-6)
    with pytest.raises(ValueError, match="cannot have 3 groups"):
        DiscriminatorConfig(width=8, groups=3)
    # By hand: (0 + 2) / 2 of the real ones, (1.5 + 0) / 2 of the others, halved.
    assert hinge_loss(jnp.array([3.0, -1.0]), jnp.array([0.5, -2.0])) == 0.5 * (1 + 0.75)
    assert generator_loss(jnp.array([3.0, -1.0])) == -1


@pytest.mark.full
def test_frames_are_compared_one_at_a_time(lpips_file):
    network, params = read_lpips(lpips_file)
    rng = np.random.default_rng(0)
    x, y = (rng.uniform(-1, 1, (2, 3, 16, 16, 3)).astype(np.float32) for _ in range(2))

    def distance(x, y):
        return network.apply({"params": params}, x, y)

    def at_once(x):
        return jnp.mean(distance(x.reshape(-1, 16, 16, 3), y.reshape(-1, 16, 16, 3)))

    each = jax.jit(jax.value_and_grad(lambda x: frame_distance(distance, x, y)))(x)
    for found, expected in zip(each, jax.jit(jax.value_and_grad(at_once))(x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.full  # a minute of compiling
def test_the_gradient_is_that_of_the_weighted_losses(vae, adversary, lpips_file):
    """Of the VAE by plain differentiation of what is shown, its weight held; of the adversary, of its own loss."""
    model, params = vae
    discriminator, judge_params = adversary
    network, lpips = read_lpips(lpips_file)
    objective = VAEObjective(squared=0.5, kl=1e-3, adversarial=0.8, discriminator_start=2)
    of = jax.jit(make_gradient(objective, model, network, discriminator, remat=True).of)
    state = {"vae": params, "discriminator": judge_params}
    batch = {"pixels": clips(), "lpips": lpips, "frozen": {}}
    key = jax.random.key(0)
    _, grads, terms = of(state, batch, 1, key)
    assert terms["adversarial_weight"] == 0 and terms["discriminator"] == 0
    assert not any(np.any(g) for g in jax.tree.leaves(grads["discriminator"]))
    before = grads["vae"]["decoder"]["conv_out"]["kernel"]
    loss, grads, terms = of(state, batch, 2, key)
    weight = float(terms["adversarial_weight"])
    pixels = vae_objective.to_signed(jnp.asarray(clips()))

    def judge(params, clips):
        return discriminator.apply({"params": params}, clips)

    @jax.jit
    def plain(params, judge_params):
        def by_vae(params):
            found, moments = vae_objective.reconstruct(model, params, pixels, jax.random.split(key)[0])
            near = jnp.mean(jnp.abs(found - pixels)) + 0.5 * jnp.mean(jnp.square(found - pixels))
            near += frame_distance(lambda x, y: network.apply({"params": lpips}, x, y), found, pixels)
            fooled = generator_loss(judge(judge_params, found))
            return near + 1e-3 * jnp.mean(vaes.kl(moments)) + weight * fooled, (found, fooled)

        (loss, (found, fooled)), by_params = jax.value_and_grad(by_vae, has_aux=True)(params)
        fake = jax.grad(lambda p: by_vae(p)[1][1])(params)["decoder"]["conv_out"]["kernel"]
        by_judge = jax.grad(lambda p: hinge_loss(judge(p, pixels), judge(p, found)))(judge_params)
        return loss, by_params, by_judge, fake

    expected, by_params, by_judge, fake = plain(params, judge_params)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for found, wanted in ((grads["vae"], by_params), (grads["discriminator"], by_judge)):
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max() + 1e-7)
    # In the last layer, the adversary's gradient is 0.8 times the rest, KL aside, which does not reach it.
    np.testing.assert_allclose(weight * np.linalg.norm(fake), 0.8 * np.linalg.norm(before), rtol=1e-2)


def test_weights_that_cannot_be_are_refused():
    with pytest.raises(TypeError, match="only a Loss"):
        update.gradient(update.Gradient(lambda *_: None))
    for wrong in ({"kl": -1.0}, {"l1": 0.0}, {"lpips_frames": 0}, {"discriminator_start": -1}):
        with pytest.raises(ValueError):
            VAEObjective(**wrong)
