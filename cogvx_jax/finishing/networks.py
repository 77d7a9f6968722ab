"""The networks of files of weights, each loaded once."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cogvx_jax.convert.finishing import read_rife, read_upscaler
from cogvx_jax.finishing.packaged import weights_digest
from cogvx_jax.models.rife import RIFE
from cogvx_jax.models.upscalers import Upscaler


class Loaded(NamedTuple):
    """A network and its parameters on the device, and what it was read from."""

    network: Any
    params: Any
    name: str
    sha256: str


@functools.lru_cache(maxsize=4)
def load_upscaler(path: Path) -> Loaded:
    """Raises: as `read_upscaler`."""
    network, params = read_upscaler(path)
    assert isinstance(network, Upscaler)
    if jax.default_backend() == "tpu":  # which multiplies no longer numbers anyway, unless it takes six times as long
        network = network.clone(dtype="bfloat16")
    return Loaded(network, jax.tree.map(jnp.asarray, params), path.name, weights_digest(path))


@functools.lru_cache(maxsize=4)
def load_interpolator(path: Path) -> Loaded:
    """Raises: as `read_rife`."""
    network, params = read_rife(path)
    assert isinstance(network, RIFE)
    return Loaded(network, jax.tree.map(jnp.asarray, params), path.name, weights_digest(path))
