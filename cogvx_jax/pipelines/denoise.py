"""The sampling loop over a model's steps, or all of them as one program."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm.auto import tqdm

from cogvx_jax.diffusion import combining, samplers
from cogvx_jax.diffusion.guiders import Guider, kind_of
from cogvx_jax.diffusion.reuse import Schedule
from cogvx_jax.diffusion.update import init
from cogvx_jax.diffusion.windows import Laid
from cogvx_jax.models.kept import Kept
from cogvx_jax.pipelines.conditions import SamplingInputs, condition_at, known_program
from cogvx_jax.pipelines.finite import NotFiniteError, all_finite
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.noise import NoiseSource, SeededNoise
from cogvx_jax.pipelines.shortcuts import Steps, in_one
from cogvx_jax.pipelines.step_programs import at, loop_program, step_program
from cogvx_jax.sharding import replicate


def denoise(
    model: Model,
    inputs: SamplingInputs,
    text: jax.Array,
    negative: jax.Array | None,
    sampler: samplers.Sampler,
    weights: Any,
    *,
    guider: Guider | None = None,
    noise: NoiseSource,
    progress: bool = True,
    short: Schedule | None = None,
    windows: Laid | None = None,
    watch: Callable[[Kept], None] | None = None,
) -> jax.Array:
    """The sampling loop: one compiled step, called once per timestep.

    Args:
      inputs: of a task of `pipelines.tasks`: where to start, channels beside the noise, what to leave alone.
      text, negative: states (B, L, text_dim); no negative, no guidance.
      weights: of guidance in each step, of `guiders.lay_out`.
      guider: that combines both branches; None is plain guidance.
      short: which steps are made of what others computed, see `pipelines.shortcuts`; None: none is.
      windows: over the clip in each step; not with `short`. None: the whole clip at once.
      watch: called after each step with what it kept.
    Returns: sampled latents, (B, T, h, w, 16) float32.
    Raises: NotFiniteError, with `progress` after the step that gave such numbers, else after the last.
    """
    assert windows is None or short is None, "what a window keeps, another cannot use"
    guided, kind, made = negative is not None, kind_of(guider), None
    latents, condition, known = inputs.latents, inputs.condition, inputs.known
    asked = model.transformer, guided, model.mesh, model.exact, kind
    step, controlled = model.compiled("step", step_program(*asked)), step_program(*asked, inputs.branches)
    if short is not None:
        made = Steps(model, short, latents.shape, guided=guided, guider=kind)
    state, states = _begin(model, latents, text, negative, sampler, guider)
    rows = sampler.table.astype(np.float32)
    stochastic = bool(np.any(sampler.draws))
    params = model.params["transformer"]
    count, finite = len(sampler.timesteps), []
    for i in tqdm(range(count), disable=not progress, unit="step", desc="sampling"):
        drawn = replicate(noise.step(i, latents.shape), model.mesh) if stochastic else None
        t = np.int32(sampler.timesteps[i])
        arguments = params, state, states, condition_at(condition, i), t, rows[i], at(weights, i), drawn
        control = None if inputs.control is None else inputs.control.in_step(i)
        more = given(at(windows, i), control, inputs)
        run = step if control is None else controlled
        state = run(*arguments, **more) if made is None else made(i, *arguments)
        if known is not None:
            state = known_program(model.mesh)(known, state, np.int32(i))
        if watch is not None and made is not None:
            watch(made.kept)
        finite.append(all_finite(state.latents))
        if progress and not finite[-1]:  # this waits for the step, so that the bar tells the truth
            break
    for i, good in enumerate(jax.device_get(finite), 1):
        if not good:
            raise NotFiniteError.of(model, "transformer", f"sampling step {i} of {count}")
    if made is not None:
        _check_computed(short, made.computed())
    return state.latents


def given(windows: Any, control: Any, inputs: SamplingInputs) -> dict[str, Any]:
    """What of these there is, by name: stored programs know none."""
    named = dict(windows=windows, control=control, regions=inputs.regions, motion=inputs.motion)
    return {name: value for name, value in named.items() if value is not None}


def denoise_in_one(
    model: Model,
    inputs: SamplingInputs,
    text: jax.Array,
    negative: jax.Array | None,
    sampler: samplers.Sampler,
    weights: Any,
    *,
    guider: Guider | None = None,
    noise: NoiseSource,
    short: Schedule | None = None,
    windows: Laid | None = None,
) -> jax.Array:
    """`denoise` as one program, a `lax.fori_loop` over the steps: the same result, no bar.

    Args:
      noise: a `SeededNoise` draws inside the program; of another source all steps' noise is drawn before it, and
        held on every device.
    Raises: NotFiniteError, after the last step.
    """
    assert windows is None or short is None, "what a window keeps, another cannot use"
    guided, kind, latents = negative is not None, kind_of(guider), inputs.latents
    state, states = _begin(model, latents, text, negative, sampler, guider)
    rows = sampler.table.astype(np.float32)
    steps, draw = sampler.timesteps.astype(np.int32), None
    if np.any(sampler.draws):
        several = range(len(steps))
        draw = noise if isinstance(noise, SeededNoise) else RecordedSteps.of(noise, several, latents.shape, model.mesh)
    params = model.params["transformer"]
    arguments = states, inputs.condition, steps, rows, weights, draw, inputs.known
    if short is None:
        program = loop_program(model.transformer, guided, model.mesh, kind, inputs.branches)
        loop = program if inputs.branches else model.compiled("loop", program)
        x = loop(params, state, *arguments, **given(windows, inputs.control, inputs)).latents
    else:
        loop, (kept, *which) = in_one(model, short, latents.shape, guided=guided, guider=kind)
        ended, kept = loop(params, state, kept, *arguments, *which)
        x = ended.latents
        _check_computed(short, int(kept.computed))
    if not all_finite(x):
        raise NotFiniteError.of(model, "transformer", f"one of the {len(steps)} sampling steps")
    return x


def _check_computed(short: Schedule | None, count: int) -> None:
    """Warns where steps that decide themselves left out all that they may."""
    if short is not None and short.kind == "first_block" and count <= 2:
        warnings.warn(
            f"only {count} of {len(short.computed)} steps computed all blocks; lower the threshold", stacklevel=4
        )


def _begin(
    model: Model,
    latents: jax.Array,
    text: jax.Array,
    negative: jax.Array | None,
    sampler: samplers.Sampler,
    guider: Guider | None,
):
    """What sampling starts from, and the states of all rows: those of the negatives come first."""
    # Its own copy, since the state is donated to the steps.
    state = init(jnp.array(latents), sampler.history)._replace(guider=combining.start(guider, latents.shape))
    state = jax.tree.map(lambda x: replicate(x, model.mesh), state)
    return state, text if negative is None else jnp.concatenate([negative, text])


class RecordedSteps(NamedTuple):
    """The noise of every step, (N, B, T, h, w, 16), as a source whose index may be traced."""

    steps: jax.Array

    @classmethod
    def of(cls, noise: NoiseSource, several: range, shape: tuple[int, ...], mesh: Mesh | None) -> "RecordedSteps":
        return cls(replicate(jnp.stack([noise.step(i, shape) for i in several]), mesh))

    def step(self, index: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return self.steps[index]
