"""Several requests that are alike, sampled in one program, each as it is made alone.

All that is computed before the loop is computed of each by itself: it draws its own noise, by its own seed. In the loop
the videos of a batch do not mix. So the steps of one can be saved, and it goes on alone.
"""

import dataclasses
import fractions
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cogvx_jax.pipelines.conditions import SamplingInputs
from cogvx_jax.pipelines.denoise import denoise, identifying, rows_of
from cogvx_jax.pipelines.generate import (
    TextStates,
    encode_texts,
    loop_arguments,
    positioned,
    request_facts,
    sampler_of,
)
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.noise import SeededNoise
from cogvx_jax.pipelines.on_step import OnStep, Seen, Step, told
from cogvx_jax.pipelines.request import Request
from cogvx_jax.pipelines.saved_steps import Carried, Identity, inputs_digest
from cogvx_jax.pipelines.tasks import sampling_inputs

TASKS = ("t2v", "i2v", "v2v")  # whose inputs are rows of a batch, and nothing else
ALONE = ("reuse", "way", "regions", "motion", "controls", "prefix", "extend", "latents")  # what a batch has not


def likeness(request: Request) -> str | None:
    """A hash that requests share which may be sampled together; None of one that is sampled alone."""
    if request.task not in TASKS or len(request.prompts) != 1:
        return None
    if any(getattr(request, name) is not None for name in ALONE):
        return None
    stills = request.stills and tuple(still._replace(pictures=()) for still in request.stills)
    own: dict[str, Any] = dict(prompts=(), seed=0, fps=fractions.Fraction(1), stills=stills, video=None, finish=None)
    return dataclasses.replace(request, **own, negative=None if request.negative is None else ()).digest()


class Part(NamedTuple):
    """One of several requests, with what its sampling starts from."""

    request: Request
    texts: TextStates
    inputs: SamplingInputs

    @property
    def states(self) -> jax.Array:
        """Of its rows."""
        return rows_of(self.texts.prompts, self.texts.negative)


def part_of(model: Model, request: Request) -> Part:
    """Computes what comes before the loop. Raises: ValueError for a request of another model; NotFiniteError."""
    request.check_model(model.spec)
    model = positioned(model, request)
    inputs = sampling_inputs(model, request, SeededNoise(request.seed), sampler_of(model, request))
    return Part(request, encode_texts(model, request), inputs)


class Together:
    """Requests of one `likeness`."""

    def __init__(self, model: Model, parts: Sequence[Part]):
        self._parts, first = tuple(parts), parts[0].request
        self._model = positioned(model, first)
        self._plan = sampler_of(self._model, first)
        self._numbers, self._given = loop_arguments(self._model, first, self._plan)

    def sample(self, on_step: OnStep | None = None) -> jax.Array:
        """Sampled latents of all, (B, T, h, w, 16) float32, padding included; see `denoise` for what is raised."""
        first = self._parts[0].request
        inputs = jax.tree.map(lambda *rows: jnp.concatenate(rows), *(part.inputs for part in self._parts))
        texts = jax.tree.map(lambda *rows: jnp.concatenate(rows), *(part.texts for part in self._parts))
        noise = _Noises([SeededNoise(part.request.seed) for part in self._parts])
        on_step = None if on_step is None else told(on_step, padding=first.padding)
        how: dict[str, Any] = dict(noise=noise, progress=False, on_step=on_step, asked=request_facts(first))
        how |= self._given
        return denoise(self._model, inputs, texts.prompts, texts.negative, self._plan, self._numbers, **how)

    def own(self, step: Step, number: int) -> Step:
        """The step as the request of that number has it, alone. Raises: ValueError where the next step has begun."""
        part, seen = self._parts[number], step.seen

        def row(x: jax.Array) -> jax.Array:
            return x[number : number + 1]

        def identity() -> Identity:
            arrays = identifying(
                part.inputs, part.states, self._plan, self._numbers, self._given["short"], self._given["windows"]
            )
            return Identity(dict(seen.identity().facts) | request_facts(part.request), inputs_digest(arrays))

        carried = Carried(seen.carried.steps, jax.tree.map(row, seen.carried.state))
        before = None if seen.before is None else row(seen.before)
        return dataclasses.replace(step, seen=Seen(carried, seen.row, before, part.states, identity))


class _Noises:
    """Of each video the noise of its own source: in the loop only steps draw any."""

    def __init__(self, sources: Sequence[SeededNoise]):
        self._sources = sources

    def step(self, index: int, shape: tuple[int, ...]) -> jax.Array:
        return jnp.concatenate([source.step(index, (1, *shape[1:])) for source in self._sources])
