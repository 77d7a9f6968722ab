"""Which clips each update of a stage sees: a function of the update alone, so that a run resumes exactly."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cogvx_jax.configs import Kind, ModelSpec
from cogvx_jax.models.transformer import check_packs
from cogvx_jax.pipelines.request import latent_frames
from cogvx_jax.train.clips.cache import ClipCache
from cogvx_jax.train.clips.pack import Clip, Packing, best_packing, pack, plan_rows, video_tokens

# Kind of a model -> what of a clip the objective encodes itself, by the VAE.
ENCODED: Mapping[Kind, str] = {"i2v": "image", "inpaint": "pixels"}


@dataclasses.dataclass(frozen=True)
class Share:
    """Clips of one cache, and in which proportion to those of others they are drawn."""

    cache: ClipCache
    weight: int
    clips: tuple[int, ...]  # numbers of those to train on
    held_out: tuple[int, ...] = ()  # and of those to validate with
    controls: bool = False  # whether their control videos are read, too


@dataclasses.dataclass(frozen=True)
class Feed:
    """What a stage is trained on: `batches(step, rows)`, those rows of the batch of an update of its own, from 0.

    rows: of a batch, in which there are so many clips.
    tokens: of text and video, in a batch on average.
    """

    batches: Callable[[int, Sequence[int]], dict[str, Any]]
    rows: int
    clips: int
    tokens: float
    packing: Packing | None = None


def feed(spec: ModelSpec, shares: Sequence[Share], batch_size: int, seed: tuple[int, ...]) -> Feed:
    """Batches of one cache each, as clips of several shapes cannot be stacked."""
    weights = tuple(share.weight for share in shares)

    def batches(step: int, rows: Sequence[int]) -> dict[str, Any]:
        which, before = turn(weights, step)
        places = [before * batch_size + row for row in rows]
        return read(spec, shares[which], [choose(shares, which, place, seed) for place in places])

    tokens = sum(share.weight * (clip_tokens(spec, share.cache) + spec.transformer.text_length) for share in shares)
    return Feed(batches, batch_size, batch_size, batch_size * tokens / sum(weights))


def packed_feed(spec: ModelSpec, shares: Sequence[Share], rows: int, length: int, seed: tuple[int, ...]) -> Feed:
    """Batches of rows with places for `length` video tokens, in which clips of all caches stand side by side.

    Raises: ValueError for an image-to-video model, or a clip that is longer than a row.
    """
    cfg, weights = spec.transformer, tuple(share.weight for share in shares)
    check_packs(cfg)
    sizes = [clip_tokens(spec, share.cache) for share in shares]
    packing = best_packing(sizes, spread(weights), rows=rows, length=length, words=cfg.text_length)

    def clip(which: int, before: int) -> Clip:
        found = shares[which].cache.batch([choose(shares, which, before, seed)])
        return Clip(found["moments"][0], found["text"][0])

    def batches(step: int, wanted: Sequence[int]) -> dict[str, Any]:
        turns = [turn(weights, step * packing.clips + i) for i in range(packing.clips)]
        tokens = [sizes[which] for which, _ in turns]
        places = plan_rows(tokens, length=length, most=packing.most, report=lambda line: None)
        places += [[]] * (rows - len(places))
        return pack(cfg, [[clip(*turns[i]) for i in places[row]] for row in wanted], length=length, most=packing.most)

    return Feed(batches, rows, packing.clips, packing.used * rows * (length + packing.most * cfg.text_length), packing)


def read(spec: ModelSpec, share: Share, numbers: Sequence[int]) -> dict[str, Any]:
    """What the objective of `spec` needs of these clips, stacked."""
    found = share.cache.batch(numbers, controls=share.controls)
    wanted = {"moments", "text", "control", ENCODED.get(spec.kind)}
    return {name: array for name, array in found.items() if name in wanted}


def choose(shares: Sequence[Share], which: int, place: int, seed: tuple[int, ...]) -> int:
    """The clip of a share that comes at a place of its own. Each epoch shows all of them, in another order."""
    clips = shares[which].clips
    epoch, at = divmod(place, len(clips))
    return clips[_order(len(clips), (*seed, which, epoch))[at]]


def turn(weights: tuple[int, ...], place: int) -> tuple[int, int]:
    """Whose turn it is at a place, and how often it has been before, by whole weights."""
    turns = spread(weights)
    time, at = divmod(place, len(turns))
    return turns[at], time * weights[turns[at]] + turns[:at].count(turns[at])


@functools.lru_cache
def spread(weights: tuple[int, ...]) -> tuple[int, ...]:
    """A sequence that holds each number as often as its weight says, at even distances: (3, 1) -> 0 0 1 0."""
    times = [((i + 0.5) / weight, which) for which, weight in enumerate(weights) for i in range(weight)]
    return tuple(which for _, which in sorted(times))


@functools.lru_cache(maxsize=16)
def _order(count: int, seed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)


def clip_tokens(spec: ModelSpec, cache: ClipCache) -> int:
    """Of each clip."""
    shape, scale = cache.shape, spec.vae.spatial_compression
    return video_tokens(
        spec.transformer, (latent_frames(spec, shape.frames), shape.height // scale, shape.width // scale)
    )
