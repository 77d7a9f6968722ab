"""What the sampling loop takes of a task: where it starts, channels beside the noise, and what it must leave alone.
Beside these it takes what ControlNets are given.

A task of `pipelines.tasks` gives a `SamplingInputs`; the loops of `pipelines.denoise` take it and know no tasks.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cogvx_jax.diffusion import objective
from cogvx_jax.diffusion.places import Places
from cogvx_jax.diffusion.update import SamplerState
from cogvx_jax.models.controlnet import ControlBranch
from cogvx_jax.models.tora import Motion
from cogvx_jax.sharding import everywhere


class Condition(NamedTuple):
    """Channels (B, T, h, w, E) that the transformer sees after the noisy ones, in both branches of guidance."""

    channels: jax.Array
    shown: np.ndarray | None = None  # (N,) float32, 1 for steps that see them and 0 for those that see zeros; None: all

    def at(self, step) -> jax.Array:
        """The channels of a step, whose number may be traced."""
        return self.channels if self.shown is None else self.channels * self.shown[step]


class Control(NamedTuple):
    """What ControlNets are given, an entry of each for each; `SamplingInputs.branches` are their modules."""

    params: tuple[Any, ...]
    channels: tuple[jax.Array, ...]  # (B, T, h, w, E) float32, of their control videos, the same in both branches
    weights: tuple[Any, ...]  # (blocks,) float32
    active: Any = None  # (N,) bool, steps that have them; of one step, (); None: all

    def in_step(self, step: int) -> "Control | None":
        """That of a step, whose number is known; None where it has none."""
        return None if self.active is not None and not self.active[step] else self._replace(active=None)

    def at(self, step) -> "Control":
        """That of a step, whose number may be traced."""
        return self if self.active is None else self._replace(active=jnp.asarray(self.active)[step])


class Reference(NamedTuple):
    """Latents of a clip at the levels of noise that steps begin with: blocks let the video look at them."""

    latents: Any  # (M, B, T, h, w, C) float32; between steps they lie in the host's memory
    order: Any  # (N,) int32: which of them each step has

    def at(self, step) -> jax.Array:
        """(B, T, h, w, C) of a step, whose number may be traced where the arrays are."""
        return self.latents[self.order[step]]


class Known(NamedTuple):
    """Latents that sampling must not change: where `kept` is 1 they are those of a clip, noised as a step leaves them.

    The noise is the same in all steps.
    """

    kept: jax.Array  # (1, T, h, w, 1) float32, 1 or 0
    clean: jax.Array  # (B, T, h, w, C) float32
    noise: jax.Array  # (B, T, h, w, C) float32
    levels: np.ndarray  # (N,) float32, alphas_bar that the next step is told; 1 after the last

    def put_into(self, state: SamplerState, step) -> SamplerState:
        """The state after a step, whose number may be traced, with the known latents put back."""
        level = jnp.asarray(self.levels)[step]
        known = objective.add_noise(self.clean, self.noise, jnp.broadcast_to(level, self.clean.shape[:1]))
        kept = jnp.broadcast_to(self.kept, known.shape) > 0
        return state._replace(latents=jnp.where(kept, known, state.latents).astype(state.latents.dtype))


class SamplingInputs(NamedTuple):
    """What a task gives to the loop."""

    latents: jax.Array  # (B, T, h, w, C) float32, at the level of the first step
    condition: Condition | None = None
    known: Known | None = None
    control: Control | None = None
    branches: tuple[ControlBranch, ...] = ()
    inverted: jax.Array | None = None  # (B, T, h, w, C) float32, the clean latents that `reference` is to be made of
    reference: Reference | None = None
    regions: jax.Array | None = None  # (B, T, h, w) int32, which prompt each latent has; None: all have the only one
    motion: Motion | None = None  # what the blocks are given of trajectories
    places: Places | None = None  # windows of the picture; None: the model sees all of it at once


def control_at(control: Control | None, step) -> Control | None:
    """What ControlNets are given in a step; None where there are none."""
    return None if control is None else control.at(step)


def condition_at(condition: Condition | None, step) -> jax.Array | None:
    """The channels of a step; None where there are none."""
    return None if condition is None else condition.at(step)


def reference_at(reference: Reference | None, step) -> jax.Array | None:
    """The latents that a step's blocks look at; None where there are none."""
    return None if reference is None else reference.at(step)


@functools.lru_cache
def known_program(mesh: Mesh | None):
    """`Known.put_into`, jitted: (known, state, step) -> state, which is donated."""
    return jax.jit(Known.put_into, donate_argnums=1, out_shardings=everywhere(mesh))


def put_known(known: Known | None, state: SamplerState, step: jax.Array) -> SamplerState:
    """Inside a program of all steps, the state after one of them."""
    return state if known is None else known.put_into(state, step)
