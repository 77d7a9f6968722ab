"""Low-rank adapters of kernels: W + alpha / rank * a @ b, with a and b in a tree of their own.

The base tree is never changed: `merge` gives a new one in which only the adapted kernels are new, so
a model is freed of an adapter by using the tree it had before. Inside a loss, `merge` lets gradients
reach the adapters alone.

Shapes: L layers of a scanned stack, r rank; a (L, in, r), b (L, r, out) for a kernel (L, in, out).
Source: Hu et al. 2021, arXiv:2106.09685; names and initial values as in PEFT.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util

from cogvx_jax.configs import Distilled, LoRAConfig

Adapters = dict[str, dict[str, jax.Array]]  # path of a kernel -> {"a": ..., "b": ...}, float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """What some LoRA files add to a parameter as it is, beside adapters: to a bias, a norm or a whole kernel.

    values: of the parameter's shape, or where `blocks` names some of a stack (blocks, ...), float32.
    """

    path: str
    values: jax.Array
    blocks: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA:
    """Trained or loaded adapters; `rank` is the highest of them, and alpha / rank the factor of a @ b.

    told: of one out of a file or a run, how it was read, for people.
    distilled: of one that makes a model of few steps, how it is sampled from.
    source: of one out of a file, its path or name as it was given.
    parts: of one that several were made into, what is noted of each.
    """

    adapters: Adapters
    rank: int
    alpha: float
    differences: tuple[Difference, ...] = ()
    told: str = ""
    distilled: Distilled | None = None
    source: str | None = None
    parts: "tuple[UsedLoRA, ...]" = ()

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class UsedLoRA(NamedTuple):
    """What is noted of a LoRA that is in a model."""

    source: str | None  # its path or name; None for one in memory
    weight: float
    digest: str  # of all that it adds


def init(key: jax.Array, params: Any, cfg: LoRAConfig) -> Adapters:
    """Fresh adapters of the transformer's `params` (arrays or their shapes): they change nothing, as b is 0.

    Raises: ValueError if the rank exceeds a kernel's smaller side.
    """
    shapes = traverse_util.flatten_dict(params, sep="/")
    adapters = {}
    for number, path in enumerate(cfg.paths):
        *layers, features, out = shapes[path].shape
        if cfg.rank > min(features, out):
            raise ValueError(f"a LoRA of rank {cfg.rank} is no use: {path} is only {features} x {out}; lower the rank")
        # PEFT: Kaiming-uniform with slope sqrt(5), which is this bound.
        bound = features**-0.5
        a = jax.random.uniform(
            jax.random.fold_in(key, number), (*layers, features, cfg.rank), jnp.float32, -bound, bound
        )
        adapters[path] = {"a": a, "b": jnp.zeros((*layers, cfg.rank, out), jnp.float32)}
    return adapters


def merge(params: Any, adapters: Mapping[str, Mapping[str, jax.Array]], scale: float | jax.Array) -> Any:
    """`params` with `scale * a @ b` added to the adapted kernels, summed in float32, of the kernels' types.

    Raises: KeyError for the path of a kernel that is not in `params`.
    """
    leaves = traverse_util.flatten_dict(params, sep="/")
    for path, ab in adapters.items():
        leaves[path] = add(leaves[path], ab["a"], ab["b"], scale)
    return traverse_util.unflatten_dict(leaves, sep="/")


def apply(params: Any, lora: LoRA, weight: float = 1.0) -> Any:
    """`params` with a LoRA `weight` times: its adapters and its differences. Raises: as `merge`."""
    leaves = traverse_util.flatten_dict(merge(params, lora.adapters, weight * lora.scale), sep="/")
    for one in lora.differences:
        blocks = None if one.blocks is None else jnp.asarray(one.blocks)
        leaves[one.path] = _add_difference(leaves[one.path], one.values, blocks, weight)
    return traverse_util.unflatten_dict(leaves, sep="/")


def unmerge(params: Any, adapters: Mapping[str, Mapping[str, jax.Array]], scale: float | jax.Array) -> Any:
    """Subtracts the adapters that `merge` added, up to rounding."""
    return merge(params, adapters, -scale)


def stack(loras: Sequence[LoRA], weights: Sequence[float] | None = None) -> LoRA:
    """One LoRA equal to the sum of the given ones, each times its weight. Its scale is 1.

    Where they adapt different kernels or have different ranks, the missing ranks are zeros.
    """
    weights = [1.0] * len(loras) if weights is None else weights
    rank = sum(lora.rank for lora in loras)
    adapters: Adapters = {}
    for path in dict.fromkeys(path for lora in loras for path in lora.adapters):
        parts = [(lora, weight) for lora, weight in zip(loras, weights, strict=True) if path in lora.adapters]
        a = jnp.concatenate([lora.adapters[path]["a"] for lora, _ in parts], axis=-1)
        b = jnp.concatenate([weight * lora.scale * lora.adapters[path]["b"] for lora, weight in parts], axis=-2)
        adapters[path] = {"a": _pad(a, rank, -1), "b": _pad(b, rank, -2)}
    differences = tuple(
        dataclasses.replace(one, values=weight * one.values)
        for lora, weight in zip(loras, weights, strict=True)
        for one in lora.differences
    )
    distilled = first_distilled([(lora.distilled, weight) for lora, weight in zip(loras, weights, strict=True)])
    return LoRA(adapters=adapters, rank=rank, alpha=float(rank), differences=differences, distilled=distilled)


def first_distilled(found: Sequence[tuple[Distilled | None, float]]) -> Distilled | None:
    """What a sum of LoRAs with these weights is for: the first of few steps that is not taken away decides."""
    return next((distilled for distilled, weight in found if distilled is not None and weight > 0), None)


@jax.jit
def add(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float | jax.Array) -> jax.Array:
    """`kernel + scale * a @ b`, summed in float32, of the kernel's type."""
    # Full precision on every device: it is done once, or is a small part of a training step.
    delta = jnp.matmul(a, b, precision="highest", preferred_element_type=jnp.float32)
    return (kernel.astype(jnp.float32) + scale * delta).astype(kernel.dtype)


@jax.jit
def _add_difference(x: jax.Array, values: jax.Array, blocks: jax.Array | None, weight: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    wide = wide + weight * values if blocks is None else wide.at[blocks].add(weight * values)
    return wide.astype(x.dtype)


def _pad(x: jax.Array, size: int, axis: int) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths)
