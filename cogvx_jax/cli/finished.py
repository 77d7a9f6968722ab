"""Videos of `cogvx generate --finish`: frames go from the decoder into finishing, and from there into the file."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cogvx_jax.cli.options import report
from cogvx_jax.convert.commands import command, path_word

if TYPE_CHECKING:
    from cogvx_jax.finishing.stream import Job
    from cogvx_jax.pipelines.request import Request

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.


class Written(NamedTuple):
    """What was written; `problem` ended finishing: the video has no sound, or is one of another name, as before."""

    frames: int
    height: int
    width: int
    fps: Fraction
    problem: Exception | None = None


def with_sound(request: "Request", maker: str | None, prompt: str) -> "Request":
    """The request of a video that gets sound, from its prompt and its seed. Raises: ValueError for no such maker."""
    from cogvx_jax.finishing.asked import Finishing

    if maker is None:
        return request
    finish = (request.finish or Finishing()).heard(maker, prompt, request.seed)
    return dataclasses.replace(request, finish=finish)


def check_finished(out: Path, request: "Request") -> None:
    """Checks that a finished video can be written. Raises: ValueError; OSError for the place."""
    from cogvx_jax.data.delivery import check_even
    from cogvx_jax.data.writer import check_writable
    from cogvx_jax.finishing.finish import Coming, check_delivery
    from cogvx_jax.finishing.spare import spare_place

    finish = request.finish
    assert finish is not None
    preset, _ = check_delivery(Coming((), request.fps), out, finish.file)
    size = finish.geometry(request.height, request.width, even=preset is not None or out.suffix != "").final
    if preset is not None:
        check_even(size, preset)
    check_writable(spare_place(out))


def write_finished(
    request: "Request",
    frames: Iterable[Any],
    out: Path,
    record: str | None,
    tags: Mapping[str, str] | None,
    *,
    progress: bool,
) -> Written:
    """Finishes frames as they come into the first process's file; memory does not grow with the video.

    Where finishing fails the video as it was is written beside, and `problem` says so.
    """
    from tqdm.auto import tqdm

    from cogvx_jax.finishing.finish import Coming, finish_file
    from cogvx_jax.finishing.spare import Spared, unfinished, with_spare
    from cogvx_jax.sharding import first_process

    finish = request.finish
    assert finish is not None
    if not first_process():
        for _ in frames:  # which all processes decode together
            pass
        return Written(0, 0, 0, request.fps)
    bar = tqdm(disable=not progress, unit="frame", desc="finish")

    def begin(job: "Job") -> None:
        report(f"{out}: {job.estimate}")
        bar.reset(job.count)

    def finished(passing: Iterator[Any]) -> Written:
        coming = Coming(passing, request.fps, request.finished or request.frames, record, tags)
        delivery = dataclasses.replace(finish.file, record=record is not None)
        return Written(*finish_file(coming, out, finish.pictures, delivery, on_job=begin, on_frame=bar.update))

    try:
        with bar:
            return with_spare(finished, iter(frames), out, request.fps, unfinished(record), tags)
    except Spared as spared:
        words = {name: str(value).lower() if value is True else str(value) for name, value in finish.as_json.items()}
        flags = [word for name, value in words.items() for word in _flag(name, value)]
        again = command("finish", path_word(spared.place), *flags, "--out", path_word(out))
        report(f"finishing failed, and {spared}: `{again}` finishes it")
        problem = spared.__cause__
        assert isinstance(problem, Exception)
        return Written(0, 0, 0, request.fps, problem)


def _flag(name: str, value: str) -> list[str]:
    flag = name.replace("_", "-")
    if value in ("true", "False"):
        return [f"--{flag}" if value == "true" else f"--no-{flag}"]
    return [f"--{flag}", value]
