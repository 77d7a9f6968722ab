"""A worker of several processes, such as one on each host of a slice: the first talks to the queue, the others follow.

All of them make the same job. What only the first can know, as whether the job was cancelled, it says at each point
where a maker asks its `Progress`; so all of them go on, save or stop at the same step.
"""

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from cogvx_jax.serving.jobs import Job
from cogvx_jax.serving.store import Store
from cogvx_jax.serving.worker import Describe, Lost, Make, Progress, Stopped
from cogvx_jax.sharding import Exchange, ProcessLost

NAME = "cogvx work"  # of the words
END = ""  # in place of a job
BEGUN, AGREED, MADE = "begun", "agreed", "made"  # points where all processes meet
PATIENCE = 60.0  # seconds in which the others must come where one has failed: they may wait for it in the devices
CALLED = 0.5  # seconds between two looks whether a process has called


class CrewProgress(Progress):
    """Of a job that several processes make: what holds in the first one holds in all, from the same point on."""

    def __init__(self, exchange: Exchange):
        super().__init__()
        self._exchange, self.joined = exchange, exchange.index > 0

    def check(self) -> None:
        if not self.joined:  # the others do not know of the job yet, or any more
            super().check()
            return
        why = self._exchange.of_first(self.why or "")
        if why:
            self.why = why
            raise Stopped(why)

    def look(self) -> None:
        pass

    def same(self, value: bool) -> bool:
        return self._exchange.of_first("yes" if value else "") == "yes"

    def all(self, value: bool) -> bool:
        return all(self._exchange.of_each("yes" if value else "", AGREED))

    @contextlib.contextmanager
    def beginning(self) -> Iterator[None]:
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            failed = error
        words = self._exchange.of_each("" if failed is None else str(failed) or type(failed).__name__, BEGUN)
        if failed is not None:
            raise failed
        for index, word in enumerate(words):
            if word:
                raise ValueError(f"process {index} of this worker cannot begin: {word}")


class Leader:
    """The first process's `worker.Make`, which has the others make each job with it.

    Args:
      is_lost: whether an error says that another process has ended.
    """

    def __init__(self, make: Make, exchange: Exchange, is_lost: Callable[[BaseException], bool]):
        self._make, self._exchange, self._is_lost = make, exchange, is_lost

    def progress(self) -> Progress:
        """For `Worker`."""
        return CrewProgress(self._exchange)

    def __call__(self, job: Job, folder: Path, out: Path, progress: Progress) -> None:
        """See `worker.Make`. Raises: Lost, too."""
        assert isinstance(progress, CrewProgress)
        try:
            self._exchange.of_first(json.dumps(dataclasses.asdict(job) | {"preview": None}))
            progress.joined = True
            self._together(job, folder, out, progress)
        except Exception as error:
            if isinstance(error, ProcessLost) or self._is_lost(error):
                raise Lost(str(error)) from error
            raise
        finally:
            progress.joined = False

    def _together(self, job: Job, folder: Path, out: Path, progress: CrewProgress) -> None:
        try:
            self._make(job, folder, out, progress)
        except Stopped:
            self._exchange.of_each("", MADE)
            raise
        except Exception as error:
            if not self._is_lost(error):
                # The others have failed likewise, or come to their next point, where they learn of it.
                self._exchange.of_first("the first process has failed")
                self._exchange.of_each("", MADE, PATIENCE)
            raise
        self._exchange.of_each("", MADE)

    @contextlib.contextmanager
    def leading(self, end: Callable[[], None]) -> Iterator[None]:
        """Around all of the worker's jobs: calls `end` where another process is told to end; at last all end.

        Raises: Lost.
        """
        done = threading.Event()
        threading.Thread(target=self._listen, args=(end, done), name="crew", daemon=True).start()
        try:
            yield
            self._exchange.of_first(END)
        except ProcessLost as error:
            raise Lost(str(error)) from error
        finally:
            done.set()

    def _listen(self, end: Callable[[], None], done: threading.Event) -> None:
        while not done.wait(CALLED):
            try:
                if self._exchange.is_called():
                    end()
                    return
            except ProcessLost:  # which the main thread meets, too
                return


def follow(
    make: Make,
    store: Store,
    exchange: Exchange,
    describe: Describe,
    report: Callable[[str], None],
) -> None:
    """Another process's part: makes what the first one makes, until that ends.

    Raises: ProcessLost; whatever `make` raises where the first process does not fail, too.
    """
    while (word := exchange.of_first()) != END:
        store.forget()
        job = Job(**json.loads(word))
        folder = _brought(store, job, report)
        try:
            make(job, folder, folder / job.file, CrewProgress(exchange))
        except Stopped as stopped:
            report(f"{job.id}: stopped, {stopped}")
        except ProcessLost:
            raise
        except Exception as error:
            report(f"{job.id}: {describe(error) or error}")
            try:
                exchange.of_each("", MADE, PATIENCE)
            except ProcessLost:
                raise error from None
            continue
        exchange.of_each("", MADE)


def _brought(store: Store, job: Job, report: Callable[[str], None]) -> Path:
    """The folder of a job. Where its files do not come the maker misses them, of which all processes learn."""
    try:
        return store.bring(job.id, job.inputs)
    except OSError as error:
        report(f"{job.id}: {error}")
        return store.folder_of(job.id)
