"""How a worker makes the video of a job with a loaded model."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from cogvx_jax.configs import ModelSpec
from cogvx_jax.data.writer import VideoWriter
from cogvx_jax.pipelines import generate
from cogvx_jax.pipelines.inputs import KINDS
from cogvx_jax.pipelines.latents import decode_frames
from cogvx_jax.pipelines.lora import find_lora, load_lora
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.provenance import record_text
from cogvx_jax.pipelines.record import Record
from cogvx_jax.pipelines.request import Request, check_request
from cogvx_jax.serving.adapters import Adapters
from cogvx_jax.serving.queue import Job
from cogvx_jax.serving.stepping import Show, Stepping
from cogvx_jax.serving.worker import Progress
from cogvx_jax.sharding import first_process


def request_of(spec: ModelSpec, asked: Any, folder: Path) -> Request:
    """The checked request of a job; its pictures and videos are read. Raises: ValueError, OSError."""
    files = {name: folder / file for name, file in asked.get("files", {}).items()}
    return check_request(spec, asked["prompt"], Options(**asked["options"] | files))


def warm_options(spec: ModelSpec, size: str) -> Options:
    """Options of a short run for a size such as "480x720x49", height, width and frames; "own" is the model's.

    Raises: ValueError for what is no size, or for a model that needs more than a picture or a clip.
    """
    own, needs = spec.defaults, KINDS[spec.kind].needs[:1]
    found = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})x([0-9]{1,5})", size)
    if found is None and size != "own":
        raise ValueError(f"--warm takes HEIGHTxWIDTHxFRAMES, such as 480x720x49, or own, got {size[:60]!r}")
    height, width, frames = map(int, found.groups()) if found else (own.height, own.width, own.num_frames)
    black = np.zeros((frames, height, width, 3), np.uint8)
    inputs: dict[str, Any] = {"image": black[0]} if needs == ("image",) else dict.fromkeys(needs, black)
    return Options(size=(height, width), frames=frames, steps=2, **inputs)


def _shape(request: Request) -> Any:
    """What decides which programs a request needs."""
    short = (request.reuse is None, request.way is None, request.windows, request.positions)
    return request.batch_shape, request.guided, request.sampler, request.task, short, request.tiling


class Maker:
    """Makes videos of jobs, of one loaded model.

    Args:
      save_every: seconds of sampling after which its state is saved, for another worker to go on from.
      preview: makes frames of a step; None shows none.
      record: let a video tell how it was made.
    """

    def __init__(
        self,
        model: Model,
        adapters: Adapters,
        save_every: float = 60.0,
        preview: Show | None = None,
        record: bool = True,
    ):
        self._model, self._adapters, self._save_every, self._preview = model, adapters, save_every, preview
        self._record = record
        self._adapted: tuple[Any, Model] = ([], model)
        self._compiled: set[Any] = set()  # shapes of requests whose programs this process has

    def __call__(self, job: Job, folder: Path, out: Path, progress: Progress) -> None:
        """See `worker.Make`."""
        with progress.beginning():
            model = self._with_loras(job.asked.get("loras", []))
            request = request_of(model.spec, job.asked, folder)
            model = generate.fitting(model, request)
        progress.tell(stage="sampling" if _shape(request) in self._compiled else "compiling")
        stepping = Stepping(folder, progress, self._save_every, self._preview)
        if request.extend is not None:
            frames = generate.extended_frames(model, request, progress=False, **stepping.watching())
        else:
            latents = np.asarray(stepping.sample(model, request))
            progress.tell(stage="decoding")
            frames = decode_frames(model, latents, request.padding, tiling=request.tiling)
        self._compiled.add(_shape(request))
        change = functools.partial(_without_places, folder=folder)
        comment = record_text(model, request, change=change) if self._record else None
        with VideoWriter(out, fps=request.fps, comment=comment) if first_process() else nullcontext() as writer:
            progress.check()
            for pixels in frames:
                if writer is not None:
                    writer.write(pixels)
                progress.check()  # after what only the first process does, which may fail

    def warm(self, sizes: Sequence[str]) -> None:
        """Compiles what videos of these sizes need, before a job asks for one; see `warm_options`.

        Raises: as `warm_options` and `check_request`.
        """
        requests = [check_request(self._model.spec, "", warm_options(self._model.spec, size)) for size in sizes]
        for request in requests:
            model = generate.fitting(self._model, request)
            latents = np.asarray(generate.sample(model, request, progress=False))
            for _ in decode_frames(model, latents, request.padding):
                pass
            self._compiled.add(_shape(request))

    def _with_loras(self, loras: list[Any]) -> Model:
        """The model with a job's LoRAs, names and weights; those of the job before are kept."""
        if self._adapted[0] != loras:
            model = self._model
            for name, weight in loras:
                model = load_lora(model, find_lora(self._adapters.path(name), model.spec), weight)
            self._adapted = loras, model
        return self._adapted[1]


def _without_places(record: Record, folder: Path) -> Record:
    """A record that does not tell where the files of a job lie on the server."""

    def named(value: Any) -> Any:
        return value.removeprefix(f"{folder}/") if isinstance(value, str) else value

    options = {name: named(value) for name, value in record.options.items()}
    inputs = tuple({name: named(value) for name, value in one.items()} for one in record.inputs)
    return dataclasses.replace(record, options=options, inputs=inputs)
