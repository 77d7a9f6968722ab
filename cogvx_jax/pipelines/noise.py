"""Where random numbers come from: a source that a caller may replace by recorded arrays."""

import functools
import secrets
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from cogvx_jax.sharding import of_first_process

LATENTS, POSTERIOR, STEPS, PIXELS, ORDER, WARP, MOTION = range(7)  # what the noise is for; each has a stream of its own


class NoiseSource(Protocol):
    """Standard normal float32 noise, channels-last, for all videos at once: shape is (B, ...)."""

    def latents(self, shape: tuple[int, ...]) -> jax.Array:
        """The noise that sampling starts from, (B, T, h, w, 16)."""

    def posterior(self, shape: tuple[int, ...]) -> jax.Array:
        """The noise with which encoded images or videos are drawn from their posterior."""

    def step(self, index: int, shape: tuple[int, ...]) -> jax.Array:
        """The noise a stochastic sampler adds at its step `index`."""

    def pixels(self, shape: tuple[int, ...]) -> jax.Array:
        """The noise that is laid over pictures before they are encoded; of `image_noise` alone."""

    def order(self, shape: tuple[int, ...]) -> jax.Array:
        """Numbers (B, T) whose order is that in which noise is shuffled over the latents; of windows alone."""

    def warp(self, index: int, shape: tuple[int, ...]) -> jax.Array:
        """The noise that a flow moves, on its own grid (0), or that its step `index` adds; of `flow` alone."""

    def motion(self, shape: tuple[int, ...]) -> jax.Array:
        """The noise with which pictures of a trajectory are drawn from their posterior."""


class SeededNoise:
    """A function of (seed, video index) alone: the same in any batch, on any device.

    It may be an argument of a compiled function, where the index of a step may be traced.
    """

    def __init__(self, seed: int, first: int = 0):
        # On the host, as keys on a device cannot be shared by several hosts.
        self._key, self._first = np.asarray(jax.random.key_data(jax.random.key(seed))), first

    @classmethod
    def abstract(cls) -> "SeededNoise":
        """Its shapes alone, to compile for."""
        return _from_leaves(None, (jax.ShapeDtypeStruct((2,), np.uint32), jax.ShapeDtypeStruct((), np.int32)))

    def latents(self, shape):
        return self._draw(shape, LATENTS, 0)

    def posterior(self, shape):
        return self._draw(shape, POSTERIOR, 0)

    def step(self, index, shape):
        return self._draw(shape, STEPS, index)

    def pixels(self, shape):
        return self._draw(shape, PIXELS, 0)

    def order(self, shape):
        return self._draw(shape, ORDER, 0)

    def warp(self, index, shape):
        return self._draw(shape, WARP, index)

    def motion(self, shape):
        return self._draw(shape, MOTION, 0)

    def _draw(self, shape, stream, index):
        videos = self._first + jnp.arange(shape[0])
        return _normal(self._key, videos, stream, index, tuple(shape[1:]))


def random_seed() -> int:
    """A seed from the operating system, 0 to 2^32 - 1; the same in all processes, which must call this together."""
    high, low = of_first_process([secrets.randbits(16), secrets.randbits(16)])
    return high * 2**16 + low


def _from_leaves(_: None, leaves: tuple) -> SeededNoise:
    noise = object.__new__(SeededNoise)
    noise._key, noise._first = leaves
    return noise


jax.tree_util.register_pytree_node(SeededNoise, lambda noise: ((noise._key, noise._first), None), _from_leaves)


@functools.partial(jax.jit, static_argnames="shape")
def _normal(data: jax.Array, videos: jax.Array, stream: int, index: int, shape: tuple[int, ...]) -> jax.Array:
    key = jax.random.wrap_key_data(data)

    def one(video):
        folded = key
        for number in (video, stream, index):
            folded = jax.random.fold_in(folded, number)
        return jax.random.normal(folded, shape, jnp.float32)

    return jax.vmap(one)(videos)
