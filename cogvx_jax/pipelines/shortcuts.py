"""Sampling steps that are made of what earlier ones computed: their programs, and what lies on devices between them.

A schedule of `diffusion.reuse` or `diffusion.guidance_ways` says for each step which of two programs makes it: the
computed one keeps something, the skipped one uses it. A row of KINDS is a kind of both.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from cogvx_jax import axes, sharding
from cogvx_jax.configs import TransformerConfig
from cogvx_jax.diffusion.reuse import Schedule
from cogvx_jax.diffusion.update import SamplerState, update
from cogvx_jax.models import kept as keeping
from cogvx_jax.models.flops import sequence_tokens
from cogvx_jax.models.kept import Around, Kept
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.pipelines.conditions import condition_at, put_known
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.step_programs import at, combined, drawn_inside
from cogvx_jax.sharding import activate, everywhere

# (params, state, kept, text, condition, t, row, weight, noise, control) -> (state, kept)
Step = Callable[..., tuple[SamplerState, Kept]]
Maker = Callable[[Transformer, bool, Mesh | None, str], Step]  # of (transformer, guided, mesh, guider)


class Kind(NamedTuple):
    """Two programs, and what the first keeps for the second."""

    computed: Maker
    skipped: Maker | None  # None: a computed step decides itself what it leaves out
    kept: Callable[..., tuple[tuple[int, ...], str, axes.Names] | None]  # shape, type and axes of `Kept.parts`


class Wanted(NamedTuple):
    """What the programs of a schedule depend on; its steps may be any."""

    kind: str
    order: int = 0  # of differences, for "added"

    @property
    def mode(self) -> str:
        """Of `diffusion.reuse.MODES`."""
        return f"added-{self.order}" if self.kind == "added" else self.kind

    @property
    def skips(self) -> bool:
        """Whether a program of its own makes the skipped steps."""
        return KINDS[self.kind].skipped is not None

    def names(self, *, one_program: bool = False) -> tuple[str, ...]:
        """Of its programs, as they are stored."""
        if one_program:
            return (f"loop-{self.mode}",)
        return (f"computed-{self.mode}", *([f"skipped-{self.mode}"] if self.skips else []))


class Steps:
    """Makes the steps of one run: called with a step's number and the arguments of `step_programs.step_program`."""

    def __init__(self, model: Model, schedule: Schedule, videos: tuple[int, ...], *, guided: bool, guider: str):
        wanted, place = Wanted(schedule.kind, schedule.order), _place(model, schedule, videos, guided)
        inputs = model.transformer, guided, model.mesh
        self._schedule, self.kept = schedule, zeros(place)
        names = wanted.names()
        self._computed = model.compiled(names[0], computed_program(wanted, *inputs, where(place), guider))
        self._skipped = model.compiled(names[1], skipped_program(wanted, *inputs, guider)) if names[1:] else None

    def __call__(self, i: int, params: Any, state: SamplerState, *inputs: Any) -> SamplerState:
        control = self._schedule.control[i]
        if self._schedule.computed[i]:
            state, self.kept = self._computed(params, state, self.kept, *inputs, control)
            return state
        assert self._skipped is not None
        return self._skipped(params, state, self.kept, *inputs, control)

    def computed(self) -> int:
        """How many steps so far ran all blocks, or both branches; waits for the last of them."""
        return int(self.kept.computed)


def in_one(
    model: Model, schedule: Schedule, videos: tuple[int, ...], *, guided: bool, guider: str
) -> tuple[Any, tuple[Any, ...]]:
    """All steps as one program, (params, state, kept, ...), and its arguments beside those of `loop_program`."""
    wanted, place = Wanted(schedule.kind, schedule.order), _place(model, schedule, videos, guided)
    program = all_steps_program(wanted, model.transformer, guided, model.mesh, where(place), guider)
    loop = model.compiled(wanted.names(one_program=True)[0], program)
    return loop, (zeros(place), schedule.computed, schedule.control)


@functools.lru_cache
def computed_program(
    wanted: Wanted, transformer: Transformer, guided: bool, mesh: Mesh | None, kept: Kept, guider: str = "cfg"
):
    """One step that keeps, jitted; what it takes of state and kept is donated. `kept` says where it lies."""
    one = KINDS[wanted.kind].computed(transformer, guided, mesh, guider)

    def computed(params, state, kept, text, condition, t, row, weight, noise, control):
        return one(params, state, kept, text, condition, t, row, weight, noise, control)

    # Unused or not: what was kept is the memory of what will be.
    return jax.jit(computed, donate_argnums=(1, 2), keep_unused=True, out_shardings=(everywhere(mesh), kept))


@functools.lru_cache
def skipped_program(wanted: Wanted, transformer: Transformer, guided: bool, mesh: Mesh | None, guider: str = "cfg"):
    """One step that uses what was kept, and leaves it: -> state, which is donated."""
    make = KINDS[wanted.kind].skipped
    assert make is not None, f"{wanted.kind} has no such program"
    one = make(transformer, guided, mesh, guider)

    def skipped(params, state, kept, text, condition, t, row, weight, noise, control):
        return one(params, state, kept, text, condition, t, row, weight, noise, control)[0]

    return jax.jit(skipped, donate_argnums=1, out_shardings=everywhere(mesh))


@functools.lru_cache
def all_steps_program(
    wanted: Wanted, transformer: Transformer, guided: bool, mesh: Mesh | None, kept: Kept, guider: str = "cfg"
):
    """All steps, jitted: as `loop_program`, with what is kept, which steps are computed (N,) and `control` (N, n)."""
    kind, inputs = KINDS[wanted.kind], (transformer, guided, mesh, guider)
    full, less = kind.computed(*inputs), None if kind.skipped is None else kind.skipped(*inputs)

    def all_steps(
        params, state, kept_parts, text, condition, timesteps, rows, weights, noise, known, computed, control
    ):
        def body(i, carry):
            state, now = carry
            drawn = drawn_inside(noise, i, state, mesh)
            rest = text, condition_at(condition, i), timesteps[i], rows[i], at(weights, i), drawn, control[i]
            if less is None:
                made = full(params, state, now, *rest)
            else:
                made = jax.lax.cond(
                    computed[i],
                    lambda state, now: full(params, state, now, *rest),
                    lambda state, now: less(params, state, now, *rest),
                    state,
                    now,
                )
            made = put_known(known, made[0], i), made[1]
            if mesh is None:
                return made
            return jax.lax.with_sharding_constraint(made, (everywhere(mesh), kept))

        return jax.lax.fori_loop(0, len(timesteps), body, (state, kept_parts))

    return jax.jit(all_steps, donate_argnums=(1, 2), out_shardings=(everywhere(mesh), kept))


def abstract_kept(
    wanted: Wanted,
    cfg: TransformerConfig,
    dtype: str,
    videos: tuple[int, ...],
    *,
    guided: bool,
    mesh: Mesh | None,
) -> Kept:
    """Shapes, types and places of what is kept.

    Args:
      dtype: that the transformer computes in.
      videos: the shape of their latents, (B, T, h, w, C).
    """
    found = KINDS[wanted.kind].kept(wanted, cfg, dtype, videos, guided, mesh)
    count = jax.ShapeDtypeStruct((), np.int32, sharding=everywhere(mesh))
    if found is None:
        return Kept(jax.ShapeDtypeStruct((0,), np.float32, sharding=everywhere(mesh)), count)
    shape, kind, names = found
    place = None if mesh is None else NamedSharding(mesh, sharding.spec(names, mesh, shape))
    return Kept(jax.ShapeDtypeStruct(shape, np.dtype(kind), sharding=place), count)


def where(kept: Kept) -> Kept:
    """The shardings of abstract arrays."""
    return jax.tree.map(lambda x: x.sharding, kept)


@functools.lru_cache
def _zeros(shapes: tuple[Any, ...], places: Kept):
    return jax.jit(lambda: Kept(*(jnp.zeros(*one) for one in shapes)), out_shardings=places)


def zeros(kept: Kept) -> Kept:
    return _zeros(tuple((x.shape, x.dtype) for x in kept), where(kept))()


def _place(model: Model, schedule: Schedule, videos: tuple[int, ...], guided: bool) -> Kept:
    cfg, dtype = model.spec.transformer, model.compute.of("transformer").dtype
    return abstract_kept(Wanted(schedule.kind, schedule.order), cfg, dtype, videos, guided=guided, mesh=model.mesh)


def _around(make: Callable[[Kept, jax.Array], Around], *, keeps: bool) -> Maker:
    """The maker of a step whose blocks are in the hands of a function of `models.kept`."""

    def maker(transformer: Transformer, guided: bool, mesh: Mesh | None, guider: str) -> Step:
        def one(params, state, kept, text, condition, t, row, weight, noise, control):
            x = _input(state, condition, 1 + guided)
            t = jnp.full((x.shape[0],), t)
            with activate(mesh):
                v, now = transformer.apply({"params": params}, x, text, t, make(kept, control), method="around_blocks")
            v = v.astype(jnp.float32)
            if guided:
                v, state = combined(guider, v, weight, state)
            return update(state, v, row, noise), now if keeps else kept

        return one

    return maker


def _both_branches(keep: Callable[[jax.Array, jax.Array, Kept], Kept]) -> Maker:
    """The maker of a step that is guided in full; `keep` (unconditional, conditional, kept)."""

    def maker(transformer: Transformer, guided: bool, mesh: Mesh | None, guider: str) -> Step:
        def one(params, state, kept, text, condition, t, row, weight, noise, control):
            v = _predict(transformer, mesh, params, _input(state, condition, 2), text, t)
            kept = keep(*jnp.split(v, 2), kept)
            v, state = combined(guider, v, weight, state)
            return update(state, v, row, noise), kept

        return one

    return maker


def _one_branch(stands_for: Callable[[jax.Array, Kept], jax.Array] | None) -> Maker:
    """The maker of a step of the prompt's branch alone; `stands_for` (conditional, kept) -> unconditional, or none."""

    def maker(transformer: Transformer, guided: bool, mesh: Mesh | None, guider: str) -> Step:
        def one(params, state, kept, text, condition, t, row, weight, noise, control):
            text = jnp.split(text, 2)[1]
            v = _predict(transformer, mesh, params, _input(state, condition, 1), text, t)
            if stands_for is not None:
                v, state = combined(guider, jnp.concatenate([stands_for(v, kept), v]), weight, state)
            return update(state, v, row, noise), kept

        return one

    return maker


def _input(state: SamplerState, condition: jax.Array | None, branches: int) -> jax.Array:
    x = state.latents if condition is None else jnp.concatenate([state.latents, condition], axis=-1)
    return x if branches == 1 else jnp.concatenate([x, x])


def _predict(transformer: Transformer, mesh: Mesh | None, params, x, text, t) -> jax.Array:
    with activate(mesh):
        v: Any = transformer.apply({"params": params}, x, text, jnp.full((x.shape[0],), t))
    return v.astype(jnp.float32)


def _keep_difference(unconditional: jax.Array, conditional: jax.Array, kept: Kept) -> Kept:
    return Kept(unconditional - conditional, kept.computed + 1)


def _keep_count(unconditional: jax.Array, conditional: jax.Array, kept: Kept) -> Kept:
    return Kept(kept.parts, kept.computed + 1)


def _by_difference(conditional: jax.Array, kept: Kept) -> jax.Array:
    return conditional + kept.parts


def _of_tokens(wanted: Wanted, cfg: TransformerConfig, dtype: str, videos, guided: bool, mesh: Mesh | None):
    rows = videos[0] * (1 + guided)
    with activate(mesh):
        tokens = axes.padded(rows, sequence_tokens(cfg, videos[1:4]))
    return keeping.parts_shape(wanted.kind, cfg, rows, tokens, wanted.order), dtype, (None, "batch", "seq", None)


def _of_latents(wanted: Wanted, cfg: TransformerConfig, dtype: str, videos, guided: bool, mesh: Mesh | None):
    return videos, "float32", (None,) * 5


KINDS: Mapping[str, Kind] = {
    "added": Kind(
        computed=_around(keeping.keep_added, keeps=True),
        skipped=_around(keeping.add_kept, keeps=False),
        kept=_of_tokens,
    ),
    "attention": Kind(
        computed=_around(lambda kept, _: keeping.keep_attention(kept), keeps=True),
        skipped=_around(lambda kept, _: keeping.use_attention(kept), keeps=False),
        kept=_of_tokens,
    ),
    "first_block": Kind(
        computed=_around(lambda kept, control: keeping.decide_after_first(kept, control[0]), keeps=True),
        skipped=None,
        kept=_of_tokens,
    ),
    "delta": Kind(
        computed=_both_branches(_keep_difference),
        skipped=_one_branch(_by_difference),
        kept=_of_latents,
    ),
    "interval": Kind(
        computed=_both_branches(_keep_count),
        skipped=_one_branch(None),
        kept=lambda *_: None,
    ),
}
