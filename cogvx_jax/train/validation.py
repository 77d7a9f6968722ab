"""The loss of clips that are kept out of training, at the timesteps of the paper, with the same noise every time."""

import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cogvx_jax.configs import ModelSpec
from cogvx_jax.sharding import activate, everywhere
from cogvx_jax.train.batches import Share, read
from cogvx_jax.train.latents import Cache
from cogvx_jax.train.objective import Objective, make_draw, make_errors
from cogvx_jax.train.placement import place_batch

TIMESTEPS = (100, 300, 500, 700, 900)  # arXiv:2408.06072, section 3.3
# Captions and images all stay, and nothing is added to them.
PLAIN = Objective(text_dropout=0.0, image_dropout=0.0, image_noise=False)


def hold_out(cache: Cache, amount: float) -> tuple[list[int], list[int]]:
    """The numbers of a cache's clips to train on, and of those to validate with.

    Which they are depends on the videos alone, not on their order, and all captions of a video go together.

    Args:
      amount: below 1 a share of the videos, from 1 on how many.
    Raises: ValueError for an amount below 0, not whole from 1 on, or that leaves none to train on.
    """
    videos = sorted({key for key, _ in cache.clips}, key=lambda key: hashlib.sha256(key.encode()).digest())
    if not 0 <= amount < math.inf or amount > 1 and amount % 1:
        raise ValueError(f"validation must be a share of the clips below 1, or their number, got {amount:g}")
    count = int(amount) if amount >= 1 else math.ceil(amount * len(videos))
    if count >= len(videos):
        raise ValueError(f"with {count} of {len(videos)} videos kept for validation, none is left to train on")
    chosen = set(videos[:count])
    numbers = range(len(cache.clips))
    return [i for i in numbers if cache.clips[i][0] not in chosen], [i for i in numbers if cache.clips[i][0] in chosen]


def make_validate(
    spec: ModelSpec,
    shares: Sequence[Share],
    fixed: Mapping[str, Any],
    whole: Callable[[Any, Any], Any],
    batch_size: int,
    mesh: Mesh | None,
) -> Callable[[Any], dict[str, float]]:
    """`validate(part) -> {"100": loss, ...}`, the mean over all clips at each of TIMESTEPS.

    Args:
      shares: whose `held_out` to validate with.
      fixed: what is added to each batch; see `objective.make_partial_loss` for its `base` and for `whole`.
      batch_size: clips computed at a time.
    """
    draw, errors = make_draw(spec, PLAIN), make_errors(spec)

    @functools.partial(jax.jit, out_shardings=everywhere(mesh))
    def losses(part, batch, key, t):
        with activate(mesh):
            return errors(whole(batch["base"], part), draw(batch, key, jnp.full(batch_size, t)))

    def validate(part: Any) -> dict[str, float]:
        found = {t: np.zeros(0) for t in TIMESTEPS}
        for share in shares:
            for start in range(0, len(share.held_out), batch_size):
                some = list(share.held_out[start : start + batch_size])
                full = (some * batch_size)[:batch_size]  # one shape, one program
                batch = place_batch(read(spec, share.cache, full), mesh) | dict(fixed)
                for t in TIMESTEPS:
                    key = jax.random.fold_in(jax.random.key(start), t)
                    found[t] = np.append(found[t], np.asarray(losses(part, batch, key, t))[: len(some)])
        return {str(t): float(np.mean(each)) for t, each in found.items()}

    return validate
