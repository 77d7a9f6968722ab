"""The videos that `cogvx generate` is to make: one, or those of a prompts file."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cogvx_jax.data.text_lines import parse_json, read_lines
from cogvx_jax.pipelines.option_files import SOURCES, sources_of
from cogvx_jax.pipelines.options import DIFFUSERS_NAMES, INPUTS, PYTHON_ONLY, Options, check_path, perhaps
from cogvx_jax.temporaries import check_local

OPTIONS = [field.name for field in dataclasses.fields(Options) if field.name not in PYTHON_ONLY]


SIDES = dict.fromkeys(("height", "width"), "size")  # of Python's keywords
BOARD = "board"  # a field that `cogvx eval prepare` writes and reads; it says nothing of how the video is made
MAX_NAME = 220  # bytes of a video's name: that of its latents is longer, and file systems end at 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One video to make: a line of a prompts file, or the command line itself."""

    prompt: str
    out: Path
    options: Options
    line: str = ""  # "FILE, line N"; nothing for the command line
    batch: tuple[str, ...] = ()  # prompts of all videos that it is made together with; none: it is made alone
    index: int = 0  # of it among these
    wish: str = ""  # what a language model made the prompt of; nothing: the prompt is as it was given
    llm: str = ""  # the language model

    @property
    def together(self) -> list[str]:
        """The prompts of the request."""
        return list(self.batch or (self.prompt,))

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
    jobs, targets = list[Job](), Targets()
    for line, text in prompt_lines(file):
        with naming(line):
            asked = parse_line(text, options)
            jobs.append(asked.job(out.with_stem(f"{out.stem}-{len(jobs)}"), line))
    for job in jobs:
        with job.named():
            targets.add(job)
    return jobs


def prompt_lines(file: Path) -> list[tuple[str, str]]:
    """The lines of a prompts file that hold something, each with its name for messages, "FILE, line N".

    Raises: FileNotFoundError; ValueError for what is no text, or holds no prompt.
    """
    check_local(file, "a prompts file")
    lines = [(f"{file}, line {number}", text.strip()) for number, text in enumerate(read_lines(file), 1)]
    if not any(text for _, text in lines):
        raise ValueError(f"{file} holds no prompt")
    return [(line, text) for line, text in lines if text]


class Asked(NamedTuple):
    """What one line asks for."""

    prompt: str
    out: Path | None  # None: the line does not say where
    options: Options

    def job(self, target: Path, line: str) -> Job:
        """The video to make, at `target` where the line does not say where."""
        return Job(prompt=self.prompt, out=self.out or target, options=self.options, line=line)


def parse_line(text: str, options: Options) -> Asked:
    """What a line asks for: its text is the prompt, or it is a JSON object.

    Options have their names here or diffusers'.
    Raises: ValueError.
    """
    own: dict[str, Any] = parse_json(text, "this") if text.startswith("{") else {"prompt": text}
    for theirs, ours in DIFFUSERS_NAMES.items():
        if theirs in own and ours in own:
            raise ValueError(f"{theirs} says the same as {ours}; give one")
        if theirs in own:
            own[ours] = own.pop(theirs)
    own.pop(BOARD, None)
    _check_fields(own)
    prompt, out = own.pop("prompt"), own.pop("out", None)
    if not isinstance(prompt, str):
        raise ValueError(f"prompt must be text, got {json.dumps(prompt)[:60]}")
    for name in ("negative_prompt", *INPUTS):  # a line is one video, so no list
        if isinstance(own.get(name), list):
            raise ValueError(f"{name} must be text, got a list")
    target = None if out is None else Path(check_path("out", out))
    return Asked(prompt, target, dataclasses.replace(options, **own))


def _check_fields(own: Mapping[str, Any]) -> None:
    """Raises: ValueError for a line without a prompt, or with a field that is not known; it says which is near."""
    known = sorted(["prompt", "out", *OPTIONS])
    spare = sorted(own.keys() - set(known))
    if "prompt" in own and not spare:
        return
    said = ", ".join(spare[:20])[:200] or "no prompt"
    near = f" (meant is perhaps {SIDES[spare[0]]})" if spare and spare[0] in SIDES else perhaps(spare, known)
    raise ValueError(f"{said}{near}; a line has a prompt and any of {', '.join(known)}")


def _sources(options: Options) -> list[Any]:
    """The files that a video is made of."""
    return [source for name in SOURCES for source in sources_of(options, name)]


class Targets:
    """The files that videos are written to: no video may spoil another, or what another is made of."""

    def __init__(self) -> None:
        self._files: dict[str, Job] = {}
        self._above: dict[str, Job] = {}  # the folders in which they lie
        self._read: dict[str, Job] = {}

    def add(self, job: Job) -> None:
        """Raises: ValueError where it and an earlier one cannot both be made."""
        target = os.path.realpath(job.out)
        above = list(map(str, Path(target).parents))
        sources = {os.path.realpath(one): one for one in _sources(job.options) if isinstance(one, str | os.PathLike)}
        if len(os.fsencode(job.out.name)) > MAX_NAME:
            raise ValueError(f"the name {job.out.name[:40]}... is longer than {MAX_NAME} bytes")
        if (other := self._files.get(target)) is not None:
            raise ValueError(f'{job.out} is the video of {other.place}, too; give each an "out" of its own')
        if (folder := next((one for one in above if one in self._files), None)) is not None:
            raise ValueError(f"{job.out} lies in the folder that {self._files[folder].place} writes")
        if (other := self._above.get(target)) is not None:
            raise ValueError(f"{job.out} is the folder in which the video of {other.place} lies")
        if (source := next((one for one in sources if one in self._files), None)) is not None:
            writer = self._files[source].place
            raise ValueError(f"{writer} writes {sources[source]}; make that video in a run before this one")
        if (other := self._read.get(target)) is not None:
            raise ValueError(f"it writes {job.out}, of which {other.place} is made; make it in a run before this one")
        self._files[target] = job
        self._above |= dict.fromkeys(above, job)
        self._read |= dict.fromkeys(sources, job)
