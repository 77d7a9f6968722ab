"""Large pictures in strips of rows, and the 16 bits in which pictures wait: the same numbers in less memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogvx_jax.finishing import fit
from cogvx_jax.finishing.options import Finish, Geometry
from cogvx_jax.models import rife_strips
from cogvx_jax.models.rife import RIFE
from cogvx_jax.nn.backend import PLAIN, using
from cogvx_jax.nn.pixels import as_levels, as_unit
from cogvx_jax.nn.rows import over_rows

SIZE = 70, 45  # no multiple of anything, and more rows than a strip has


def picture(seed, size=SIZE):
    return np.random.default_rng(seed).random((*size, 3), np.float32)


def test_bytes_wait_as_they_are():
    x = np.arange(256, dtype=np.uint8)
    levels = as_levels(jnp.asarray(x / np.float32(255)))
    np.testing.assert_array_equal(levels, np.uint16(x) * 257)
    np.testing.assert_allclose(as_unit(levels), x / 255, rtol=0, atol=1e-7)


@pytest.fixture(scope="module")
def network(random_params):
    """Scales as those of 4K; flows of a few pixels."""
    found = RIFE(6, (8, 4, 2))
    params = random_params(found, *[jnp.zeros((1, 64, 64, 3))] * 2)
    return found, jax.tree.map(lambda leaf: 1.3 * leaf, params)


def test_a_middle_in_strips_is_the_middle(network, monkeypatch):
    found, params = network
    pair = picture(0), picture(1)
    padded = [np.pad(x[None], ((0, 0), (0, 58), (0, 19), (0, 0)), "edge") for x in pair]
    whole = jax.jit(found.apply)({"params": params}, *padded)
    assert np.abs(whole.flow).max() > 3  # pixels: rows of other strips are looked up
    monkeypatch.setattr(rife_strips, "ROWS", 64)
    made = jax.jit(lambda *pair: rife_strips.middle_in_strips(found, params, *pair))(*pair)
    np.testing.assert_allclose(made, whole.picture[0, :70, :45], rtol=0, atol=2e-5)


@pytest.mark.parametrize("rows", [3, 20])
def test_strips_of_any_number_lie_together(rows):
    x = jnp.arange(7.0 * 2).reshape(7, 2)

    def twice(start):
        return jnp.repeat(jax.lax.dynamic_slice_in_dim(x, start, min(rows, 7)), 2, axis=0)

    np.testing.assert_array_equal(over_rows(twice, 7, rows), np.repeat(x, 2, axis=0))


@pytest.mark.parametrize("size, asked", [((70, 45), "60x32"), ((30, 45), "60x90"), ((40, 40), "20x41")])
def test_resized_in_strips_is_resized(size, asked, monkeypatch):
    monkeypatch.setattr(fit, "ROWS", 16)
    geometry = Geometry.of(Finish(size=asked, fit="crop"), *size)
    levels = as_levels(jnp.asarray(picture(0, size)))
    made = []
    for choice in ("whole", "strips"):
        with using(dataclasses.replace(PLAIN, large_pictures=choice)):
            made.append(np.int32(fit.fit(geometry, levels)))
    assert made[0].shape == (*geometry.final, 3) and made[0].std() > 5000
    assert np.abs(made[0] - made[1]).max() <= 2  # of 65535
