"""The sampling loop over a model's steps, or all of them as one program."""

import contextlib
import functools
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm.auto import tqdm

from cogvx_jax.diffusion import combining, samplers
from cogvx_jax.diffusion.guiders import Guider, kind_of
from cogvx_jax.diffusion.reuse import Schedule
from cogvx_jax.diffusion.update import SamplerState, init
from cogvx_jax.diffusion.windows import Laid
from cogvx_jax.models.kept import Kept
from cogvx_jax.pipelines.conditions import SamplingInputs, condition_at, known_program
from cogvx_jax.pipelines.finite import NotFiniteError, all_finite
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.noise import NoiseSource, SeededNoise
from cogvx_jax.pipelines.on_step import OnStep, Seen, Step, asked_change, changed
from cogvx_jax.pipelines.saved_steps import Carried, Identity, SavedSteps, identify, run_facts
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
    on_step: OnStep | None = None,
    resume: SavedSteps | None = None,
    asked: Mapping[str, str] | None = None,
    what: str = "sampling",
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
      on_step: called after each step, once its numbers are known to be finite.
      resume: steps that were taken of the same arguments, to go on from.
      asked: what the arguments were made of, in words, by which saved steps are known.
      what: the steps are of, for people.
    Returns: sampled latents, (B, T, h, w, 16) float32.
    Raises: NotFiniteError, with `progress` or `on_step` after the step that gave such numbers, else after the last;
      ValueError where `resume` is of other arguments, before any step; whatever `on_step` raises.
    """
    assert windows is None or short is None, "what a window keeps, another cannot use"
    loop = _Loop(model, inputs, sampler, weights, negative is not None, guider, noise, short, windows)
    with contextlib.closing(loop):
        state, states = _begin(model, inputs.latents, text, negative, sampler, guider)
        count, first, finite = len(sampler.timesteps), 0, []
        shown = _Shown(on_step, loop, states, asked or {})
        if resume is not None:
            _check_same(resume, shown.identity(), count)
            first, state, loop.kept = resume.restore(Carried(0, state, loop.kept))
        bar = tqdm(range(first, count), initial=first, total=count, disable=not progress, unit="step", desc=what)
        for i in bar:
            shown.before(i, state)
            state = loop.step(i, state, shown.text)
            if watch is not None and short is not None:
                watch(loop.kept)
            finite.append(all_finite(state.latents))
            # This waits for the step, so that the bar and `on_step` tell the truth.
            if (progress or on_step is not None) and not finite[-1]:
                break
            state, ends = shown.after(i, state)
            if ends:
                break
        computed = None if short is None or first + len(finite) < count else int(loop.kept.computed)
    for i, good in enumerate(jax.device_get(finite), first + 1):
        if not good:
            raise NotFiniteError.of(model, "transformer", f"{what} step {i} of {count}")
    if computed is not None:
        _check_computed(short, computed)
    return state.latents


class _Shown:
    """Shows each step to `on_step`, if there is one, and takes what that changes. `text` is what the next step sees."""

    def __init__(self, on_step: OnStep | None, loop: "_Loop", text: jax.Array, asked: Mapping[str, str]):
        self._on_step, self._loop, self.text = on_step, loop, text
        self.identity: Callable[[], Identity] = functools.cache(functools.partial(loop.identity, text, asked))
        self._known: Callable[[], Identity] = self.identity
        self._began = time.monotonic()
        self._before: jax.Array | None = None

    def before(self, i: int, state: SamplerState) -> None:
        """Keeps the latents that step `i` is given where its x0 cannot be told without them."""
        noise = self._on_step is not None and self._loop.sampler.estimates_noise[i]
        self._before = jnp.copy(state.latents) if noise else None

    def after(self, i: int, state: SamplerState) -> tuple[SamplerState, bool]:
        """The state to go on with, and whether to end."""
        if self._on_step is None:
            return state, False
        loop = self._loop
        seen = Seen(Carried(i + 1, state, loop.kept), loop.rows[i], self._before, self.text, self._known)
        step = Step(
            number=i + 1,
            count=len(loop.sampler.timesteps),
            timestep=int(loop.sampler.timesteps[i]),
            seconds=time.monotonic() - self._began,
            seen=seen,
        )
        change = asked_change(self._on_step(step))
        if change.text is not None:
            self.text, self._known = changed(self.text, change.text, "text"), _other_text
        return state._replace(latents=changed(state.latents, change.latents, "latents")), change.end


class _Loop:
    """The steps of one run, each called with its number and the states of all rows."""

    def __init__(
        self,
        model: Model,
        inputs: SamplingInputs,
        sampler: samplers.Sampler,
        weights: Any,
        guided: bool,
        guider: Guider | None,
        noise: NoiseSource,
        short: Schedule | None,
        windows: Laid | None,
    ):
        kind, shape = kind_of(guider), inputs.latents.shape
        programs = model.transformer, guided, model.mesh, model.exact, kind
        self._plain = model.compiled("step", step_program(*programs))
        self._controlled = model.compiled("step", step_program(*programs, inputs.branches), inputs.branches)
        self._made = None if short is None else Steps(model, short, shape, guided=guided, guider=kind)
        self._model, self._inputs, self.sampler, self._weights = model, inputs, sampler, weights
        self._noise, self._short, self._windows = noise, short, windows
        self._params = model.params["transformer"]
        self._stochastic = bool(np.any(sampler.draws))
        self.rows = sampler.table.astype(np.float32)

    @property
    def kept(self) -> Any:
        """What steps keep for others; None where all are computed by themselves."""
        return None if self._made is None else self._made.kept

    @kept.setter
    def kept(self, kept: Any) -> None:
        if self._made is not None:
            self._made.kept = kept

    def step(self, i: int, state: SamplerState, states: jax.Array) -> SamplerState:
        """The state after step `i`; the one before it is given up."""
        inputs, mesh = self._inputs, self._model.mesh
        drawn = replicate(self._noise.step(i, inputs.latents.shape), mesh) if self._stochastic else None
        t, row, weight = np.int32(self.sampler.timesteps[i]), self.rows[i], at(self._weights, i)
        arguments = self._params, state, states, condition_at(inputs.condition, i), t, row, weight, drawn
        control = None if inputs.control is None else inputs.control.in_step(i)
        if self._made is not None:
            state = self._made(i, *arguments)
        else:
            run = self._plain if control is None else self._controlled
            state = run(*arguments, **given(at(self._windows, i), control, self._reference(i), inputs))
        return state if inputs.known is None else known_program(mesh)(inputs.known, state, np.int32(i))

    def _reference(self, i: int) -> jax.Array | None:
        """The latents that a step's blocks look at, on the devices; None where there are none."""
        reference = self._inputs.reference
        return None if reference is None else replicate(reference.at(i), self._model.mesh)

    def close(self) -> None:
        """Lets go of the weights, which a `Step` that somebody keeps would hold."""
        self._params = None

    def identity(self, states: jax.Array, asked: Mapping[str, str]) -> Identity:
        """What must be the same where the run goes on."""
        model, inputs = self._model, self._inputs
        facts = dict(asked) | run_facts(model.spec, model.compute, model.mesh, exact=model.exact)
        nets = () if inputs.control is None else inputs.control.params
        fusers = () if inputs.motion is None else inputs.motion.fusers
        params = {"transformer": self._params, "controlnets": nets, "tora": fusers}
        arrays = identifying(inputs, states, self.sampler, self._weights, self._short, self._windows)
        return identify(facts, params, arrays)


def identifying(
    inputs: SamplingInputs,
    states: jax.Array,
    sampler: samplers.Sampler,
    weights: Any,
    short: Schedule | None,
    windows: Laid | None,
) -> Any:
    """Arrays that are computed of a request, and by which its saved steps are known; arguments as for `denoise`."""
    control, motion = inputs.control, inputs.motion
    control = None if control is None else control._replace(params=())
    motion = None if motion is None else motion._replace(fusers=())
    beside = inputs.known, inputs.reference, inputs.regions, motion, control, inputs.places
    steps = None if short is None else (short.computed, short.control)
    laid = sampler.timesteps, sampler.table, weights, steps, windows
    return inputs.latents, inputs.condition, beside, states, laid


def _check_same(resume: SavedSteps, here: Identity, count: int) -> None:
    """Raises ValueError where steps were taken of something else; warns where what is computed again has other bits."""
    resume.check(here.facts)
    if resume.count != count:
        raise ValueError(f"{resume.file} is damaged: it says {resume.count} steps, there are {count}")
    if resume.identity.inputs != here.inputs:
        warnings.warn(
            f"what {resume.file} was made of came out otherwise this time, at least in its last bits, and so may the "
            "video",
            stacklevel=4,
        )


def _other_text() -> Identity:
    raise ValueError("steps cannot be saved once on_step has changed the text, which is encoded again where they go on")


def given(windows: Any, control: Any, reference: Any, inputs: SamplingInputs) -> dict[str, Any]:
    """What of them there is, by name: stored programs know none."""
    named = dict(windows=windows, control=control, reference=reference, regions=inputs.regions, motion=inputs.motion)
    named["places"] = inputs.places
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
        loop = model.compiled("loop", program, inputs.branches)
        reference = inputs.reference
        if reference is not None:
            reference = reference._replace(latents=replicate(reference.latents, model.mesh))
        x = loop(params, state, *arguments, **given(windows, inputs.control, reference, inputs)).latents
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
    """What sampling starts from, and the states of all rows."""
    # Its own copy, since the state is donated to the steps.
    state = init(jnp.array(latents), sampler.history)._replace(guider=combining.start(guider, latents.shape))
    state = jax.tree.map(lambda x: replicate(x, model.mesh), state)
    return state, rows_of(text, negative)


def rows_of(text: jax.Array, negative: jax.Array | None) -> jax.Array:
    """The states of all rows of a step: those of the negatives come first."""
    return text if negative is None else jnp.concatenate([negative, text])


class RecordedSteps(NamedTuple):
    """The noise of every step, (N, B, T, h, w, 16), as a source whose index may be traced."""

    steps: jax.Array

    @classmethod
    def of(cls, noise: NoiseSource, several: range, shape: tuple[int, ...], mesh: Mesh | None) -> "RecordedSteps":
        return cls(replicate(jnp.stack([noise.step(i, shape) for i in several]), mesh))

    def step(self, index: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return self.steps[index]
