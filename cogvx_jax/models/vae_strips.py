"""The VAE's stages in strips of rows, for frames of which the whole takes too much memory: the same numbers.

Whole are only the videos between two convolutions, the caches, and a few numbers a channel: the moments that the norms
take. A convolution's result takes the place of what it is made of where that is not needed any more.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cogvx_jax.nn.conv import CausalConv, FrameConv
from cogvx_jax.nn.norms import Moments, Parts, SpatialNorm
from cogvx_jax.nn.strips import over_strips, rows_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Striped:
    """A video (B, F, H, W, C) in parts, to be worked through in strips."""

    stored: Parts  # as it lies in memory; before `make`, of which H may be larger
    height: int  # H
    channels: int  # C
    rows: int  # of each strip of H but the last one, even
    # From strips of what is stored to strips of the video, both with a row more at either end. None: it is stored.
    make: Callable[[Parts], Parts] | None = None
    moments: Moments | None = None  # None: not known yet

    def strip(self, stored: Parts) -> Parts:
        return stored if self.make is None else self.make(stored)


def cut(parts: Parts, strips: int) -> Parts | Striped:
    """Parts, to be worked through in at most so many strips; as they are where that is one."""
    if strips == 1:
        return parts
    height, channels = parts[0].shape[2], parts[0].shape[-1]
    return Striped(stored=parts, height=height, channels=channels, rows=rows_of(height, strips))


def upsampled(stored: Parts, upsample: FrameConv, then: Callable[[jax.Array], jax.Array], strips: int) -> Striped:
    """Parts at half the height, upsampled and after that through `then` whenever they are asked for.

    Held in memory, they would be the largest of all: they are made three times instead, for the norm, for the first
    convolution and for the shortcut.
    """
    run = _pure(upsample, edges=True)
    return Striped(
        stored=stored,
        height=2 * stored[0].shape[2],
        channels=upsample.features,
        rows=rows_of(2 * stored[0].shape[2], strips),
        make=lambda strip: tuple(then(run(x)) for x in strip),
    )


def downsampled(x: Striped, first: Callable[[jax.Array], jax.Array], downsample: FrameConv) -> Parts:
    """Every part through `first` and through a convolution that halves height and width."""
    run = _pure(downsample, edges=True)

    def step(strips, inside, state):
        return {"made": tuple(run(first(part)) for part in x.strip(strips["x"]))}, state

    made, _ = over_strips(step, {"x": x.stored}, None, height=x.height, rows=x.rows)
    return made["made"]


def through(
    x: Striped,
    norm: nn.Module | None,
    conv: CausalConv,
    cache: jax.Array | None,
    *,
    latents: Parts | None = None,
    plus: Striped | None = None,
    shortcut: nn.Module | None = None,
    in_place: bool = False,
) -> tuple[Striped, jax.Array]:
    """Norm, SiLU and causal convolution, or the convolution alone; plus another video, through its shortcut.

    Args:
      cache: of the convolution, (B, 2, H, W, C); None for the first frame batch.
      latents: (B, T, h, w, 16), in as many parts, for a spatial norm.
      in_place: `x` is not used any more.
    Returns: the video that this makes, and the cache.
    """
    normalise, convolve, across = _norm(norm, x), _pure(conv, edges=True), _pure(shortcut)

    def step(strips, inside, moments):
        parts, kept, made = x.strip(strips["x"]), (strips["cache"][0] if cache is not None else None), []
        for part in normalise(parts, strips.get("latents"), inside):
            y, kept = convolve(part, kept)
            made.append(y)
        if plus is not None:
            added = plus.strip(strips["plus"])
            made = [y + across(a[:, :, 1:-1]) for y, a in zip(made, added, strict=True)]
        return {name: tuple(made), "cache": (kept[:, :, 1:-1],)}, moments.plus(Moments.of(made))

    name = "x" if in_place else "made"
    videos = {"x": x.stored}
    if cache is not None:
        videos["cache"] = (cache,)
    if latents is not None:
        videos["latents"] = tuple(jnp.repeat(z, x.height // z.shape[2], axis=2) for z in latents)
    if plus is not None:
        videos["plus"] = plus.stored
    made, moments = _over(step, x, videos, _nothing(x, conv.features))
    made_of = Striped(stored=made[name], height=x.height, channels=conv.features, rows=x.rows, moments=moments)
    return made_of, made["cache"][0]


def measured(x: Striped) -> Striped:
    """With its moments, which takes a pass where the convolution before did not find them."""
    if x.moments is not None:
        return x

    def step(strips, inside, moments):
        return {}, moments.plus(Moments.of([part[:, :, 1:-1] for part in x.strip(strips["x"])]))

    _, moments = _over(step, x, {"x": x.stored}, _nothing(x, x.channels))
    return dataclasses.replace(x, moments=moments)


def _over(step: Any, x: Striped, videos: dict[str, Parts], moments: Moments) -> tuple[Any, Moments]:
    return over_strips(step, videos, moments, height=x.height, rows=x.rows)


def _nothing(x: Striped, channels: int) -> Moments:
    return Moments.none(x.stored[0].shape[0], channels)


def _norm(norm: nn.Module | None, x: Striped) -> Callable[[Parts, Parts | None, jax.Array], Parts]:
    """Norm and SiLU, or neither, of strips; zeros outside of the frame, as the convolution wants them."""
    run = _pure(norm)

    def normalise(parts: Parts, latents: Parts | None, inside: jax.Array) -> Parts:
        if norm is None:
            return parts
        given = (parts, latents) if isinstance(norm, SpatialNorm) else parts
        rows = inside[None, None, :, None, None]
        return tuple(jnp.where(rows, nn.silu(y), 0) for y in run(*given, moments=x.moments))

    return normalise


def _pure(module: nn.Module | None, **changes: Any) -> Callable[..., Any]:
    """A module as a function, which a loop may call, with some of its fields changed; None is the identity."""
    if module is None:
        return lambda y: y
    unbound, variables = module.unbind()
    unbound = unbound.clone(**changes)
    return lambda *inputs, **options: unbound.apply(variables, *inputs, **options)
