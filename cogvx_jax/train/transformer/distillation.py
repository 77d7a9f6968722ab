"""The objective of distillation: the base with adapters learns what the base alone gives in more evaluations.

    loss = make_distilled_loss(spec, compute, objective, Distillation(), whole)
    value = loss(adapters, batch, key)

The teacher is the frozen base, the student the base with adapters. Where the student's own prediction stands in the
target, it is that of the present adapters with no gradient, not of their average. That saves a copy and is what later
work prefers: Song & Dhariwal 2023, arXiv:2310.14189, section 3.2, and diffusers' trainer of LCM LoRAs.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from cogvx_jax.configs import Compute, ModelSpec
from cogvx_jax.diffusion import guidance
from cogvx_jax.diffusion.distillation import DISTANCES, Grid, grid, move
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.train.step import Loss, Rows
from cogvx_jax.train.transformer.objective import draw_timesteps, make_draw
from cogvx_jax.train.transformer.settings import METHODS, Distillation, Objective, RunConfig
from cogvx_jax.train.transformer.stages import Stage

Predict = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]  # (params, x, text, t) -> v
Velocity = Callable[[jax.Array, jax.Array], jax.Array]  # (x, t) -> v, float32, of the batch's prompts


class Networks(NamedTuple):
    """What gives velocities."""

    learn: Velocity  # the student
    fixed: Velocity  # the same numbers without a gradient
    teach: Velocity  # the teacher, guided


def make_distilled_loss(
    spec: ModelSpec, compute: Compute, options: Objective, distill: Distillation, whole: Callable[[Any, Any], Any]
) -> Loss:
    """`loss(adapters, batch, key) -> scalar`, the mean over the batch; arguments as in `make_partial_loss`.

    The batch holds what `make_loss` says, and `empty` always. `base` is the teacher.

    Raises: ValueError for a grid of steps that cannot be, see `diffusion.distillation.grid`.
    """
    draw, errors = make_distilled_errors(spec, compute, options, distill, whole)
    return Loss(draw, lambda part, rows, batch: jnp.mean(errors(part, rows, batch)))


def make_distilled_errors(
    spec: ModelSpec, compute: Compute, options: Objective, distill: Distillation, whole: Callable[[Any, Any], Any]
) -> tuple[Callable[..., Rows], Callable[[Any, Rows, Any], jax.Array]]:
    """`draw(batch, key)` and `errors(adapters, rows, batch)`, the loss (B,) of each clip that was drawn."""
    points, weight = make_grid(spec, distill), distill.completed(spec).teacher_guidance
    assert weight is not None
    draw, error = _make_draw(spec, compute, options, distill, points), ERRORS[distill.method]
    transformer, distance = Transformer(spec.transformer, compute.of("transformer")), DISTANCES[distill.loss]

    def predict(params: Any, x: jax.Array, text: jax.Array, t: jax.Array) -> jax.Array:
        return cast(jax.Array, transformer.apply({"params": params}, x, text, t)).astype(jnp.float32)

    def errors(part: Any, rows: Rows, batch: Mapping[str, Any]) -> jax.Array:
        text, student = rows["text"], whole(batch["base"], part)
        networks = Networks(
            learn=lambda x, t: predict(student, x, text, t),
            fixed=lambda x, t: predict(jax.lax.stop_gradient(student), x, text, t),
            teach=make_teacher(predict, batch["base"], text, _empty(batch, text, options), weight),
        )
        return distance(error(networks, rows, points))

    return draw, errors


def complete(spec: ModelSpec, config: RunConfig, stages: Sequence[Stage]) -> RunConfig:
    """The settings with what a distillation leaves open; those of other runs as they are.

    Raises: ValueError for a distillation that cannot be, before anything is read or compiled.
    """
    if config.distill is None:
        return config
    if how := spec.defaults.distilled:
        raise ValueError(f"{spec.name} was distilled already ({how}); give the model that it was made of")
    if any(stage.pack for stage in stages):
        raise ValueError("distillation takes no packed rows; leave out pack")
    make_grid(spec, config.distill)
    return dataclasses.replace(config, distill=config.distill.completed(spec))


def make_grid(spec: ModelSpec, distill: Distillation) -> Grid | None:
    """The points that jumps are learnt at; None where none are. Raises: ValueError as `diffusion.distillation.grid`."""
    distill = distill.completed(spec)
    if distill.phases is None or distill.teacher_steps is None:
        return None
    return grid(spec.schedule, distill.teacher_steps, distill.phases)


def more_evaluations(spec: ModelSpec, distill: Distillation) -> int:
    """Rows that the transformer computes for a clip, beside the student's that is learnt from."""
    points, rows = make_grid(spec, distill), 1 if distill.completed(spec).teacher_guidance == 1 else 2
    if points is None:
        return rows
    return rows * points.phase if METHODS[distill.method].from_starts else rows + 1


def make_teacher(predict: Predict, base: Any, text: jax.Array, empty: jax.Array, weight: float) -> Velocity:
    """The teacher's guided velocity, of which nothing is trained; weight 1 needs no unconditional row."""

    def teach(x: jax.Array, t: jax.Array) -> jax.Array:
        if weight == 1:
            return jax.lax.stop_gradient(predict(base, x, text, t))
        both = (jnp.concatenate(pair) for pair in ((x, x), (empty, text), (t, t)))
        unconditional, conditional = jnp.split(jax.lax.stop_gradient(predict(base, *both)), 2)
        return guidance.guide(unconditional, conditional, weight)

    return teach


def guided_error(networks: Networks, rows: Rows, points: None) -> jax.Array:
    """How far the student's velocity is from the teacher's, (B, T, h, w, C)."""
    return networks.learn(rows["x"], rows["t"]) - networks.teach(rows["x"], rows["t"])


def jump_error(networks: Networks, rows: Rows, points: Grid) -> jax.Array:
    """How far the student's jump from a point is from its jump after the teacher's step, (B, T, h, w, C)."""
    x, t, place = rows["x"], rows["t"], rows["place"]
    v = networks.learn(x, t)
    after = _moved(x, networks.teach(x, t), points.step, place)
    wanted = _moved(after, networks.fixed(after, jnp.asarray(points.timesteps)[place + 1]), points.rest, place)
    return _latents(_moved(x, v, points.jump, place) - jax.lax.stop_gradient(wanted), v)


def walk_error(networks: Networks, rows: Rows, points: Grid) -> jax.Array:
    """How far the student's jump from a phase's start is from where the teacher's steps lead, (B, T, h, w, C)."""
    x, t, start = rows["x"], rows["t"], rows["place"]
    v = networks.learn(x, t)

    def one(after: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        place = start + i
        return _moved(after, networks.teach(after, jnp.asarray(points.timesteps)[place]), points.step, place), None

    wanted, _ = jax.lax.scan(one, x, jnp.arange(points.phase))
    return _latents(_moved(x, v, points.jump, start) - jax.lax.stop_gradient(wanted), v)


ERRORS: Mapping[str, Callable[[Networks, Rows, Any], jax.Array]] = {
    "progressive": walk_error,
    "phased": jump_error,
    "consistency": jump_error,
    "guidance": guided_error,
}


def _moved(x: jax.Array, v: jax.Array, table: np.ndarray, place: jax.Array) -> jax.Array:
    """Latents after a step of a table; channels of an image, which come after them, stay. Of the type of `x`."""
    moved = move(_latents(x, v), v, jnp.asarray(table, jnp.float32)[place])
    return jnp.concatenate([moved.astype(x.dtype), x[..., v.shape[-1] :]], axis=-1)


def _latents(x: jax.Array, v: jax.Array) -> jax.Array:
    return x[..., : v.shape[-1]]


def _make_draw(
    spec: ModelSpec, compute: Compute, options: Objective, distill: Distillation, points: Grid | None
) -> Callable[..., Rows]:
    """`draw(batch, key)`: as `make_draw`, at timesteps of the grid, with their places in it."""
    plain = make_draw(spec, compute, options)
    if points is None:
        return plain
    every = points.phase if METHODS[distill.method].from_starts else 1
    count, timesteps = len(points.step) // every, points.timesteps

    def draw(batch: Mapping[str, Any], key: jax.Array) -> Rows:
        time_key, key = jax.random.split(key)
        place = every * draw_timesteps(time_key, len(batch["moments"]), count, options.timesteps)
        return plain(batch, key, jnp.asarray(timesteps)[place]) | {"place": place}

    return draw


def _empty(batch: Mapping[str, Any], text: jax.Array, options: Objective) -> jax.Array:
    """States of what guidance steers away from, in the shape of the prompts'."""
    if options.empty == "zeros":
        return jnp.zeros_like(text)
    return jnp.broadcast_to(jax.lax.broadcast_to_rank(batch["empty"].astype(text.dtype), text.ndim), text.shape)
