"""How a worker makes the video of a job with a loaded model."""

import dataclasses
import functools
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from cogvx_jax.configs import ModelSpec
from cogvx_jax.data.fragments import FragmentedWriter
from cogvx_jax.data.writer import VideoWriter
from cogvx_jax.finishing.asked import Finishing
from cogvx_jax.finishing.finish import Coming, finish_file
from cogvx_jax.finishing.spare import Spared, unfinished, with_spare
from cogvx_jax.pipelines import generate
from cogvx_jax.pipelines.inputs import KINDS
from cogvx_jax.pipelines.latents import decode_frames
from cogvx_jax.pipelines.lora import find_lora, load_lora
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.option_files import with_paths_of
from cogvx_jax.pipelines.options import INPUTS, Options
from cogvx_jax.pipelines.provenance import record_text
from cogvx_jax.pipelines.record import Record
from cogvx_jax.pipelines.request import Request, check_request
from cogvx_jax.serving.adapters import Adapters, Parts, find_parts, without_folders
from cogvx_jax.serving.finishing import facts_of
from cogvx_jax.serving.jobs import SOUND, Job
from cogvx_jax.serving.stepping import Show, Stepping
from cogvx_jax.serving.store import WORKFLOW, live_of
from cogvx_jax.serving.warned import warned
from cogvx_jax.serving.worker import Progress, is_full
from cogvx_jax.sharding import first_process


def request_of(spec: ModelSpec, asked: Any, folder: Path, parts: Parts | None = None) -> Request:
    """The checked request of a job; its files are read. Raises: ValueError, OSError.

    Args:
      parts: what it may name of the server's own.
    """
    files, own = asked.get("files", {}), parts or find_parts()

    def place(option: str, source: str) -> str:
        if option in own:
            return own[option].path(source)
        if source not in files.values():  # it can be no path of ours
            raise ValueError(f"{option} names {source[:60]!r}, which is no file of this job")
        return str(folder / source)

    whole = {label: name for label, name in files.items() if label in INPUTS}
    return check_request(spec, asked["prompt"], with_paths_of(Options(**whole | asked["options"]), place))


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


def shape_of(request: Request) -> Any:
    """What decides which programs a request needs."""
    short = (request.reuse is None, request.way is None, request.windows, request.positions)
    return request.batch_shape, request.guided, request.sampler, request.task, short, request.tiling


class Maker:
    """Makes videos of jobs, of one loaded model.

    Args:
      save_every: seconds of sampling after which its state is saved, for another worker to go on from.
      preview: makes frames of a step; None shows none.
      record: let a video tell how it was made.
      parts: what requests may name beside LoRAs.
      sound_from: who makes sound for videos that are to have some; see `finishing.sound_makers.make_sound`.
    """

    def __init__(
        self,
        model: Model,
        adapters: Adapters,
        save_every: float = 60.0,
        preview: Show | None = None,
        record: bool = True,
        parts: Parts | None = None,
        sound_from: str | None = None,
    ):
        self._model, self._adapters, self._save_every, self._preview = model, adapters, save_every, preview
        self._parts = parts or find_parts()
        self._record, self._sound_from = record, sound_from
        self._adapted: tuple[Any, Model] = ([], model)
        self._compiled: set[Any] = set()  # shapes of requests whose programs this process has

    def __call__(self, job: Job, folder: Path, out: Path, progress: Progress) -> None:
        """See `worker.Make`. What it warns of is added to the job's notes."""
        with warned() as warnings:
            self._make(job, folder, out, progress)
        self._note(job, folder, progress, warnings)

    def _note(self, job: Job, folder: Path, progress: Progress, warnings: Iterable[str]) -> None:
        notes = dict.fromkeys([*job.shown.get("notes", ()), *map(self._worded(folder), warnings)])
        if notes:
            progress.shown["notes"] = list(notes)

    def _worded(self, folder: Path) -> Callable[[str], str]:
        """Makes texts that do not tell where files lie here."""
        folders = (folder, *(part.folder for part in self._parts.values()))
        return functools.partial(without_folders, folders=folders)

    def _make(self, job: Job, folder: Path, out: Path, progress: Progress) -> None:
        with progress.beginning():
            model, request = self._checked(job, folder)
        progress.tell(stage="sampling" if shape_of(request) in self._compiled else "compiling")
        stepping = Stepping(folder, progress, self._save_every, self._preview)
        if request.extend is not None:
            frames = generate.extended_frames(model, request, progress=False, **stepping.watching())
        else:
            latents = np.asarray(stepping.sample(model, request))
            progress.tell(stage="decoding")
            frames = decode_frames(model, latents, request.padding, tiling=request.tiling)
        self._compiled.add(shape_of(request))
        self._write(model, request, frames, folder, out, progress)

    def _checked(self, job: Job, folder: Path) -> tuple[Model, Request]:
        """The model with a job's LoRAs, fit for its request, and the request. Raises: ValueError, OSError."""
        model = self._with_loras(job.asked.get("loras", []))
        request = request_of(model.spec, job.asked, folder, self._parts)
        if SOUND in job.asked:
            request = self._with_sound(request)
        return generate.fitting(model, request), request

    def _with_sound(self, request: Request) -> Request:
        if self._sound_from is None:
            warnings.warn("the video has no sound: the worker that made it has no maker of sound", stacklevel=2)
            return request
        finish = (request.finish or Finishing()).heard(self._sound_from, request.prompts[0], request.seed)
        return dataclasses.replace(request, finish=finish)

    def _write(
        self, model: Model, request: Request, frames: Iterable[np.ndarray], folder: Path, out: Path, progress: Progress
    ) -> None:
        """Writes the frames as they are decoded, and beside them for those who watch meanwhile."""
        change = functools.partial(_without_places, worded=self._worded(folder))
        comment = record_text(model, request, change=change) if self._record else None  # all processes hash weights
        if request.finish is not None:
            write_finished(request, frames, folder, out, progress, comment, _tags(folder) if self._record else {})
            return
        with ExitStack() as files:
            writers: list[VideoWriter | FragmentedWriter] = []
            if first_process():
                tags = _tags(folder) if self._record else {}  # a graph holds the prompt, too
                writers.append(files.enter_context(VideoWriter(out, fps=request.fps, comment=comment, tags=tags)))
                writers.append(files.enter_context(FragmentedWriter(live_of(out), fps=request.fps)))
            progress.check()
            for pixels in frames:
                for writer in writers:
                    writer.write(pixels)
                progress.check()  # after what only the first process does, which may fail

    def warm(self, sizes: Sequence[str]) -> None:
        """Compiles what videos of these sizes need, before a job asks for one; see `warm_options`.

        Raises: as `warm_options` and `check_request`.
        """
        for request in self._warmed(sizes):
            model = generate.fitting(self._model, request)
            latents = np.asarray(generate.sample(model, request, progress=False))
            for _ in decode_frames(model, latents, request.padding):
                pass
            self._compiled.add(shape_of(request))

    def _warmed(self, sizes: Sequence[str]) -> list[Request]:
        """A short run of each size."""
        return [check_request(self._model.spec, "", warm_options(self._model.spec, size)) for size in sizes]

    def _with_loras(self, loras: list[Any]) -> Model:
        """The model with a job's LoRAs, names and weights; those of the job before are kept."""
        if self._adapted[0] != loras:
            model = self._model
            for name, weight in loras:
                model = load_lora(model, find_lora(self._adapters.path(name), model.spec), weight)
            self._adapted = loras, model
        return self._adapted[1]


def write_finished(
    request: Request,
    frames: Iterable[np.ndarray],
    folder: Path,
    out: Path,
    progress: Progress,
    comment: str | None,
    tags: Mapping[str, str],
) -> None:
    """Writes the frames, finished as they are decoded, and beside them for those who watch meanwhile.

    Where finishing fails, the video is as it was before, and a note says so.
    """
    finish, frame_count = request.finish, request.finished or request.frames
    assert finish is not None
    progress.tell(stage="finishing")

    def checked() -> Iterator[np.ndarray]:
        for pixels in frames:
            yield pixels
            progress.check()

    if not first_process():
        for _ in checked():
            pass
        return

    def write(passing: Iterator[np.ndarray]) -> None:
        with FragmentedWriter(live_of(out), fps=finish.rate(request.fps)) as live:

            def beside(frame: np.ndarray) -> None:
                live.write(frame)
                progress.look()

            coming = Coming(passing, request.fps, frame_count, comment, tags)
            delivery = dataclasses.replace(finish.file, record=comment is not None)
            done = finish_file(coming, out, finish.pictures, delivery, beside=beside)
            if done.problem is not None:
                warnings.warn(str(done.problem).replace(repr(str(out)), "the video"), stacklevel=2)

    full: BaseException | None = None
    try:
        with_spare(write, checked(), out, request.fps, unfinished(comment), tags)
    except Spared as spared:
        if is_full(spared):  # it is tried again
            spared.place.unlink()
            full = spared.__cause__
        else:
            spared.place.replace(out)
            facts = facts_of(request, frame_count)
            progress.shown |= facts
            said = f"the video is {facts['size']} as it was made: finishing failed: {spared.__cause__}"
            warnings.warn(said, stacklevel=2)
    if full is not None:
        raise full  # out here, where it keeps its own causes


def _tags(folder: Path) -> dict[str, str]:
    """Texts of other programs that the video of a job carries."""
    file = folder / WORKFLOW
    return {"workflow": file.read_text(encoding="utf-8")} if file.is_file() else {}


def _without_places(record: Record, worded: Callable[[str], str]) -> Record:
    """A record whose texts are changed to tell nothing of where files lie."""

    def named(value: Any) -> Any:
        if isinstance(value, str):
            return worded(value)
        if isinstance(value, Mapping):
            return {key: named(one) for key, one in value.items()}
        return [named(one) for one in value] if isinstance(value, list) else value

    inputs = tuple(named(one) for one in record.inputs)
    return dataclasses.replace(record, options=named(record.options), inputs=inputs)
