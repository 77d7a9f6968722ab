"""The loss of clips that are kept out of training, at the timesteps of the paper, with the same noise every time."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cogvx_jax.configs import Compute, ModelSpec
from cogvx_jax.sharding import activate, everywhere
from cogvx_jax.train.clips.batches import Share, read
from cogvx_jax.train.placement import Placement
from cogvx_jax.train.transformer.objective import make_draw, make_errors
from cogvx_jax.train.transformer.settings import Objective

TIMESTEPS = (100, 300, 500, 700, 900)  # arXiv:2408.06072, section 3.3
# Captions and images all stay, and nothing is added to them.
PLAIN = Objective(text_dropout=0.0, image_dropout=0.0, image_noise=False)


def make_validate(
    spec: ModelSpec,
    compute: Compute,
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
    draw, errors = make_draw(spec, compute, PLAIN), make_errors(spec, compute)

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
                batch = Placement(mesh).batch(read(spec, share.cache, full)) | dict(fixed)
                for t in TIMESTEPS:
                    key = jax.random.fold_in(jax.random.key(start), t)
                    found[t] = np.append(found[t], np.asarray(losses(part, batch, key, t))[: len(some)])
        return {str(t): float(np.mean(each)) for t, each in found.items()}

    return validate
