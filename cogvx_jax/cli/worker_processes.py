"""Worker processes beside a server: begun with it, begun again when they die, ended with it."""

import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cogvx_jax.cli.options import report
from cogvx_jax.cli.work import READY, TELL, WorkFlags
from cogvx_jax.given import Given

if TYPE_CHECKING:
    from cogvx_jax.serving.queue import Queue

STOP = 4.0  # seconds in which a worker may end with its server; it ends by itself later
AGAIN = (1.0, 30.0)  # seconds until a worker that died is started again: at first, and at most
REFUSED = 2  # exit status of a worker that cannot work as it is asked to
# Of several processes one that is lost ends the others with that status, too: so often in a row none may get to work.
REFUSALS = 3


class Workers:
    """They end with the block, or when this process is killed.

    Args:
      run: their flags, and how many there are.
      environment: of them.

    queue: to say there at once that one has died; None is known later, or nobody's here.
    give_up: called when no worker can work.
    refused: they cannot work as they are asked to, which starting them again does not change.
    """

    def __init__(self, run: Any, about: Given, environment: dict[str, str], queue: "Queue | None" = None):
        self._command = [sys.executable, "-m", "cogvx_jax.cli", "work", *words_of(run, WorkFlags)]
        self._command += words_of(about, Given)
        self._environment = environment | {"COGVX_PARENT": "1", "COGVX_QUEUE": run.url}
        self.queue, self._together = queue, run.distributed
        self._count, self._ending, self.refused = run.workers, threading.Event(), False
        self._processes: list[subprocess.Popen] = []
        self._told, self._index = threading.Event(), -1
        self.give_up: Callable[[], Any] = self._told.set

    def __enter__(self) -> "Workers":
        for _ in range(self._count):
            threading.Thread(target=self._keep_one, name="worker", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        for process in self._processes:
            process.terminate()
        until = time.monotonic() + STOP
        for process in self._processes:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                report("the worker ends after its step")

    def index(self) -> int:
        """Of the process that is joined with those of other hosts; waits until it has. Raises: ValueError."""
        self._told.wait()
        self.check()
        return self._index

    def wait(self) -> None:
        """Until no worker can work. Raises: ValueError then."""
        refused = threading.Event()
        self.give_up = refused.set
        while not self.refused:
            refused.wait()
        self.check()

    def check(self) -> None:
        """Raises: ValueError where no worker can work."""
        if self.refused:
            raise ValueError(
                "the worker cannot make videos, its own words are above; without one, --workers 0 serves on"
            )

    def _keep_one(self) -> None:
        pause, refusals = AGAIN[0], 0
        while not self._ending.is_set():
            began = time.monotonic()
            status, worked = self._run_one()
            if self._ending.is_set():
                return
            refusals = refusals + 1 if status == REFUSED and not (self._together and worked) else 0
            if refusals >= (REFUSALS if self._together else 1):
                self.refused = True
                self.give_up()
                return
            pause = AGAIN[0] if time.monotonic() - began > 60 else min(2 * pause, AGAIN[1])
            report(f"the worker ended with status {status}; it is started again in {pause:g} s")
            self._ending.wait(pause)

    def _run_one(self) -> tuple[int, bool]:
        """The exit status of a worker when it has ended, and whether it got to work; what it held then is free."""
        from cogvx_jax.serving.worker import new_name

        name = new_name()
        reads, writes = os.pipe()
        # Its standard input ends when this process does, however that ends.
        environment = self._environment | {"COGVX_WORKER": name, TELL: str(writes)}
        process = subprocess.Popen(self._command, env=environment, stdin=subprocess.PIPE, pass_fds=(writes,))
        os.close(writes)
        self._processes.append(process)
        worked = threading.Event()
        hearing = threading.Thread(target=self._hear, args=(reads, worked), daemon=True)
        hearing.start()
        status = process.wait()
        hearing.join(1.0)
        self._processes.remove(process)
        if self.queue is not None:
            try:
                self.queue.died(name)
            except OSError as error:  # its lease ends by itself
                report(f"{error}")
        return status, worked.is_set()

    def _hear(self, reads: int, worked: threading.Event) -> None:
        """Notes what a worker tells until it ends: which of several processes it is, and that it works."""
        with os.fdopen(reads) as told:
            for word in map(str.strip, told):
                if word == READY:
                    worked.set()
                elif word.isdecimal():
                    self._index = int(word)
                    self._told.set()


def words_of(flags: Any, of: type) -> list[str]:
    """Flags as words of a command line, those that differ from their defaults; the queue goes by the environment."""
    words = []
    for field in dataclasses.fields(of):
        value, flag = getattr(flags, field.name), field.name.replace("_", "-")
        if value == field.default or field.name == "queue":
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}={one}" for one in (value if isinstance(value, tuple) else (value,))]
    return words
