"""What is read of films, by a child process with a time limit: facts, frames, and clips that are written."""

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cogvx_jax.json_files import parse_json

MOST_HEADER, MOST_PIXELS = 2**20, 2**33  # bytes of an answer
SILENT = 60.0  # seconds without an answer that a film may take
Answer = tuple[dict[str, Any], np.ndarray | None]


class TooSlow(TimeoutError):
    """A film took longer to read than it may."""


def facts(path: Path, limit: float) -> dict[str, Any]:
    """What `data.probe.probe` tells of a file. Raises: as `ask`."""
    with ask("facts", path, limit) as answers:
        ((found, _),) = answers
    return found["facts"]


@contextlib.contextmanager
def ask(job: str, path: Path, limit: float, **about: Any) -> Iterator[Iterator[Answer]]:
    """The answers to a job of `reader.JOBS`, as they come.

    Args:
      limit: seconds that may be waited for answers, all together.
    Raises: TooSlow; FileNotFoundError; ValueError for what cannot be read, also where the decoder crashes.
    """
    child, whole = _free_reader() or _new_reader(), False

    def each() -> Iterator[Answer]:
        nonlocal whole
        yield from _answers(child, path, limit)
        whole = True

    assert child.stdin is not None
    try:
        request = {"job": job, "path": os.fspath(path.absolute())} | about
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
        yield each()
    finally:
        if whole and _OWN.inside and _OWN.free is None:
            _OWN.free = child
        else:
            _end(child)


class _Own(threading.local):
    """Of a thread: whether it is inside `one_film`, and the process that waits there for its next job."""

    inside = False
    free: subprocess.Popen | None = None


_OWN = _Own()


@contextlib.contextmanager
def one_film() -> Iterator[None]:
    """Inside, jobs that go well have one process. All are to be of one film: what it does to a decoder ends with it."""
    _OWN.inside = True
    try:
        yield
    finally:
        _OWN.inside = False
        if (child := _free_reader()) is not None:
            _end(child)


def _free_reader() -> subprocess.Popen | None:
    child, _OWN.free = _OWN.free, None
    return child


def _new_reader() -> subprocess.Popen:
    command = [sys.executable, "-m", "cogvx_jax.prepare.reader"]
    places = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, env=os.environ | places
    )


def _end(child: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(BrokenPipeError), child:  # which closes its pipes and waits
        pass


def _answers(child: subprocess.Popen, path: Path, limit: float) -> Iterator[Answer]:
    pipe = _Pipe(child.stdout.fileno(), path, limit)  # type: ignore[union-attr]
    while True:
        (length,) = struct.unpack("<I", pipe.read(4, MOST_HEADER))
        header = parse_json(bytes(pipe.read(length, MOST_HEADER)))
        if "error" in header:
            raise (FileNotFoundError if header.get("missing") else ValueError)(header["error"])
        if "end" in header:
            return
        shape: Sequence[int] | None = header.pop("shape", None)
        pixels = None
        if shape is not None:
            pixels = np.frombuffer(pipe.read(int(np.prod(shape, dtype=np.int64)), MOST_PIXELS), np.uint8)
            pixels = pixels.reshape(shape)
        yield header, pixels


class _Pipe:
    """Reads exactly so many bytes, and counts how long it waits for them."""

    def __init__(self, descriptor: int, path: Path, limit: float):
        self._descriptor, self._path, self._left, self._limit = descriptor, path, limit, limit

    def read(self, count: int, most: int) -> bytearray:
        if count > most:
            raise ValueError(f"{str(self._path)!r} gives {count} bytes at once, which is too much")
        found = bytearray(count)
        view, silent = memoryview(found), SILENT
        while view:
            began = time.monotonic()
            ready, _, _ = select.select([self._descriptor], [], [], max(min(self._left, silent), 0))
            waited = time.monotonic() - began
            self._left, silent = self._left - waited, silent - waited
            if not ready:
                raise TooSlow(
                    f"{str(self._path)!r} took more than {min(self._limit, SILENT):g} s to read; give more by `limit`"
                )
            got = os.readv(self._descriptor, [view])
            if not got:
                raise ValueError(f"{str(self._path)!r} made the decoder crash")
            view = view[got:]
        return found
