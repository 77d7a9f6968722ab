"""Fixtures that several test files share."""

import flax.linen as nn
import jax
import numpy as np
import pytest


@pytest.fixture(scope="session")
def random_params():
    """`random_params(module, *inputs, seed=0, **kwargs)`: a random number in every parameter.

    Nothing is initialised, so nothing is compiled; norms and biases are not their trivial 1 and 0.
    """

    def make(module, *inputs, seed=0, **kwargs):
        rng = np.random.default_rng(seed)
        shapes = nn.unbox(jax.eval_shape(lambda *i: module.init(jax.random.key(0), *i, **kwargs), *inputs))["params"]

        def draw(path, leaf):
            name = path[-1].key
            if name == "kernel":
                fan_in = np.prod(leaf.shape[:-1]) / (leaf.shape[0] if path[0].key == "blocks" else 1)
                return np.float32(rng.normal(size=leaf.shape) / np.sqrt(fan_in))
            return np.float32((name == "scale") + 0.3 * rng.normal(size=leaf.shape))

        return jax.tree_util.tree_map_with_path(draw, shapes)

    return make
