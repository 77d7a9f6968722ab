"""Integers in place of floating-point numbers: how arrays become integers, and products of what they became.

Symmetric: x = integers * scale, the largest |x| that shares a scale being the largest integer. Scales are float32. They
are multiplied after a product where they can be, so that no kernel exists at full size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cogvx_jax.quantization import Storage


class Tokens(NamedTuple):
    """Activations as integers, one scale for each token."""

    values: jax.Array  # (..., in) int8
    scale: jax.Array  # (..., 1) float32


class Kernel(NamedTuple):
    """A kernel as integers, one scale for each output channel and group of inputs."""

    values: jax.Array  # (..., in, out) int8 or int4
    scale: jax.Array  # (..., groups, out) float32


def quantize_tokens(x: jax.Array) -> Tokens:
    """Activations (..., in) as int8. A token of zeros has the scale 0, one of NaNs a scale that is not finite.

    On CPUs XLA's maximum may drop a single NaN of a wide token; norms, which come before most products, spread it.
    """
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    inverse = jnp.where(largest > 0, 127 / largest, 0)
    # Several products take it: without the barrier each would make it again.
    return jax.lax.optimization_barrier(Tokens(jnp.round(x * inverse).astype(jnp.int8), largest / 127))


def quantize_kernel(kernel: jax.Array, storage: Storage) -> Kernel:
    """A kernel (..., in, out) as integers. A column of zeros has the scale 0, one with a NaN that.

    Raises: ValueError where groups do not divide the inputs.
    """
    *layers, features, out = kernel.shape
    groups = storage.groups(features)
    w = kernel.astype(jnp.float32).reshape(*layers, groups, features // groups, out)
    scale = jnp.max(jnp.abs(w), axis=-2, keepdims=True) / storage.largest
    scale = jnp.where(jnp.any(jnp.isnan(w), axis=-2, keepdims=True), jnp.nan, scale)  # XLA's max on CPUs drops it
    values = jnp.clip(jnp.round(w / jnp.where(scale > 0, scale, 1)), -storage.largest, storage.largest)
    return Kernel(values.astype(storage.dtype).reshape(kernel.shape), scale[..., 0, :])


def dequantize(kernel: Kernel, dtype: str) -> jax.Array:
    """The kernel (..., in, out) that the integers stand for."""
    *layers, features, out = kernel.values.shape
    groups = kernel.scale.shape[-2]
    w = kernel.values.astype(dtype).reshape(*layers, groups, features // groups, out)
    return (w * kernel.scale.astype(dtype)[..., None, :]).reshape(kernel.values.shape)


def product(x: jax.Array | Tokens, kernel: Kernel, dtype: str) -> jax.Array:
    """x (..., in) times a kernel (in, out), of `dtype`. Integers times integers are summed in int32: exact."""
    if isinstance(x, Tokens):
        y = integer_product(x.values, kernel.values).astype(jnp.float32) * x.scale
    elif kernel.scale.shape[0] == 1:
        y = jnp.matmul(x.astype(dtype), kernel.values.astype(dtype), preferred_element_type=jnp.float32)
    else:
        return x.astype(dtype) @ dequantize(kernel, dtype)
    return (y * jax.lax.broadcast_to_rank(kernel.scale[0], y.ndim)).astype(dtype)


def integer_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """int8 (..., in) times int8 (in, out), int32 (..., out)."""
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=jnp.int32)
