"""The verb `cogvx batch`."""

import contextlib
import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Annotated

import tyro

from cogvx_jax.cli.attempts import NotedAttempts, Plan
from cogvx_jax.cli.generate import make_videos
from cogvx_jax.cli.options import GenerateFlags, GivenFlags, ModelFlags, RunFlags, VideoFlags, report
from cogvx_jax.cli.prompts_file import Asked, Job, Targets, parse_line, prompt_lines
from cogvx_jax.pipelines.option_json import as_json
from cogvx_jax.pipelines.options import Options

FAILED = "cogvx-failed.jsonl"  # in the folder of the videos: what failed in the newest run


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchFlags(RunFlags):
    """How videos are made, whatever they show.

    Args:
      out: a folder for the videos, which is made where it is not there.
      again: make all videos anew, also those that are there and whole.
    """

    out: Path = Path("videos")
    again: bool = False


def batch(
    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="JOBS.jsonl")],
    /,
    *,
    run: Annotated[BatchFlags, tyro.conf.OmitArgPrefixes] = BatchFlags(),  # noqa: B008
    video: Annotated[VideoFlags, tyro.conf.OmitArgPrefixes] = VideoFlags(),  # noqa: B008
    given: ModelFlags = GivenFlags(),  # noqa: B008
) -> None:
    """Makes the videos of a prompts file: a line that fails does not stop the others, a rerun makes what is missing.

    A video is named after its prompt and a hash of what its line asks for, so lines may move. The exit status is 2
    where a line failed; cogvx-failed.jsonl beside the videos names each.

    Args:
      file: one prompt per line, or one JSON object, as of `generate --prompts-file`; an "out" lies in the folder.
    """
    lines, failed = prompt_lines(file), run.out / FAILED
    if run.out.exists() and not run.out.is_dir():
        raise NotADirectoryError(f"{run.out} is a file; give a folder for the videos")
    run.out.mkdir(parents=True, exist_ok=True)
    failed.unlink(missing_ok=True)
    attempts = NotedAttempts(lambda line, job, said: _note(failed, line, job, said))
    jobs = _jobs(lines, run.out, video.checked(), attempts)
    made = make_videos(jobs, GenerateFlags(**vars(run)), given.checked(), Plan(skip_made=True, attempts=attempts))
    count = len(attempts.failed)
    whole = len(attempts.left_of(jobs)) - len(made)
    print(f"{run.out}: {len(made)} made, {whole} whole already, {count} of {len(lines)} lines failed")
    if count:
        raise ValueError(f"{count} of {len(lines)} lines of {file} failed, see {failed}; the same command tries again")


def _jobs(lines: list[tuple[str, str]], folder: Path, options: Options, attempts: NotedAttempts) -> list[Job]:
    """The videos of the lines that can be read, those that two lines ask for once."""
    jobs, targets, seen = list[Job](), Targets(), dict[tuple[str, Path | None], str]()
    for line, text in lines:
        with attempts.at_line(line):
            asked = parse_line(text, options)
            key = identity(asked), asked.out
            if (first := seen.setdefault(key, line)) is not line:
                report(f"{line} asks for the same as {first}")
                continue
            if asked.out is not None:
                target = folder / asked.out
                if ".." not in target.parts and target.is_relative_to(folder):
                    target.parent.mkdir(parents=True, exist_ok=True)
                asked = asked._replace(out=target)
            job = asked.job(folder / f"{_slug(asked.prompt)}-{key[0][:12]}.mp4", line)
            targets.add(job)
            jobs.append(job)
    return jobs


def identity(asked: Asked) -> str:
    """A hash of what a line asks for: its prompt and all options, whatever their order, whichever its line."""
    whole = {"prompt": asked.prompt, "options": as_json(asked.options)}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _slug(prompt: str) -> str:
    return re.sub("[^a-z0-9]+", "-", prompt.lower())[:40].strip("-") or "video"


def _note(file: Path, line: str, job: Job | None, said: str) -> None:
    """Adds a line that failed to the file of those; that it cannot be written must not stop the others."""
    entry = {"line": line, "video": None if job is None else str(job.out), "error": said}
    with contextlib.suppress(OSError), file.open("ab") as opened:
        opened.write(f"{json.dumps(entry)}\n".encode())
