"""What is seen of a sampling step from outside, and what may be changed before the next one.

A step's arrays are given to the next step, which writes over them. So none of them is handed out: a copy is made on
the devices when one is asked for, and it stays what it is.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cogvx_jax.pipelines.finite import all_finite
from cogvx_jax.pipelines.saved_steps import Carried, Identity, save_steps


class Cancelled(Exception):
    """What a function for `on_step` may raise to end a generation between two steps; nothing comes of it."""


class Change(NamedTuple):
    """What a function for `on_step` may give back; None is as it was.

    latents: to go on with, of the step's shape. What the sampler remembers of earlier steps stays.
    text: states of the texts, of the step's shape.
    end: take no further steps: what the latents are now is decoded.
    """

    latents: jax.Array | np.ndarray | None = None
    text: jax.Array | np.ndarray | None = None
    end: bool = False


class Seen(NamedTuple):
    """What a step's arrays are made of."""

    carried: Carried
    row: np.ndarray  # of the sampler's table
    before: jax.Array | None  # the latents before the step, where the sampler estimates the noise
    text: jax.Array  # (B or 2 B, L, text_dim)
    identity: Callable[[], Identity]  # of the run


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """A sampling step that was taken. Its arrays must be asked for before the next one begins.

    number: 1 for the first; heun has two a step, for the model is evaluated twice.
    count: of them all.
    timestep: that the model was told.
    seconds: since sampling began in this process, the first step's compilation included.
    segment, segments: of a video that is extended, which of its parts this is, and of how many; else 1 and 1.
    padding: latents at the front that no frames are made of.
    """

    number: int
    count: int
    timestep: int
    seconds: float
    segment: int = 1
    segments: int = 1
    padding: int = 0
    seen: Seen = dataclasses.field(repr=False)

    @functools.cached_property
    def latents(self) -> jax.Array:
        """A copy of the latents after the step, (B, T, h, w, C) float32, on the devices, padding included.

        Raises: ValueError where the next step has begun.
        """
        return jnp.copy(self._carried().state.latents)

    @functools.cached_property
    def x0(self) -> jax.Array:
        """What the model took for the clean latents in this step, (B, T, h, w, C) float32, on the devices.

        Raises: ValueError where the next step has begun.
        """
        estimate, before, row = self._carried().state.history[0], self.seen.before, self.seen.row
        return jnp.copy(estimate) if before is None else _clean(before, estimate, row)

    @property
    def text(self) -> jax.Array:
        """States of the texts, (B, L, text_dim) or with guidance (2 B, L, text_dim), the negatives first."""
        return self.seen.text

    def save(self, file: str | os.PathLike) -> None:
        """Writes all that sampling carries to a file, with which `generate(..., resume=file)` goes on bit for bit.

        A file of that name is replaced once the new one is whole. Several processes must call it together.
        Raises: ValueError where the next step has begun; OSError, naming the file.
        """
        save_steps(file, self._carried(), self.count, self.seen.identity())

    def _carried(self) -> Carried:
        if any(array.is_deleted() for array in jax.tree.leaves(self.seen.carried[1:])):
            raise ValueError(
                f"the arrays of step {self.number} went to the next one; ask for them in the function for on_step"
            )
        return self.seen.carried


OnStep = Callable[[Step], Change | None]


def in_turn(*looks: Callable[[Step], None]) -> OnStep | None:
    """One function that calls several, which change nothing; None of none."""

    def look(step: Step) -> None:
        for one in looks:
            one(step)

    return look if looks else None


def told(on_step: OnStep, **more: Any) -> OnStep:
    """The function, called with steps of which more is said."""
    return lambda step: on_step(dataclasses.replace(step, **more))


def asked_change(given: Any) -> Change:
    """What a function for `on_step` gave, None as a change of nothing. Raises: ValueError for anything else."""
    if given is None:
        return Change()
    if not isinstance(given, Change):
        raise ValueError(f"on_step must give a cx.Change or None, got {type(given).__name__}")
    return given


def changed(carried: jax.Array, given: jax.Array | np.ndarray | None, name: str) -> jax.Array:
    """What `on_step` gave in place of an array, where that lies; the array itself where it gave nothing.

    Raises: ValueError, one sentence, for another shape or for numbers that are not finite.
    """
    if given is None:
        return carried
    if np.shape(given) != carried.shape:
        raise ValueError(f"on_step must give {name} of shape {carried.shape}, got {np.shape(given)}")
    made = jax.device_put(jnp.array(given, carried.dtype), carried.sharding)  # its own copy, as the next step takes it
    if not all_finite(made):
        raise ValueError(f"on_step gave {name} that are not finite")
    return made


@jax.jit
def _clean(x: jax.Array, noise: jax.Array, row: jax.Array) -> jax.Array:
    """x0 of an estimate of the noise: x = sqrt(a) x0 + sqrt(1 - a) noise; see `samplers.Sampler.estimates_noise`."""
    return (x - row[0] * noise) / -row[1]
