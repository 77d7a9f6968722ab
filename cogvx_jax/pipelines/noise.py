"""Where random numbers come from: a source that a caller may replace by recorded arrays."""

import functools
from typing import Protocol

import jax
import jax.numpy as jnp

LATENTS, POSTERIOR, STEPS = range(3)  # what the noise is for; each has a stream of its own


class NoiseSource(Protocol):
    """Standard normal float32 noise, channels-last, for all videos at once: shape is (B, ...)."""

    def latents(self, shape: tuple[int, ...]) -> jax.Array:
        """The noise that sampling starts from, (B, T, h, w, 16)."""

    def posterior(self, shape: tuple[int, ...]) -> jax.Array:
        """The noise with which encoded images or videos are drawn from their posterior."""

    def step(self, index: int, shape: tuple[int, ...]) -> jax.Array:
        """The noise a stochastic sampler adds at its step `index`."""


class SeededNoise:
    """A function of (seed, video index) alone: the same in any batch, on any device."""

    def __init__(self, seed: int, first: int = 0):
        self._key, self._first = jax.random.key(seed), first

    def latents(self, shape):
        return self._draw(shape, LATENTS, 0)

    def posterior(self, shape):
        return self._draw(shape, POSTERIOR, 0)

    def step(self, index, shape):
        return self._draw(shape, STEPS, index)

    def _draw(self, shape, stream, index):
        videos = self._first + jnp.arange(shape[0])
        return _normal(self._key, videos, stream, index, tuple(shape[1:]))


@functools.partial(jax.jit, static_argnames="shape")
def _normal(key: jax.Array, videos: jax.Array, stream: int, index: int, shape: tuple[int, ...]) -> jax.Array:
    def one(video):
        folded = key
        for number in (video, stream, index):
            folded = jax.random.fold_in(folded, number)
        return jax.random.normal(folded, shape, jnp.float32)

    return jax.vmap(one)(videos)
