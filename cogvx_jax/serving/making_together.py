"""How a worker makes jobs that are alike together: each with its own video, record, progress and end."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from cogvx_jax.pipelines import generate
from cogvx_jax.pipelines.latents import decode_frames
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.request import Request
from cogvx_jax.pipelines.together import Part, Together, likeness, part_of
from cogvx_jax.serving.making import Maker, shape_of
from cogvx_jax.serving.stepping import SteppingTogether
from cogvx_jax.serving.warned import warned
from cogvx_jax.serving.worker import Stopped, Task

Ends = Iterator[tuple[Task, Exception | None]]


class _Begun(NamedTuple):
    """A job, all of which is computed that comes before the loop."""

    task: Task
    model: Model
    request: Request
    part: Part | None  # None: it is made alone
    warnings: list[str]

    @property
    def like(self) -> tuple[str | None, str]:
        return likeness(self.request), str(self.task.job.asked.get("loras", []))


class TogetherMaker(Maker):
    """A `Maker` that samples several jobs in one program. What only one of them meets does not hurt the others.

    Args:
      width: videos of that program, one for each part of the mesh that has a batch to itself. Where fewer are alike
        the last of them fills it up: that takes no longer, and nothing is compiled anew.
    """

    def __init__(self, *model: Any, width: int = 1, **how: Any):
        super().__init__(*model, **how)
        self.width = width

    def warm(self, sizes: Sequence[str]) -> None:
        """As `Maker.warm`, also of jobs that are made together."""
        super().warm(sizes)
        for request in self._warmed(sizes) if self.width > 1 else ():
            if likeness(request) is not None:
                model = generate.fitting(self._model, request)
                self._together(model, [part_of(model, request)]).sample()
                self._compiled.add((self.width, shape_of(request)))

    def _together(self, model: Model, parts: Sequence[Part]) -> Together:
        return Together(model, [*parts, *[parts[-1]] * (self.width - len(parts))])

    def several(self, tasks: Sequence[Task]) -> Ends:
        """See `worker.Several`. Where their program fails each is made alone: one of them may be why."""
        begun, alone = list[_Begun](), list[Task]()
        for task in tasks:
            try:
                one = self._begin(task)
            except Exception as error:
                yield task, error
                continue
            if one.part is not None and (not begun or one.like == begun[0].like):
                begun.append(one)
            else:
                alone.append(task)
        latents, stopped = None, False
        if len(begun) > 1:
            try:
                latents = self._sample(begun)
            except Stopped:
                stopped = True
            except Exception as error:
                print(f"cogvx: {len(begun)} jobs are made one by one, as together: {error}", file=sys.stderr)
        for number, one in enumerate(begun):
            if stopped:
                yield one.task, Stopped(one.task.progress.why or Stopped.ENDING)
            elif latents is None:
                alone.append(one.task)
            else:
                yield one.task, self._finish(one, latents[number : number + 1])
        for task in alone:
            yield task, self._alone(task)

    def _begin(self, task: Task) -> _Begun:
        task.progress.tell(stage="starting")
        with warned() as warnings:
            model, request = self._checked(task.job, task.folder)
            part = None if likeness(request) is None else part_of(model, request)
        return _Begun(task, model, request, part, warnings)

    def _sample(self, begun: Sequence[_Begun]) -> np.ndarray:
        """The latents of all. Raises: Stopped; what sampling raises."""
        shape = max(self.width, len(begun)), shape_of(begun[0].request)
        _tell_all(begun, "sampling" if shape in self._compiled else "compiling")
        told = [(one.task.folder, one.task.progress) for one in begun]
        with warned() as warnings:
            together = self._together(begun[0].model, [one.part for one in begun if one.part is not None])
            latents = SteppingTogether(told, self._save_every, self._preview).sample(together)
        for one in begun:
            one.warnings.extend(text for text in warnings if text not in one.warnings)
        self._compiled.add(shape)
        _tell_all(begun, "decoding")
        return latents

    def _finish(self, one: _Begun, latents: np.ndarray) -> Exception | None:
        """Writes the video of one; gives the error that ended it."""
        task, request = one.task, one.request
        try:
            task.progress.check()
            with warned() as warnings:
                frames = decode_frames(one.model, latents, request.padding, tiling=request.tiling)
                self._write(one.model, request, frames, task.folder, task.out, task.progress)
            self._note(task.job, task.folder, task.progress, [*one.warnings, *warnings])
        except Exception as error:
            return error
        return None

    def _alone(self, task: Task) -> Exception | None:
        try:
            self(task.job, task.folder, task.out, task.progress)
        except Exception as error:
            return error
        return None


def _tell_all(begun: Sequence[_Begun], stage: str) -> None:
    """Notes a stage; that a job is stopped is seen later."""
    for one in begun:
        with contextlib.suppress(Stopped):
            one.task.progress.tell(stage=stage)
