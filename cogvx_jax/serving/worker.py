"""A worker: takes jobs from the queue one after the other, or some that are alike, and has a maker make their videos.

A thread renews the lease. The loop of sampling steps cannot: it stands still while a step compiles.
"""

import contextlib
import dataclasses
import errno
import functools
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cogvx_jax.serving.jobs import Job
from cogvx_jax.serving.queue import LEASE, Queue
from cogvx_jax.serving.store import Store, Unreachable, live_of

POLL = 0.5  # seconds between two looks at an empty queue
TELL = 0.25  # seconds between two notes of progress
SEEN = 5.0  # seconds between two signs of life
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
WAIT = 60.0  # seconds until a job that found the disk full is tried again
BUG = "the server made a mistake with this video; its log says which"


class Stopped(Exception):
    """The job is not to be made on."""

    ENDING, LOST = "this worker ends", "it was cancelled, deleted or taken over"


class Lost(Exception):
    """Another process that makes the job with this one has ended, so this one ends, too."""


class Progress:
    """What a maker tells while it works, and by which it is told to stop.

    shown: what the APIs answer beside what they know; a maker adds to it.
    keep: gives other machines a file that is to outlive this worker.
    """

    def __init__(self) -> None:
        self.shown: dict[str, Any] = {}
        self.keep: Callable[[Path], None] = lambda file: None
        self.why: str | None = None  # it is to stop
        self._lock, self._new = threading.Lock(), dict[str, Any]()

    def tell(self, **columns: Any) -> None:
        """Notes `stage`, `step`, `steps` or `preview`. Raises: Stopped."""
        with self._lock:
            self._new |= columns
        self.check()

    def check(self) -> None:
        """Raises: Stopped where the job is not to be made on."""
        if self.why is not None:
            raise Stopped(self.why)

    def look(self) -> None:
        """As `check`, where only one of the processes that make a job comes by: then it does nothing."""
        self.check()

    def same(self, value: bool) -> bool:
        """What the first of several processes that make a job decides, in all of them; here there is one."""
        return value

    def all(self, value: bool) -> bool:
        """Whether it is true in all processes that make a job."""
        return value

    @contextlib.contextmanager
    def beginning(self) -> Iterator[None]:
        """Around what may fail in one process alone: where it does, it raises in all of them."""
        yield

    def stop(self, why: str) -> None:
        """From any thread: lets the next `tell` or `check` raise."""
        self.why = self.why or why

    def take(self) -> dict[str, Any]:
        """What was told since the last time."""
        with self._lock:
            new, self._new = self._new, {}
        return new


@dataclasses.dataclass(eq=False)
class Task:
    """A job that a worker has, with its folder and the file to write.

    began, beaten: when it was taken, and when its lease was renewed last, by `time.monotonic`.
    """

    job: Job
    folder: Path
    out: Path
    progress: Progress
    began: float
    beaten: float


# (job, its folder, the file to write, progress): makes the video, which appears under its name only when whole.
Make = Callable[[Job, Path, Path, Progress], None]
# Makes several jobs that are alike, and gives each as it ends, with the error that ended it, or None.
Several = Callable[[Sequence[Task]], Iterator[tuple[Task, Exception | None]]]
Describe = Callable[[BaseException], str | None]  # an error as a sentence; None for one of this program


def new_name() -> str:
    """A worker's name, which no other process has."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


class Worker:
    """Makes the jobs of one model.

    Args:
      several: makes jobs that are alike together.
      at_a_time: how many those are at most.
      describe: errors as sentences for the user.
      lease: seconds after which another worker may take over, if this one is not heard of.
      report: gets a line for the log.
      progress: of a new job.
    """

    def __init__(
        self,
        queue: Queue,
        store: Store,
        make: Make,
        *,
        model: str,
        several: Several | None = None,
        at_a_time: int = 1,
        describe: Describe = lambda error: str(error) if isinstance(error, ValueError | OSError) else None,
        name: str | None = None,
        lease: float = LEASE,
        report: Callable[[str], None] = lambda line: None,
        progress: Callable[[], Progress] = Progress,
    ):
        self._queue, self._store, self._make, self._model = queue, store, make, model
        self._several, self._at_a_time = several, at_a_time
        self._describe, self._lease, self._report = describe, lease, report
        self._progress = progress
        self.name = name or new_name()
        self._ending = threading.Event()
        self._held: tuple[Task, ...] = ()  # replaced as a whole, as another thread reads it

    def end(self) -> None:
        """From any thread: the jobs at hand are given back after their step, and no other is taken."""
        self._ending.set()
        for task in self._held:
            task.progress.stop(Stopped.ENDING)

    def run(self, *, until_idle: bool = False) -> None:
        """Works until `end` is called; with `until_idle`, until no job waits. Raises: Lost."""
        pulse = threading.Thread(target=self._pulse, name="pulse", daemon=True)
        pulse.start()
        try:
            while not self._ending.is_set():
                if not self._turn():
                    if until_idle:
                        break
                    self._ending.wait(POLL)
        finally:
            self._ending.set()
            pulse.join(SEEN)
            _quietly(lambda: self._queue.gone(self.name))

    def _turn(self) -> bool:
        """Makes a job, or several that are alike. False where there is none to be had."""
        try:
            job = self._queue.claim(self.name, self._model, self._lease)
        except OSError as error:
            self._report(f"the queue gives no job now: {error}")
            return False
        if job is None:
            return False
        self._held = (self._task(job),)
        if self._several is not None:
            try:
                self._held += tuple(map(self._task, self._queue.claim_like(job, self._at_a_time - 1, self._lease)))
            except OSError as error:  # one is had
                self._report(f"the queue gives no further job now: {error}")
        if self._ending.is_set():
            self.end()
        try:
            self._work(self._held)
        except Lost:  # perhaps because of this job, so the attempt counts
            _quietly(lambda: self._queue.died(self.name))
            raise
        except BaseException:  # Ctrl-C
            for task in self._held:
                _quietly(functools.partial(self._queue.give_back, task.job))
            raise
        finally:
            self._held = ()
        return True

    def _task(self, job: Job) -> Task:
        folder, now, progress = self._store.folder_of(job.id), time.monotonic(), self._progress()
        progress.keep = functools.partial(self._store.keep, job.id)
        return Task(job, folder, folder / job.file, progress, now, now)

    def _work(self, tasks: Sequence[Task]) -> None:
        """Makes what was taken, and says of each job in the queue what came of it."""
        ready = []
        for task in tasks:
            try:
                self._store.bring(task.job.id, task.job.inputs)
            except OSError as error:
                self._settle(task, error)
            else:
                ready.append(task)
        if len(ready) > 1 and self._several is not None:
            self._report(f"{len(ready)} jobs are alike and are made together")
            self._together(self._several, ready)
        else:
            for task in ready:
                self._settle(task, self._one(task))

    def _together(self, several: Several, tasks: Sequence[Task]) -> None:
        try:
            for task, error in several(tasks):
                self._settle(task, error)
        except Exception as error:  # of this program
            for task in self._held:
                self._settle(task, error)

    def _one(self, task: Task) -> Exception | None:
        """Makes one job; gives the error that ended it. Raises: Lost."""
        try:
            task.progress.tell(stage="starting")
            self._make(task.job, task.folder, task.out, task.progress)
        except Lost:
            task.out.unlink(missing_ok=True)
            raise
        except Exception as error:
            return error
        return None

    def _settle(self, task: Task, error: Exception | None) -> None:
        """Says in the queue what came of a job, which this worker has no longer then."""
        try:
            if (error := error or self._kept(task)) is None:
                self._completed(task)
            else:
                task.out.unlink(missing_ok=True)
                self._ended(task.job, error)
        except OSError as unavailable:  # of the queue: whoever has the job when the lease ends makes it
            self._report(f"{task.job.id}: {unavailable}")
        self._held = tuple(other for other in self._held if other is not task)
        self._store.forget()

    def _kept(self, task: Task) -> Exception | None:
        """Lets all machines have the video, before the row says that it is there; gives the error that ended that."""
        try:
            self._store.keep(task.job.id, task.out)
        except OSError as error:
            return error
        return None

    def _ended(self, job: Job, error: Exception) -> None:
        if isinstance(error, Stopped):
            self._report(f"{job.id}: stopped, {error}")
            self._queue.give_back(job)  # which changes nothing where it is not ours any more
        else:
            self._failed(job, error)

    def _failed(self, job: Job, error: Exception) -> None:
        if is_full(error) or isinstance(error, Unreachable):
            self._report(f"{job.id}: {error}; it is tried again in {WAIT:g} s")
            why = "the disk is full" if is_full(error) else "the bucket cannot be reached"
            self._queue.give_back(job, wait=WAIT, stage=f"waiting: {why}")
            return
        said = self._describe(error)
        if said is None:
            self._report(f"{job.id}: {''.join(traceback.format_exception(error))}")
        else:
            self._report(f"{job.id}: {said}")
        self._queue.fail(job, "server_error" if said is None else "generation_failed", said or BUG)

    def _completed(self, task: Task) -> None:
        job, out, seconds = task.job, task.out, time.monotonic() - task.began
        known = [*job.inputs, out.name]
        shown: Mapping[str, Any] = task.progress.shown | {"inference_time_s": round(seconds, 3)}
        self._queue.beat(job, self._lease, **task.progress.take())
        if self._queue.complete(job, result=out.name, size=self._store.size(job.id), told=shown):
            self._store.keep_only(job.id, known)
            self._report(f"{job.id}: made in {seconds:.1f} s")
        else:
            self._report(f"{job.id}: made, but another worker had it by then, or it was cancelled")
            for file in (out, live_of(out)):
                self._store.drop(job.id, file.name)

    def _pulse(self) -> None:
        """Renews the leases, tells of progress, and shows that this worker lives."""
        seen = 0.0
        while True:
            now, held = time.monotonic(), self._held
            for task in held:
                new = task.progress.take()
                if (new or now - task.beaten > self._lease / 4) and self._beat(task, new):
                    task.beaten = now
            if now - seen > SEEN:
                seen = now
                self._show(held)
            if self._ending.is_set() and not self._held:
                return
            time.sleep(min(TELL, self._lease / 8))

    def _beat(self, task: Task, new: dict[str, Any]) -> bool:
        try:
            if not self._queue.beat(task.job, self._lease, **new) and task in self._held:
                task.progress.stop(Stopped.LOST)
            return True
        except OSError as error:
            self._report(f"{task.job.id}: {error}")
            return False

    def _show(self, held: Sequence[Task]) -> None:
        _quietly(lambda: self._queue.seen(self.name, self._model, "working" if held else "idle"))
        for task in held:
            self._store.used(task.job.id)


def is_full(error: BaseException | None) -> bool:
    """Whether a disk without room is what caused an error."""
    seen: list[BaseException] = []  # causes and contexts together may go in a circle
    left = [error]
    while left:
        one = left.pop()
        if one is None or any(one is other for other in seen):
            continue
        if getattr(one, "errno", None) in FULL:
            return True
        seen.append(one)
        left += [one.__cause__, one.__context__]
    return False


def _quietly(call: Callable[[], Any]) -> None:
    """Calls what may fail, as where the database is gone, and is not worth ending for."""
    try:
        call()
    except OSError as error:
        print(f"cogvx: {error}", file=sys.stderr)
