"""`callback_on_step_end` of diffusers' pipelines, as a function for `on_step`.

Source: diffusers 0.42's CogVideoXPipeline.__call__.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from cogvx_jax.pipelines.on_step import Change, OnStep, Step

TENSORS = ("latents", "prompt_embeds", "negative_prompt_embeds")


class Pipeline:
    """What stands for the pipeline in the callback. It has these attributes alone; `_interrupt` may be set.

    `_interrupt`: true ends the loop after this step; the latents as they are then are decoded.
    `num_timesteps`: steps of the run.
    """

    __slots__ = ("_interrupt", "num_timesteps")

    def __init__(self) -> None:
        self._interrupt, self.num_timesteps = False, 0

    @property
    def interrupt(self) -> bool:
        return self._interrupt


def as_on_step(callback: Callable[..., dict[str, Any]], tensor_inputs: Sequence[str]) -> OnStep:
    """A function for `on_step` that calls `callback(pipe, step_index, timestep, tensors)`.

    As in diffusers the index counts from 0, and tensors that the callback gives back replace those of the loop. With
    guidance `prompt_embeds` are the states of both branches, the negative one first, so that a change of
    `negative_prompt_embeds` alone changes nothing. Arrays are jax's, latents channels-last, (B, T, h, w, C).

    An object with `tensor_inputs`, as diffusers' `PipelineCallback`, names its tensors itself.

    Raises: ValueError for what is no function, or other names of tensors.
    """
    if not callable(callback):
        kind = type(callback).__name__
        raise ValueError(f"callback_on_step_end must be a function as diffusers' pipelines take, got {kind}")
    tensor_inputs = getattr(callback, "tensor_inputs", tensor_inputs)
    if not set(tensor_inputs) <= set(TENSORS):
        raise ValueError(f"callback_on_step_end_tensor_inputs may have {', '.join(TENSORS)}, got {list(tensor_inputs)}")
    pipe = Pipeline()

    def on_step(step: Step) -> Change:
        pipe.num_timesteps = step.count
        given = callback(pipe, step.number - 1, step.timestep, {name: _tensor(step, name) for name in tensor_inputs})
        if not isinstance(given, dict):
            kind = type(given).__name__
            raise ValueError(f"callback_on_step_end must give back a dict of tensors, such as {{}}, got {kind}")
        if not set(given) <= set(TENSORS):
            raise ValueError(f"callback_on_step_end may give back {', '.join(TENSORS)}, got {list(given)}")
        return Change(given.get("latents"), given.get("prompt_embeds"), pipe.interrupt)

    return on_step


def _tensor(step: Step, name: str) -> jax.Array | None:
    if name == "latents":
        return step.latents
    if name == "prompt_embeds":
        return step.text
    guided = step.text.shape[0] > step.seen.carried.state.latents.shape[0]
    return step.text[: step.text.shape[0] // 2] if guided else None
