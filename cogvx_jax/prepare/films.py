"""What is read of films, by a child process with a time limit: facts, frames, and clips that are written."""

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
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
    command = [sys.executable, "-m", "cogvx_jax.prepare.reader"]
    places = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, env=os.environ | places
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        try:
            request = {"job": job, "path": os.fspath(path.absolute())} | about
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(json.dumps(request).encode() + b"\n")
                child.stdin.flush()
            yield _answers(child, path, limit)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()


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
