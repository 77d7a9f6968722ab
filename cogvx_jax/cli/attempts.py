"""How several videos are made: what an error in one does, which are left out, and what they carry."""

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from cogvx_jax.cli.errors import sentence
from cogvx_jax.cli.prompts_file import Job

if TYPE_CHECKING:
    from cogvx_jax.pipelines.record import Record


class HasJob(Protocol):
    @property
    def job(self) -> Job: ...


One = TypeVar("One", bound=HasJob)


class Attempts:
    """Of a command that the first error ends."""

    @contextlib.contextmanager
    def at(self, job: Job) -> Iterator[None]:
        """Inside, an error is of that video."""
        with job.named():
            yield

    def left(self, work: Sequence[One]) -> list[One]:
        """The videos that may still be made."""
        return list(work)


class NotedAttempts(Attempts):
    """Of a command that goes on after an error.

    Args:
      note: called with each line that fails, its video where it is known, and what is wrong.
    """

    def __init__(self, note: Callable[[str, Job | None, str], None]):
        self.failed: dict[str, str] = {}  # line -> what is wrong
        self._note = note

    @contextlib.contextmanager
    def at(self, job: Job) -> Iterator[None]:
        with self.at_line(job.line, job):
            yield

    @contextlib.contextmanager
    def at_line(self, line: str, job: Job | None = None) -> Iterator[None]:
        """Inside, an error is of that line, of which there may be no job yet."""
        try:
            yield
        except Exception as error:
            said = sentence(error)
            if said is None:  # of this program; the other lines may do without what is wrong
                traceback.print_exc()
                said = f"{type(error).__name__}: {error}"
            said = said.removeprefix(f"{line}: ")
            self.failed[line] = said
            self._note(line, job, said)
            print(f"cogvx: {line}: {said}", file=sys.stderr, flush=True)

    def left(self, work: Sequence[One]) -> list[One]:
        return [one for one in work if one.job.line not in self.failed]

    def left_of(self, jobs: Sequence[Job]) -> list[Job]:
        return [job for job in jobs if job.line not in self.failed]


class Plan(NamedTuple):
    """How videos are made one after the other, beside the flags.

    skip_made: leave those that an earlier run made, and note those that this one makes.
    attempts: what an error in one of them does.
    record_as: gives the record to write for the one that a video has, or raises; see `cogvx replay`.
    tags: texts of other programs that the videos carry, by name.
    """

    skip_made: bool = False
    attempts: Attempts = Attempts()
    record_as: Callable[["Record"], "Record"] = lambda record: record
    tags: Mapping[str, str] | None = None
