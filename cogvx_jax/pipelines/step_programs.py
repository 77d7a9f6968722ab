"""The compiled programs of sampling: one step, or all of them in one."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cogvx_jax.diffusion.combining import combine
from cogvx_jax.diffusion.guiders import Numbers
from cogvx_jax.diffusion.update import SamplerState, update
from cogvx_jax.models.controlnet import ControlBranch, added_states
from cogvx_jax.models.per_block import PerBlock, States, paired, unpaired
from cogvx_jax.models.regions import region_sets
from cogvx_jax.models.tora import Motion
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.pipelines.conditions import Control, condition_at, control_at, put_known, reference_at
from cogvx_jax.pipelines.exact import row_by_row
from cogvx_jax.pipelines.windowed import over_places, over_windows
from cogvx_jax.sharding import activate, everywhere

Branches = tuple[ControlBranch, ...]


@functools.lru_cache
def step_program(
    transformer: Transformer,
    guided: bool,
    mesh: Mesh | None = None,
    exact: bool = False,
    guider: str = "cfg",
    branches: Branches = (),
):
    """One step, jitted: (params, state, text, condition, t, row, weight, noise) -> state, which is donated.

    `weight` is what `guiders.lay_out` gives for the step, `guider` a row of `combining.COMBINE`. By name may follow:
      windows: of the step, of `windows.lay_out`; else the whole clip is seen at once.
      control: the `Control` of the step for ControlNets, whose `branches` these are.
      reference: latents like the state's, which the video's tokens look at in every block.
      motion: of `SamplingInputs`.
      regions: (B, T, h, w), of `SamplingInputs`. Then text is that of all prompts side by side.
      places: windows of the picture, of `places.lay_out_places`; else the whole picture is seen at once.
    Of control, reference and regions there is one at most, and with places none.
    """
    one = _update(transformer, guided, mesh, exact, guider, branches)

    def step(params, state, text, condition, t, row, weight, noise, **named):
        return one(params, state, text, condition, t, row, weight, noise, **named)

    return jax.jit(step, donate_argnums=1, out_shardings=everywhere(mesh))


@functools.lru_cache
def loop_program(
    transformer: Transformer,
    guided: bool,
    mesh: Mesh | None = None,
    guider: str = "cfg",
    branches: Branches = (),
):
    """All steps, jitted: as `step_program`, with a leading axis of t, row, weight and windows, and a source of noise.

    `condition` is a `Condition`, `reference` a `Reference`, and `known` what the steps must leave alone; None where
    there is none.
    """
    one = _update(transformer, guided, mesh, guider=guider, branches=branches)

    def loop(params, state, text, condition, timesteps, rows, weights, noise, known, **named):
        per_step = {"windows": at, "control": control_at, "reference": reference_at}

        def body(i, state):
            drawn, channels = drawn_inside(noise, i, state, mesh), condition_at(condition, i)
            own = named | {name: pick(named[name], i) for name, pick in per_step.items() if name in named}
            state = one(params, state, text, channels, timesteps[i], rows[i], at(weights, i), drawn, **own)
            state = put_known(known, state, i)
            # Between steps it lies as between the calls of `denoise`.
            return state if mesh is None else jax.lax.with_sharding_constraint(state, everywhere(mesh))

        return jax.lax.fori_loop(0, len(timesteps), body, state)

    return jax.jit(loop, donate_argnums=1, out_shardings=everywhere(mesh))


def at(tree: Any, i: Any) -> Any:
    """The entries of one step, of arrays that have an axis of steps in front."""
    return jax.tree.map(lambda x: x[i], tree)


def drawn_inside(noise, i: jax.Array, state: SamplerState, mesh: Mesh | None) -> jax.Array | None:
    """The noise of a step in a program of all of them; None of no source."""
    if noise is None:
        return None
    drawn = noise.step(i, state.latents.shape)
    return drawn if mesh is None else jax.lax.with_sharding_constraint(drawn, everywhere(mesh))


def combined(guider: str, prediction: jax.Array, numbers: Any, state: SamplerState, perturbed: Any = None):
    """One prediction of both branches', (2 B, ...), the unconditional first; and the state with what is carried."""
    unconditional, conditional = jnp.split(prediction, 2)
    v, carry = combine(guider, unconditional, conditional, numbers, perturbed=perturbed, carry=state.guider)
    return v, state._replace(guider=carry)


def _update(
    transformer: Transformer,
    guided: bool,
    mesh: Mesh | None,
    exact: bool = False,
    guider: str = "cfg",
    branches: Branches = (),
):
    """One step of sampling, of the arguments of `step_program`."""
    cfg = transformer.cfg

    def predict(weights, x, text, t, *beside):
        params, per_block, control = weights
        evaluate = functools.partial(transformer.apply, {"params": params})
        if per_block is not None and per_block.joined is not None:
            (reference,) = beside
            x, text, t = paired(x, reference), paired(text, text), paired(t, t)
            return unpaired(evaluate(x, text, t, per_block=per_block))[0].astype(jnp.float32)
        if control is not None:
            states = _states(branches, control, x, beside, text, t)
            per_block = (per_block or PerBlock())._replace(states=States.of(states, cfg.layers))
        elif beside:
            sets = region_sets(*beside, text.shape[1] // cfg.text_length, cfg.text_length, cfg.patch, cfg.patch_t)
            per_block = (per_block or PerBlock())._replace(regions=sets)
        return evaluate(x, text, t, per_block=per_block).astype(jnp.float32)

    def predict_on_mesh(*inputs):
        with activate(mesh):
            return predict(*inputs)

    of_clip = row_by_row(predict, mesh) if exact else predict_on_mesh

    def one(
        params,
        state,
        text,
        condition,
        t,
        row,
        weight,
        noise,
        windows=None,
        control=None,
        reference=None,
        regions=None,
        motion=None,
        places=None,
    ):
        x = state.latents
        velocity = over_windows(over_places(of_clip, places, x.shape[-1], mesh), windows, x.shape[-1], mesh)
        beside: tuple[jax.Array, ...] = () if control is None else control.channels
        beside += () if reference is None else (reference,)
        control = None if control is None else control._replace(channels=())
        if condition is not None:
            x = jnp.concatenate([x, condition], axis=-1)
        alone, third = (x, *beside), _of_third(weight)

        def weights(per_block):
            return params, _joined(_moving(per_block, motion), reference), control

        if guided:  # both branches in one batch: [negative, positive]
            x, *beside = (jnp.concatenate([y, y]) for y in alone)
        if regions is not None:  # the negative has no regions: all of its video sees the first text
            alone, beside = (*alone, regions), (jnp.concatenate([0 * regions, regions]) if guided else regions,)
        prediction = velocity(weights(_of_both(weight)), x, text, jnp.full((x.shape[0],), t), *beside)
        if guided:
            perturbed = None
            if third is not None:
                rows = alone[0].shape[0]
                inputs = weights(third), alone[0], text[rows:], jnp.full((rows,), t), *alone[1:]
                active = weight.own["scale"] != 0
                perturbed = jax.lax.cond(active, lambda: velocity(*inputs), lambda: prediction[rows:])
            prediction, state = combined(guider, prediction, weight, state, perturbed)
        return update(state, prediction, row, noise)

    return one


def _joined(per_block: PerBlock | None, reference: jax.Array | None) -> PerBlock | None:
    """What the blocks do beside their own, where the rows get a reference each."""
    return per_block if reference is None else (per_block or PerBlock())._replace(joined=())


def _states(branches: Branches, control: Control, x, controls, text, t) -> jax.Array:
    """What ControlNets add in a step; zeros in one that has none of them, which costs next to nothing."""

    def compute():
        return added_states(branches, control.params, control.weights, x, controls, text, t)

    if control.active is None:
        return compute()
    found = jax.eval_shape(compute)
    return jax.lax.cond(control.active, compute, lambda: jnp.zeros(found.shape, found.dtype))


def _moving(per_block: PerBlock | None, motion: Motion | None) -> PerBlock | None:
    """What the blocks do beside their own, with trajectories."""
    return per_block if motion is None else (per_block or PerBlock())._replace(motion=motion)


def _of_both(numbers: Any) -> PerBlock | None:
    """What the blocks do beside their own in the evaluation of the branches."""
    if not isinstance(numbers, Numbers) or numbers.enhance is None:
        return None
    return PerBlock(enhance=numbers.enhance)


def _of_third(numbers: Any) -> PerBlock | None:
    """The same in a third evaluation, of the prompt alone; None where there is none."""
    if not isinstance(numbers, Numbers) or (numbers.skip is None and numbers.values is None):
        return None
    enhance = None if numbers.enhance is None else numbers.enhance[:, 1:]
    return PerBlock(skip=numbers.skip, values=numbers.values, enhance=enhance)
