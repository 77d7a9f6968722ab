"""How modules declare their parameters: an initial value and the meaning of every axis."""

from collections.abc import Callable
from typing import cast

import jax
from flax import errors
from flax import linen as nn

Init = Callable[..., jax.Array]


def parameter(
    module: nn.Module, name: str, init: Init, axes: tuple[str | None, ...], shape: tuple[int, ...]
) -> jax.Array:
    """The float32 parameter `name`; `axes` are names of `cogvx_jax.axes`, which sharding reads."""
    if not module.has_variable("params", name):
        value = module.param(name, nn.with_logical_partitioning(init, axes), shape)
        return cast(jax.Array, value)  # flax unboxes it
    # `module.param` traces the initial value to learn its shape: 6 % of the processor's time of three files of tests.
    value = nn.unbox(module.get_variable("params", name))
    if value.shape != shape:
        raise errors.ScopeParamShapeError(name, "/".join(module.path), value.shape, shape)
    return value
