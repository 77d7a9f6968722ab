"""What a worker does between the sampling steps of a job: tells of them, saves them, shows a preview, and stops."""

import functools
import io
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from cogvx_jax.pipelines import generate
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.on_step import Step
from cogvx_jax.pipelines.request import Request
from cogvx_jax.pipelines.saved_steps import SavedSteps, read_steps
from cogvx_jax.pipelines.seldom import Seldom
from cogvx_jax.pipelines.together import Together
from cogvx_jax.serving.store import STEPS
from cogvx_jax.serving.worker import Progress, Stopped

SHARE = 1 / 50  # of the time that previews take at most
Show = Callable[[Step], np.ndarray]  # gives frames (B, F, H, W, 3) uint8, as `previews.Preview` does
MAX_PREVIEW = 64 * 2**10  # bytes; an event carries it


class Stepping:
    """The sampling of one job.

    Args:
      preview: makes frames of a step; None shows none.
      save_every: seconds of sampling after which its state is saved.
    """

    def __init__(self, folder: Path, progress: Progress, save_every: float, preview: Show | None = None):
        self._file, self._progress, self._save_every, self._preview = folder / STEPS, progress, save_every, preview
        self._saved, self._seldom, self.taken = time.monotonic(), Seldom(SHARE), 0

    def sample(self, model: Model, request: Request) -> Any:
        """The latents of a request, from the step on that was saved last, where there is one."""
        saved = self._earlier(model, request)
        if not self._progress.all(saved is not None):
            saved = None
        try:
            return generate.sample(model, request, progress=False, **self.watching(saved))
        except ValueError as error:  # saved with other weights, which is seen only now
            if saved is None or self.taken:
                raise
            print(f"cogvx: {self._file}: {error}; sampling begins anew", file=sys.stderr)
            return generate.sample(model, request, progress=False, **self.watching(None))

    def watching(self, saved: SavedSteps | None = None) -> dict[str, Any]:
        """Arguments of `sample` and `extended_frames`."""
        return {"on_step": self._step} | ({} if saved is None else {"resume": saved})

    def _step(self, step: Step) -> None:
        self.taken += 1
        shown = self._shown(step)
        told = {} if shown is None else {"preview": shown}
        try:
            self._progress.tell(stage="sampling", step=step.number, steps=step.count, **told)
        except Stopped:
            if self._progress.why == Stopped.ENDING:  # a job that was cancelled needs none
                self._save(step)
            raise
        if step.number < step.count and self._progress.same(time.monotonic() - self._saved > self._save_every):
            self._save(step)

    def _save(self, step: Step) -> None:
        if step.segments > 1:
            return
        save_quietly(step, self._file, self._progress)
        self._saved = time.monotonic()

    def _shown(self, step: Step) -> bytes | None:
        """A small animation of the video."""
        shown = animations(self._preview, self._seldom, step, 1, self._progress.same)
        return None if shown is None else shown[0]

    def _earlier(self, model: Model, request: Request) -> SavedSteps | None:
        """The steps that another worker saved; None where they are not of this request, or none are there."""
        if request.extend is not None or not self._file.exists():
            return None
        try:
            saved = read_steps(self._file)
            generate.check_resumed(model, request, saved)
        except (ValueError, OSError) as error:
            print(f"cogvx: {error}; sampling begins anew", file=sys.stderr)
            return None
        return saved


class SteppingTogether:
    """The sampling of several jobs in one program. One that is stopped is computed on, and looked at no more.

    Args:
      told: of each job its folder and its progress.
    """

    def __init__(self, told: Sequence[tuple[Path, Progress]], save_every: float, preview: Show | None = None):
        self._told, self._save_every, self._preview = told, save_every, preview
        self._saved, self._seldom = time.monotonic(), Seldom(SHARE)

    def sample(self, together: Together) -> np.ndarray:
        """The latents of all, (B, T, h, w, C). Raises: Stopped where all are stopped."""
        return np.asarray(together.sample(functools.partial(self._step, together)))

    def _step(self, together: Together, step: Step) -> None:
        due = step.number < step.count and time.monotonic() - self._saved > self._save_every
        count = len(self._told)  # of the videos, the rest of which fill the program up
        made = animations(self._preview, self._seldom, step, count)
        shown: Sequence[bytes | None] = [None] * count if made is None else made
        ends = [self._tell(number, step, preview) for number, preview in enumerate(shown)]
        for number, why in enumerate(ends):
            if why == Stopped.ENDING or (due and why is None):
                folder, progress = self._told[number]
                save_quietly(together.own(step, number), folder / STEPS, progress)
        if due:
            self._saved = time.monotonic()
        if all(ends):
            raise Stopped(Stopped.ENDING if Stopped.ENDING in ends else Stopped.LOST)

    def _tell(self, number: int, step: Step, preview: bytes | None) -> str | None:
        """Notes the step of one job; why it is stopped, or None."""
        progress, told = self._told[number][1], {} if preview is None else {"preview": preview}
        try:
            progress.tell(stage="sampling", step=step.number, steps=step.count, **told)
        except Stopped:
            return progress.why
        return None


def animations(
    preview: Show | None, seldom: Seldom, step: Step, count: int, agreed: Callable[[bool], bool] = bool
) -> list[bytes] | None:
    """Of the first `count` videos what the model takes for the clean ones, as seldom as their cost makes it.

    Args:
      agreed: makes what one process decides hold in all that make the videos.
    """
    if preview is None or not agreed(seldom.due() or step.number == step.count):
        return None
    with seldom.doing():  # to encode them costs about as much as to make them
        return [animation(frames) for frames in preview(step)[:count]]


def save_quietly(step: Step, file: Path, progress: Progress) -> None:
    """Saves a step where that can be done: the video may be made all the same."""
    try:
        step.save(file)
        progress.keep(file)
    except (OSError, ValueError) as error:
        print(f"cogvx: the steps of {file.parent.name} are not saved: {error}", file=sys.stderr)


def animation(frames: np.ndarray) -> bytes:
    """Frames (F, H, W, 3) uint8 as an animated WebP of at most `MAX_PREVIEW` bytes; of more, the middle one alone."""
    pictures, file = [PIL.Image.fromarray(frame) for frame in frames], io.BytesIO()
    pictures[0].save(file, "WEBP", save_all=True, append_images=pictures[1:], duration=250, loop=0, quality=60)
    if file.tell() > MAX_PREVIEW:
        file = io.BytesIO()
        pictures[len(pictures) // 2].save(file, "WEBP", quality=60)
    return file.getvalue()
