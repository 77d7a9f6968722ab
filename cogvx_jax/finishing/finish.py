"""A video finished: in memory, as a stream of frames, or from file to file with sound and record."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cogvx_jax.data.comments import read_tags
from cogvx_jax.data.delivery import CONTAINERS, DeliveryWriter, Preset, check_deliverable, check_even, preset_of
from cogvx_jax.data.sound import Track, check_sound, sound_lag
from cogvx_jax.data.video import Video
from cogvx_jax.data.writer import FORMATS, VideoWriter, check_writable
from cogvx_jax.finishing.ahead import ahead
from cogvx_jax.finishing.colour import planes_program
from cogvx_jax.finishing.made_track import made_track
from cogvx_jax.finishing.options import Delivery, Finish
from cogvx_jax.finishing.source import warn_of_missing
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
    asked, comment = Finish(**options), _comment_of(video)
    with open_job(video, asked, source_fps, even=False) as job, contextlib.closing(finished_pictures(job)) as pictures:
        frames = np.stack([as_bytes(picture) for picture in pictures])
        return Video(frames[None], job.rate, (_recorded(comment, _step(job)),))


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


def finish_file(
    source: str | os.PathLike,
    out: str | os.PathLike,
    options: Finish | None = None,
    delivery: Delivery | None = None,
    *,
    on_job: Callable[[Job], None] | None = None,
    on_frame: Callable[[], None] | None = None,
) -> Finished:
    """Finishes a file into another: from floats, not bytes, where the codec has 10 bits.

    Args:
      on_job: gets what is to be done once all is checked, before it begins.
      on_frame: is called after each frame.
    Raises: what `finish` raises; OSError, which names `out`, if it cannot be written.
    """
    options, delivery = options or Finish(), delivery or Delivery()
    preset, track = _check(source, out, delivery)
    comment = _comment_of(source)
    with open_job(source, options, even=preset is not None or Path(out).suffix != "") as job:
        if preset is not None:
            check_even(job.geometry.final, preset)
        if on_job is not None:
            on_job(job)
        with made_track(source, job, delivery, comment) as (made, told):
            text = _recorded(comment, _step(job, delivery) | told) if delivery.record else None
            count = _write(job, out, preset, made or track, text, on_frame)
        warn_of_missing(source, job, count)
        return Finished(count, *job.geometry.final, job.rate)


def _check(source: Any, out: Any, delivery: Delivery) -> tuple[Preset | None, Track | None]:
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


def _track(source: str | os.PathLike, delivery: Delivery) -> Track | None:
    """The sound, which can be decoded. Raises: FileNotFoundError; ValueError."""
    path = source if delivery.keep_sound else delivery.audio
    if path is None:
        return None
    check_sound(path)
    lag = sound_lag(path) if delivery.keep_sound else 0.0
    return Track(path=path, loop=delivery.loop, fade=delivery.fade, loudness=delivery.loudness, lag=lag)


def _write(
    job: Job,
    out: Any,
    preset: Preset | None,
    track: Track | None,
    comment: str | None,
    on_frame: Callable[[], None] | None,
) -> int:
    """How many frames were written. A thread makes them while this one encodes."""
    count = 0
    with contextlib.ExitStack() as stack:
        pictures = stack.enter_context(contextlib.closing(finished_pictures(job)))
        if preset is None:
            made: Iterator[Any] = (as_bytes(picture)[None] for picture in pictures)
            writer: Any = VideoWriter(out, job.rate, comment)
        else:
            program = planes_program(preset.bits, preset.shrink)
            made = ([np.asarray(plane) for plane in program(picture)] for picture in pictures)
            writer = DeliveryWriter(out, preset, job.rate, job.geometry.final, track=track, comment=comment)
        stack.enter_context(writer)
        for frame in stack.enter_context(ahead(made)):
            writer.write(frame)
            count += 1
            if on_frame is not None:
                on_frame()
    return count


def _comment_of(video: Any) -> str | None:
    """The text that a video carries; None where there is none."""
    if isinstance(video, Video):
        return video.records[0]
    if isinstance(video, str | os.PathLike):
        with contextlib.suppress(ValueError, FileNotFoundError):  # who opens the video says what is wrong
            return read_tags(video).comment
    return None


def _recorded(comment: str | None, step: dict[str, Any]) -> str | None:
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
