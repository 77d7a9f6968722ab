"""The loss of clips that are kept out of training, at the timesteps of the paper, with the same noise every time."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cogvx_jax.configs import Compute, ControlNetConfig, ModelSpec
from cogvx_jax.sharding import activate, everywhere
from cogvx_jax.train.clips.batches import Share, read
from cogvx_jax.train.placement import Placement
from cogvx_jax.train.transformer.controlled_objective import make_controlled_errors
from cogvx_jax.train.transformer.distillation import make_distilled_errors
from cogvx_jax.train.transformer.objective import make_draw, make_errors
from cogvx_jax.train.transformer.settings import Distillation, Objective

TIMESTEPS = (100, 300, 500, 700, 900)  # arXiv:2408.06072, section 3.3
# Captions and images all stay, and nothing is added to them.
PLAIN = Objective(text_dropout=0.0, image_dropout=0.0, image_noise=False)


@dataclasses.dataclass(frozen=True)
class Measure:
    """What is measured of clips that are held out."""

    losses: Callable[[Any, Any, jax.Array, jax.Array], jax.Array]  # (part, batch, key, timestep) -> (B,)
    timesteps: Mapping[str, int]  # at which, by the names of the means


def plain_measure(spec: ModelSpec, compute: Compute, whole: Callable[[Any, Any], Any]) -> Measure:
    """The loss of `objective` at each of TIMESTEPS; see `objective.make_partial_loss` for `whole`."""
    draw, errors = make_draw(spec, compute, PLAIN), make_errors(spec, compute)

    def losses(part: Any, batch: Any, key: jax.Array, t: jax.Array) -> jax.Array:
        return errors(whole(batch["base"], part), draw(batch, key, jnp.full(len(batch["text"]), t)))

    return Measure(losses, {str(t): t for t in TIMESTEPS})


def controlled_measure(
    spec: ModelSpec, compute: Compute, whole: Callable[[Any, Any], Any], cfg: ControlNetConfig
) -> Measure:
    """The loss of `controlled_objective` at each of TIMESTEPS; arguments as for `make_controlled_loss`."""
    draw, errors = make_controlled_errors(spec, compute, PLAIN, whole, cfg)

    def losses(part: Any, batch: Any, key: jax.Array, t: jax.Array) -> jax.Array:
        return errors(part, draw(batch, key, jnp.full(len(batch["text"]), t)), batch)

    return Measure(losses, {str(t): t for t in TIMESTEPS})


def distilled_measure(
    spec: ModelSpec, compute: Compute, options: Objective, distill: Distillation, whole: Callable[[Any, Any], Any]
) -> Measure:
    """The loss of `distillation`, over its own timesteps; arguments as for `make_distilled_loss`."""
    plain = dataclasses.replace(PLAIN, empty=options.empty)
    draw, errors = make_distilled_errors(spec, compute, plain, distill, whole)

    def losses(part: Any, batch: Any, key: jax.Array, t: jax.Array) -> jax.Array:
        return errors(part, draw(batch, key), batch)

    return Measure(losses, {"distilled": 0})


def make_validate(
    spec: ModelSpec,
    measure: Measure,
    shares: Sequence[Share],
    fixed: Mapping[str, Any],
    batch_size: int,
    mesh: Mesh | None,
) -> Callable[[Any], dict[str, float]]:
    """`validate(part) -> {"100": loss, ...}`, the means over all clips by the names of `measure`.

    Args:
      shares: whose `held_out` to validate with.
      fixed: what is added to each batch; see `objective.make_partial_loss` for its `base`.
      batch_size: clips computed at a time.
    """

    @functools.partial(jax.jit, out_shardings=everywhere(mesh))
    def losses(part, batch, key, t):
        with activate(mesh):
            return measure.losses(part, batch, key, t)

    def validate(part: Any) -> dict[str, float]:
        found = {name: np.zeros(0) for name in measure.timesteps}
        for share in shares:
            for start in range(0, len(share.held_out), batch_size):
                some = list(share.held_out[start : start + batch_size])
                full = (some * batch_size)[:batch_size]  # one shape, one program
                batch = Placement(mesh).batch(read(spec, share, full)) | dict(fixed)
                for name, t in measure.timesteps.items():
                    key = jax.random.fold_in(jax.random.key(start), t)
                    found[name] = np.append(found[name], np.asarray(losses(part, batch, key, t))[: len(some)])
        return {name: float(np.mean(each)) for name, each in found.items()}

    return validate
