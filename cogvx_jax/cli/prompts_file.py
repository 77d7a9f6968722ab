"""The videos that `cogvx generate` is to make: one, or those of a prompts file."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cogvx_jax.data.text_lines import parse_json, read_lines
from cogvx_jax.pipelines.options import INPUTS, PYTHON_ONLY, Options, check_path, control_sources
from cogvx_jax.temporaries import check_local

OPTIONS = [field.name for field in dataclasses.fields(Options) if field.name not in PYTHON_ONLY]


MAX_NAME = 220  # bytes of a video's name: that of its latents is longer, and file systems end at 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One video to make: a line of a prompts file, or the command line itself."""

    prompt: str
    out: Path
    options: Options
    line: str = ""  # "FILE, line N"; nothing for the command line

    @property
    def place(self) -> str:
        return self.line.rpartition(", ")[2]

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Inside, an error's sentence begins with the file and the line."""
        with naming(self.line):
            yield


@contextlib.contextmanager
def naming(line: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        if not line:
            raise
        kind = ValueError if isinstance(error, ValueError) else OSError
        raise kind(f"{line}: {error}") from error


def read_jobs(prompt: str | None, file: Path | None, out: Path, options: Options) -> list[Job]:
    """The videos to make: one for `prompt`, or one per line of `file`.

    Args:
      out: the file to write; its stem gets the number of the video for a line without an "out".
      options: of all lines, where they do not say otherwise.
    Raises: FileNotFoundError; ValueError, naming the line, for what cannot be read, for fields of another kind, and
      where one video would replace or spoil another.
    """
    if (prompt is None) == (file is None):
        raise ValueError("give either a prompt or --prompts-file")
    if file is None:
        assert prompt is not None
        return [Job(prompt=prompt, out=out, options=options)]
    check_local(file, "a prompts file")
    jobs: list[Job] = []
    for number, text in enumerate(read_lines(file), 1):
        if not text.strip():
            continue
        line, target = f"{file}, line {number}", out.with_stem(f"{out.stem}-{len(jobs)}")
        with naming(line):
            jobs.append(_job(text.strip(), target, options, line))
    if not jobs:
        raise ValueError(f"{file} holds no prompt")
    check_targets(jobs)
    return jobs


def _job(text: str, target: Path, options: Options, line: str) -> Job:
    """A video of one line: its prompt, or a JSON object."""
    own: dict[str, Any] = parse_json(text, "this") if text.startswith("{") else {"prompt": text}
    known = ["prompt", "out", *OPTIONS]
    if "prompt" not in own or not own.keys() <= set(known):
        spare = ", ".join(sorted(own.keys() - set(known))[:20]) or "no prompt"
        raise ValueError(f"{spare[:200]}; a line has a prompt and any of {', '.join(sorted(known))}")
    prompt, out = own.pop("prompt"), own.pop("out", str(target))
    if not isinstance(prompt, str):
        raise ValueError(f"prompt must be text, got {json.dumps(prompt)[:60]}")
    for name in ("negative_prompt", *INPUTS):  # a line is one video, so no list
        if isinstance(own.get(name), list):
            raise ValueError(f"{name} must be text, got a list")
    return Job(prompt=prompt, out=Path(check_path("out", out)), options=dataclasses.replace(options, **own), line=line)


def _sources(options: Options) -> list[Any]:
    """The files that a video is made of."""
    given = [getattr(options, name) for name in INPUTS if name != "control"] + control_sources(options)
    nets: Any = options.controlnet
    regions: Any = options.region
    given += [source for source, _ in nets]
    given += [region.place for region in regions if region.box is None]
    return [one for value in given for one in (value.values() if isinstance(value, dict) else [value])]


def check_targets(jobs: Sequence[Job]) -> None:
    """Raises: ValueError where a video would replace another, lie inside its folder, or replace another's input."""
    targets: dict[str, Job] = {}
    for job in jobs:
        if len(os.fsencode(job.out.name)) > MAX_NAME:
            raise ValueError(f"{job.line}: the name {job.out.name[:40]}... is longer than {MAX_NAME} bytes")
        other = targets.setdefault(os.path.realpath(job.out), job)
        if other is not job:
            raise ValueError(f'{job.line}: {job.out} is the video of {other.place}, too; give each an "out" of its own')
    for job in jobs:
        for folder in map(str, Path(os.path.realpath(job.out)).parents):
            if folder in targets:
                raise ValueError(f"{job.line}: {job.out} lies in the folder that {targets[folder].place} writes")
        for source in _sources(job.options):
            writer = targets.get(os.path.realpath(source)) if isinstance(source, str | os.PathLike) else None
            if writer is not None and writer is not job:
                raise ValueError(
                    f"{job.line}: {writer.place} writes {source}; make that video in a run before this one"
                )
