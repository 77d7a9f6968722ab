"""A video finished: in memory, as a stream of frames, or from file to file with sound and record."""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from cogvx_jax.data.comments import file_sha256, read_tags
from cogvx_jax.data.delivery import CONTAINERS, Preset, check_deliverable, check_even, preset_of
from cogvx_jax.data.sound import Track, check_sound, sound_lag
from cogvx_jax.data.video import Video
from cogvx_jax.data.writer import FORMATS, check_writable
from cogvx_jax.finishing.ahead import ahead
from cogvx_jax.finishing.fragments import EncodedFragments, Fragments, PictureFragments, write_fragments
from cogvx_jax.finishing.made_track import Making, made_track
from cogvx_jax.finishing.options import Delivery, Finish
from cogvx_jax.finishing.scene import SmallCopy
from cogvx_jax.finishing.source import warn_of_missing
from cogvx_jax.finishing.stream import Job, as_bytes, finished_pictures, open_job
from cogvx_jax.pipelines.provenance import device, versions
from cogvx_jax.pipelines.record import parse_record
from cogvx_jax.temporaries import carry_parts, hidden_folder, is_kept, keep_parts, temporary_folder, written_place


def finish(video: Any, *, source_fps: float | Fraction | None = None, **options: Any) -> Video:
    """A video with larger pictures, more frames, or both.

        cx.finish(video, scale=2, fps=32).save("out.mp4")

    Args:
      video: a `Video` of one clip, a path, frames (F, H, W, 3) uint8, or an iterable of such.
      source_fps: the rate of frames, or another than the video says.
      options: those of `Finish`.
    Raises: ValueError for options that cannot be; FileNotFoundError, also for weights that are not installed.
    """
    return finish_with(video, Finish(**options), source_fps)


def finish_with(video: Any, asked: Finish, source_fps: float | Fraction | None = None) -> Video:
    """`finish` by checked options."""
    comment = comment_of(video)
    with open_job(video, asked, source_fps, even=False) as job, contextlib.closing(finished_pictures(job)) as pictures:
        frames = np.stack([as_bytes(picture) for picture in pictures])
        return Video(frames[None], job.rate, (recorded(comment, _step(job)),))


class FinishedStream:
    """The frames of a finished video as they are made, (1, H, W, 3) uint8 each; `close` ends it early.

    Attributes:
      fps: exact.
      height, width: of the frames.
      count: how many there will be; None where that is not known.
      estimate: what is to be done, in words.
    """

    def __init__(self, video: Any, options: Finish, source_fps: float | Fraction | None):
        with contextlib.ExitStack() as stack:
            job = stack.enter_context(open_job(video, options, source_fps, even=False))
            pictures = stack.enter_context(contextlib.closing(finished_pictures(job)))
            self._stack = stack.pop_all()
        self.fps, self.count, self.estimate = job.rate, job.count, job.estimate
        self.height, self.width = job.geometry.final
        self._frames = (as_bytes(picture)[None] for picture in pictures)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        try:
            return next(self._frames)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._stack.close()


def finish_stream(video: Any, *, source_fps: float | Fraction | None = None, **options: Any) -> FinishedStream:
    """As `finish`, a frame after the other: memory does not grow with the video.

    for frames in cx.finish_stream(chunks, source_fps=8, scale=2, fps=32):  # chunks as they are decoded
        writer.write(frames)
    """
    return FinishedStream(video, Finish(**options), source_fps)


def _nothing(*_: Any) -> None:
    pass


class Finished(NamedTuple):
    """What was written; `problem` is of the sound of frames that were made: the file is whole, and has none."""

    frames: int
    height: int
    width: int
    fps: Fraction
    problem: Exception | None = None


class Coming(NamedTuple):
    """Frames that are made one after the other, (F', H, W, 3) uint8 at a time, and what a file would say of them.

    total: of the frames, where it is known.
    comment: that the video carries, such as its record.
    tags: texts of other programs, by name.
    """

    frames: Iterable[np.ndarray]
    fps: Fraction
    total: int | None = None
    comment: str | None = None
    tags: Mapping[str, str] | None = None


def finish_file(
    source: str | os.PathLike | Coming,
    out: str | os.PathLike,
    options: Finish | None = None,
    delivery: Delivery | None = None,
    *,
    on_job: Callable[[Job], None] = _nothing,
    on_resumed: Callable[[int], None] = _nothing,
    on_frame: Callable[[], None] = _nothing,
    beside: Callable[[np.ndarray], None] | None = None,
) -> Finished:
    """Finishes a file, or frames as they come, into a file: from floats, not bytes, where the codec has 10 bits.

    Of a run on a file that was killed, what was whole is taken over where all that decides about it is the same.
    Who makes sound is asked before any other work, but of frames as they come only once all of them are finished.

    Args:
      on_job: gets what is to be done once all is checked, before it begins.
      on_resumed: gets how many frames an earlier run made, if any.
      on_frame: is called after each frame.
      beside: gets each frame that this run makes, before it is written, too, (1, H, W, 3) uint8.
    Raises: what `finish` raises; OSError, which names `out`, if it cannot be written.
    """
    options, delivery = options or Finish(), delivery or Delivery()
    preset, track = check_delivery(source, out, delivery)
    coming = source if isinstance(source, Coming) else None
    comment = comment_of(source) if coming is None else coming.comment
    how: dict[str, Any] = {"even": preset is not None or Path(out).suffix != ""}
    how |= {} if coming is None else {"source_fps": coming.fps, "source_count": coming.total}
    with contextlib.ExitStack() as stack:
        copy = None
        if coming is not None and delivery.sound_from is not None:
            copy = SmallCopy(stack.enter_context(temporary_folder()) / "video.mp4", coming.fps)
            passing = stack.enter_context(contextlib.closing(copy.passing(coming.frames)))
            coming = coming._replace(frames=passing)
        job = stack.enter_context(open_job(source if coming is None else coming.frames, options, **how))
        if preset is not None:
            check_even(job.geometry.final, preset)
        on_job(job)
        step, tags = _step(job, delivery), None if coming is None else coming.tags
        asked = _asked(job, source, step, comment) if isinstance(source, str | os.PathLike) else None
        ending = _Ending(track, comment if delivery.record else None, step)
        if delivery.sound_from is not None:
            ending.make = stack.enter_context(made_track(source if copy is None else copy, job, delivery, comment))
            if copy is None:
                ending.make()
        count = _write(job, _File(out, preset, ending, tags), asked, on_resumed, on_frame, beside)
        warn_of_missing(source, job, count)
        problem = None
        if ending.problem is not None:
            problem = ValueError(f"{str(out)!r} is whole but for its sound: {ending.problem}")
        return Finished(count, *job.geometry.final, job.rate, problem)


@dataclasses.dataclass
class _Ending:
    """What is known of a file once its frames are there: its sound, and the text that tells of it.

    make: asks who makes the sound.
    problem: what came of that, once it was asked; the frames are not lost by it.
    """

    track: Track | None
    comment: str | None
    step: dict[str, Any]
    make: Making | None = None
    problem: Exception | None = None

    def __call__(self) -> tuple[Track | None, str | None]:
        made, told = self.track, dict[str, Any]()
        if self.make is not None:
            try:
                made, told = self.make()
            except (ValueError, OSError) as error:
                self.problem = error
        return made, recorded(self.comment, self.step | told)


def check_delivery(source: Any, out: Any, delivery: Delivery) -> tuple[Preset | None, Track | None]:
    """The preset of a file that has one, and the sound. Raises: ValueError; OSError for the place."""
    out = Path(out)
    if out.suffix.lower() not in CONTAINERS:
        said = {
            "codec": delivery.codec,
            "crf": delivery.crf,
            "audio": delivery.audio,
            "keep_sound": delivery.keep_sound,
            "sound_from": delivery.sound_from,
        }
        if wrong := next((name for name, value in said.items() if value is not None and value is not False), None):
            raise ValueError(f"{wrong} needs a file that ends in one of {', '.join(CONTAINERS)}, got {str(out)!r}")
        if "\0" not in str(out) and out.suffix.lower() not in {"", *FORMATS}:
            known = ", ".join(dict.fromkeys([*CONTAINERS, *FORMATS]))
            raise ValueError(f"{str(out)!r} must end in one of {known}; without a suffix it is a folder of PNGs")
        check_writable(out, commented=delivery.record)
        return None, None
    preset = preset_of(out, delivery.codec, delivery.crf)
    check_deliverable(out, preset)
    return preset, _track(source, delivery)


def _track(source: Any, delivery: Delivery) -> Track | None:
    """The sound, which can be decoded. Raises: FileNotFoundError; ValueError."""
    if delivery.keep_sound and isinstance(source, Coming):
        raise ValueError("frames that are made have no sound to keep; give audio")
    path = source if delivery.keep_sound else delivery.audio
    if path is None:
        return None
    check_sound(path)
    lag = sound_lag(path) if delivery.keep_sound else 0.0
    return Track(path=path, loop=delivery.loop, fade=delivery.fade, loudness=delivery.loudness, lag=lag)


class _File(NamedTuple):
    """What is written: with `preset` by its codec, else as by `Video.save`."""

    path: Any
    preset: Preset | None
    ending: _Ending
    tags: Mapping[str, str] | None


def _write(
    job: Job,
    file: _File,
    asked: str | None,
    on_resumed: Callable[[int], None],
    on_frame: Callable[[], None],
    beside: Callable[[np.ndarray], None] | None,
) -> int:
    """How many frames were written. A thread makes them while this one encodes.

    Args:
      asked: what a killed run must have been asked, too, for its fragments to be taken over; None: nothing is kept.
    """
    final = written_place(file.path)
    with _folder_of_parts(file.path, final) as folder:
        fragments = _fragments(job, folder, file, final)
        keep = _nothing if asked is None else functools.partial(keep_parts, folder, final, asked)
        if asked is not None:
            carry_parts(folder, final, asked)
        if whole := fragments.whole():
            keep()
            on_resumed(fragments.cutting.first(whole))

        def prepared(picture: Any) -> tuple[Any, np.ndarray | None]:
            return fragments.prepare(picture), None if beside is None else as_bytes(picture)[None]

        pictures = finished_pictures(job, whole * fragments.cutting.span)
        with contextlib.closing(pictures), ahead(map(prepared, pictures)) as made:
            count = write_fragments(fragments, _shown(made, beside), keep, on_frame)
        fragments.join(count)
    return count


def _shown(made: Iterator[tuple[Any, np.ndarray | None]], beside: Callable[[np.ndarray], None] | None) -> Iterator[Any]:
    for picture, frame in made:
        if beside is not None and frame is not None:
            beside(frame)
        yield picture


def _fragments(job: Job, folder: Path, file: _File, final: Path) -> Fragments:
    rates = job.source.fps, job.rate
    if file.preset is None:
        return PictureFragments(folder, file.path, final, rates, file.ending()[1], file.tags)
    return EncodedFragments(folder, file.path, file.preset, job.geometry.final, rates, file.ending, file.tags)


def _asked(job: Job, source: str | os.PathLike, step: dict[str, Any], comment: str | None) -> str:
    """All that decides about the frames: the source's bytes, what is done to them, by which weights and where."""
    return json.dumps([file_sha256(Path(source)), str(job.source.fps), step, _device(job), comment])


def _device(job: Job) -> dict[str, Any]:
    return device(1 if job.mesh is None else job.mesh.size)


@contextlib.contextmanager
def _folder_of_parts(out: Any, final: Path) -> Iterator[Path]:
    """Raises: OSError that names `out`; it says so where not all is lost."""
    folder = None
    try:
        with hidden_folder(final.parent) as folder:
            yield folder
    except (OSError, av.FFmpegError) as error:
        said = str(getattr(error, "strerror", None) or error)
        said = said if said.startswith(repr(str(out))) else f"{str(out)!r} could not be written: {said}"
        if folder is not None and is_kept(folder):
            said += "; what is whole stays for a day, and the same command goes on after it"
        raise OSError(said) from error


def comment_of(video: Any) -> str | None:
    """The text that a video carries; None where there is none."""
    if isinstance(video, Video):
        return video.records[0]
    if isinstance(video, str | os.PathLike):
        with contextlib.suppress(ValueError, FileNotFoundError):  # who opens the video says what is wrong
            return read_tags(video).comment
    return None


def recorded(comment: str | None, step: dict[str, Any]) -> str | None:
    """The text of the finished video: a record with the step added; another text as it is."""
    if comment is None:
        return None
    try:
        record = parse_record(comment)
    except ValueError:
        return comment
    return dataclasses.replace(record, finished=(*record.finished, json.loads(json.dumps(step)))).text


def _step(job: Job, delivery: Delivery | None = None) -> dict[str, Any]:
    networks = {"upscaler": job.upscaler, "interpolator": job.interpolator}
    file = {} if delivery is None else {k: v for k, v in vars(delivery).items() if v not in (None, False, 0.0, True)}
    file = {key: value for key, value in file.items() if not key.startswith("sound_")}  # the step tells of it itself
    return {
        "options": job.options.as_json,
        "file": {key: str(value) if isinstance(value, os.PathLike) else value for key, value in file.items()},
        "weights": {name: loaded.sha256 for name, loaded in networks.items() if loaded is not None},
        "versions": versions(),
    }
