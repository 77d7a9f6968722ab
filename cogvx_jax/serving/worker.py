"""A worker: takes jobs from the queue one after the other, and has a maker make their videos.

A thread renews the lease. The loop of sampling steps cannot: it stands still while a step compiles.
"""

import contextlib
import errno
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cogvx_jax.serving.queue import LEASE, Job, Queue
from cogvx_jax.serving.store import Store, keep_only

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
    """

    def __init__(self) -> None:
        self.shown: dict[str, Any] = {}
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


# (job, its folder, the file to write, progress): makes the video, which appears under its name only when whole.
Make = Callable[[Job, Path, Path, Progress], None]
Describe = Callable[[BaseException], str | None]  # an error as a sentence; None for one of this program


def new_name() -> str:
    """A worker's name, which no other process has."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


class Worker:
    """Makes the jobs of one model.

    Args:
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
        describe: Describe = lambda error: str(error) if isinstance(error, ValueError | OSError) else None,
        name: str | None = None,
        lease: float = LEASE,
        report: Callable[[str], None] = lambda line: None,
        progress: Callable[[], Progress] = Progress,
    ):
        self._queue, self._store, self._make, self._model = queue, store, make, model
        self._describe, self._lease, self._report = describe, lease, report
        self._progress = progress
        self.name = name or new_name()
        self._ending = threading.Event()
        self._held: tuple[Job, Progress] | None = None

    def end(self) -> None:
        """From any thread: the job at hand is given back after its step, and no other is taken."""
        self._ending.set()
        if (held := self._held) is not None:
            held[1].stop(Stopped.ENDING)

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
        """Makes one job. False where there is none to be had."""
        try:
            job = self._queue.claim(self.name, self._model, self._lease)
        except OSError as error:
            self._report(f"the queue gives no job now: {error}")
            return False
        if job is None:
            return False
        progress, out = self._progress(), self._store.folder_of(job.id) / f"video-{job.attempts}.mp4"
        self._held = job, progress
        if self._ending.is_set():
            progress.stop(Stopped.ENDING)
        try:
            self._finish(job, out, progress)
        except OSError as error:  # of the queue: whoever has the job when the lease ends makes it
            self._report(f"{job.id}: {error}")
        except Lost:  # perhaps because of this job, so the attempt counts
            _quietly(lambda: self._queue.died(self.name))
            raise
        except BaseException:  # Ctrl-C
            _quietly(lambda: self._queue.give_back(job))
            raise
        finally:
            self._held = None
        return True

    def _finish(self, job: Job, out: Path, progress: Progress) -> None:
        """Makes a job's video, and says in the queue what came of it."""
        began = time.monotonic()
        try:
            if not out.parent.is_dir():
                raise ValueError(f"the files of this job are not in {out.parent}, where this worker looks for them")
            progress.tell(stage="starting")
            self._make(job, out.parent, out, progress)
        except Stopped as stopped:
            self._report(f"{job.id}: stopped, {stopped}")
            out.unlink(missing_ok=True)
            self._queue.give_back(job)  # which changes nothing where it is not ours any more
        except Lost:
            out.unlink(missing_ok=True)
            raise
        except Exception as error:
            out.unlink(missing_ok=True)
            self._failed(job, error)
        else:
            self._completed(job, out, progress, time.monotonic() - began)

    def _failed(self, job: Job, error: Exception) -> None:
        if is_full(error):
            self._report(f"{job.id}: {error}; it is tried again in {WAIT:g} s")
            self._queue.give_back(job, wait=WAIT, stage="waiting: the disk is full")
            return
        said = self._describe(error)
        if said is None:
            self._report(f"{job.id}: {''.join(traceback.format_exception(error))}")
        else:
            self._report(f"{job.id}: {said}")
        self._queue.fail(job, "server_error" if said is None else "generation_failed", said or BUG)

    def _completed(self, job: Job, out: Path, progress: Progress, seconds: float) -> None:
        known = [*job.asked.get("files", {}).values(), out.name]
        shown: Mapping[str, Any] = progress.shown | {"inference_time_s": round(seconds, 3)}
        self._queue.beat(job, self._lease, **progress.take())
        if self._queue.complete(job, result=out.name, size=self._store.size(job.id), **shown):
            keep_only(out.parent, known)
            self._report(f"{job.id}: made in {seconds:.1f} s")
        else:
            self._report(f"{job.id}: made, but another worker had it by then, or it was cancelled")
            out.unlink(missing_ok=True)

    def _pulse(self) -> None:
        """Renews the lease, tells of progress, and shows that this worker lives."""
        beaten, seen = 0.0, 0.0
        while True:
            now, held = time.monotonic(), self._held
            new = held[1].take() if held else {}
            if held is None:
                beaten = now
            elif new or now - beaten > self._lease / 4:
                beaten = now if self._beat(*held, new) else beaten
            if now - seen > SEEN:
                seen = now
                self._show(held)
            if self._ending.is_set() and self._held is None:
                return
            time.sleep(min(TELL, self._lease / 8))

    def _beat(self, job: Job, progress: Progress, new: dict[str, Any]) -> bool:
        try:
            if not self._queue.beat(job, self._lease, **new) and self._held and self._held[0] is job:
                progress.stop(Stopped.LOST)
            return True
        except OSError as error:
            self._report(f"{job.id}: {error}")
            return False

    def _show(self, held: tuple[Job, Progress] | None) -> None:
        _quietly(lambda: self._queue.seen(self.name, self._model, "idle" if held is None else "working"))


def is_full(error: BaseException | None) -> bool:
    """Whether a disk without room is what caused an error."""
    while error is not None:
        if getattr(error, "errno", None) in FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def _quietly(call: Callable[[], Any]) -> None:
    """Calls what may fail, as where the database is gone, and is not worth ending for."""
    try:
        call()
    except OSError as error:
        print(f"cogvx: {error}", file=sys.stderr)
