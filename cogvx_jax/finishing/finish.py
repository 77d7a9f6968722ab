"""A video finished: in memory, as a stream of frames, or from file to file with sound and record."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cogvx_jax.data.comments import read_tags
from cogvx_jax.data.delivery import CONTAINERS, DeliveryWriter, Preset, check_deliverable, check_even, preset_of
from cogvx_jax.data.sound import Track, check_sound
from cogvx_jax.data.video import Video
from cogvx_jax.data.writer import VideoWriter, check_writable
from cogvx_jax.finishing.ahead import ahead
from cogvx_jax.finishing.colour import planes_program
from cogvx_jax.finishing.options import Delivery, Finish
from cogvx_jax.finishing.stream import Job, as_bytes, finished_pictures, open_job
from cogvx_jax.pipelines.provenance import versions
from cogvx_jax.pipelines.record import parse_record


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


class Finished(NamedTuple):
    """What was written."""

    frames: int
    height: int
    width: int
    fps: Fraction


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
    on_job: Callable[[Job], None] | None = None,
    on_frame: Callable[[], None] | None = None,
    beside: Callable[[np.ndarray], None] | None = None,
) -> Finished:
    """Finishes a file, or frames as they come, into a file: from floats, not bytes, where the codec has 10 bits.

    Args:
      on_job: gets what is to be done once all is checked, before it begins.
      on_frame: is called after each frame.
      beside: gets each frame before that, too, (1, H, W, 3) uint8.
    Raises: what `finish` raises; OSError, which names `out`, if it cannot be written.
    """
    options, delivery = options or Finish(), delivery or Delivery()
    preset, track = check_delivery(source, out, delivery)
    coming = source if isinstance(source, Coming) else None
    comment = comment_of(source) if coming is None else coming.comment
    how: dict[str, Any] = {"even": preset is not None or Path(out).suffix != ""}
    how |= {} if coming is None else {"source_fps": coming.fps, "source_count": coming.total}
    with open_job(source if coming is None else coming.frames, options, **how) as job:
        if preset is not None:
            check_even(job.geometry.final, preset)
        if on_job is not None:
            on_job(job)
        text = recorded(comment, _step(job, delivery)) if delivery.record else None
        tags = None if coming is None else coming.tags
        count = _write(job, _File(out, preset, track, text, tags), on_frame, beside)
        return Finished(count, *job.geometry.final, job.rate)


def check_delivery(source: Any, out: Any, delivery: Delivery) -> tuple[Preset | None, Track | None]:
    """The preset of a file that has one, and the sound. Raises: ValueError; OSError for the place."""
    out = Path(out)
    if out.suffix.lower() not in CONTAINERS:
        said = {
            "codec": delivery.codec,
            "crf": delivery.crf,
            "audio": delivery.audio,
            "keep_sound": delivery.keep_sound,
        }
        if wrong := next((name for name, value in said.items() if value is not None and value is not False), None):
            raise ValueError(f"{wrong} needs a file that ends in one of {', '.join(CONTAINERS)}, got {str(out)!r}")
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
    track = Track(path=path, loop=delivery.loop, fade=delivery.fade, loudness=delivery.loudness)
    check_sound(path)
    return track


class _File(NamedTuple):
    """What is written: with `preset` by its codec, else as by `Video.save`."""

    path: Any
    preset: Preset | None
    track: Track | None
    comment: str | None
    tags: Mapping[str, str] | None


def _write(
    job: Job, file: _File, on_frame: Callable[[], None] | None, beside: Callable[[np.ndarray], None] | None
) -> int:
    """How many frames were written. A thread makes them while this one encodes."""
    count, preset = 0, file.preset
    program = None if preset is None else planes_program(preset.bits, preset.shrink)

    def encodable(picture: Any) -> tuple[Any, np.ndarray | None]:
        """What the writer takes, and the bytes where somebody wants them."""
        frame = as_bytes(picture)[None] if program is None or beside is not None else None
        return frame if program is None else [np.asarray(plane) for plane in program(picture)], frame

    with contextlib.ExitStack() as stack:
        pictures = stack.enter_context(contextlib.closing(finished_pictures(job)))
        writer: Any = stack.enter_context(_writer(job, file))
        for planes, frame in stack.enter_context(ahead(map(encodable, pictures))):
            writer.write(planes)
            if beside is not None and frame is not None:
                beside(frame)
            count += 1
            if on_frame is not None:
                on_frame()
    return count


def _writer(job: Job, file: _File) -> Any:
    if file.preset is None:
        return VideoWriter(file.path, job.rate, file.comment, tags=file.tags)
    how: dict[str, Any] = dict(track=file.track, comment=file.comment, tags=file.tags)
    return DeliveryWriter(file.path, file.preset, job.rate, job.geometry.final, **how)


def comment_of(video: Any) -> str | None:
    """The text that a video carries; None where there is none."""
    if isinstance(video, Video):
        return video.records[0]
    if isinstance(video, str | os.PathLike):
        with contextlib.suppress(ValueError):
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
    return {
        "options": job.options.as_json,
        "file": {key: str(value) if isinstance(value, os.PathLike) else value for key, value in file.items()},
        "weights": {name: loaded.sha256 for name, loaded in networks.items() if loaded is not None},
        "versions": versions(),
    }
