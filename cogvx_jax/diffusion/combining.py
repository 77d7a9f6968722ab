"""The combination of a step's predictions by a guider, in float32: pure functions of arrays.

Each is (u, c, p, numbers, carry) -> (prediction, carry): u is the unconditional prediction of the velocity, c the
prompt's, p that of a perturbed model or None. Sums are over all axes but the batch's. Formulas and sources are in
`guiders`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cogvx_jax.diffusion.guidance import guide
from cogvx_jax.diffusion.guiders import Guider, Numbers


def start(guider: Guider | None, shape: tuple[int, ...]) -> Any:
    """What a guider carries before the first step of latents of that shape; None where it carries nothing."""
    return jnp.zeros(shape, jnp.float32) if guider is not None and guider.carries else None


def combine(
    kind: str,
    unconditional: jax.Array,
    conditional: jax.Array,
    numbers: Any,
    *,
    perturbed: jax.Array | None = None,
    carry: Any = None,
) -> tuple[jax.Array, Any]:
    """The prediction of a guided step, float32, and what the guider carries to the next one.

    Args:
      kind: of COMBINE.
      unconditional, conditional, perturbed: (B, ...) predictions; the last of guiders with a third evaluation.
      numbers: of one step, of `lay_out`.
      carry: of the step before, or `start`.
    """
    if not isinstance(numbers, Numbers):
        return guide(unconditional, conditional, numbers), carry
    c = conditional.astype(jnp.float32)
    u = unconditional.astype(jnp.float32)
    prediction, carry = COMBINE[kind](u, c, perturbed, numbers, carry)
    return _rescaled(prediction, c, numbers.own["rescale"]), carry


def _cfg(u, c, p, numbers, carry):
    return guide(u, c, numbers.weight), carry


def _zero_star(u, c, p, numbers, carry):
    u = u * (_sum(c * u) / (_sum(u * u) + 1e-8))
    return numbers.own["keeps"] * guide(u, c, numbers.weight), carry


def _apg(u, c, p, numbers, carry):
    own = numbers.own
    carry = c - u + own["momentum"] * carry
    norm, limit = jnp.sqrt(_sum(carry * carry)), own["limit"]
    cut = jnp.where((limit > 0) & (norm > limit), limit / jnp.where(norm > 0, norm, 1), 1)
    d = carry * cut
    length = _sum(c * c)
    parallel = _sum(d * c) / jnp.where(length > 0, length, 1) * c
    return u + numbers.weight * (d - parallel + own["eta"] * parallel), carry


def _perturbed(u, c, p, numbers, carry):
    return guide(u, c, numbers.weight) + numbers.own["scale"] * (c - p), carry


COMBINE: Mapping[str, Callable[..., tuple[jax.Array, Any]]] = {
    "cfg": _cfg,
    "zero-star": _zero_star,
    "apg": _apg,
    "slg": _perturbed,
    "pag": _perturbed,
}


def _rescaled(x: jax.Array, c: jax.Array, share: jax.Array) -> jax.Array:
    """`x` with that share of the standard deviation of `c`; the same bits where it is 0, as for an `x` of zeros."""
    axes = tuple(range(1, x.ndim))
    spread = jnp.std(x, axis=axes, keepdims=True)
    wanted = jnp.std(c, axis=axes, keepdims=True) / jnp.where(spread > 0, spread, 1)
    return x * (share * wanted + (1 - share))


def _sum(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=tuple(range(1, x.ndim)), keepdims=True)
