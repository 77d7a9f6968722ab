"""Runs a function in a process of its own: its device memory is free afterwards, and however it ends, others go on."""

import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any

TAIL = 300  # characters of a process's last words that are passed on
ENDING = 5.0  # seconds in which a process that has given its result may end


class Failed(RuntimeError):
    """A function gave no result; the message says how it ended."""


def alone(
    function: Callable[..., Any],
    *arguments: Any,
    seconds: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> Any:
    """What a function gives in a new process, which has ended when this returns.

    Args:
      function, arguments: what pickle takes, as is the result.
      seconds: after which the process is killed, and all that it has started; None waits.
      environment: variables of the process beside those of this one.
    Raises: Failed where the function raises, takes longer, or ends its process.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryFile() as log:
        pipe, end = context.Pipe(duplex=False)
        process = context.Process(target=_serve, args=(end, function, arguments), daemon=True)
        with _written_to(log.fileno()), _environment(environment or {}):
            process.start()
        end.close()  # so that a process that dies is noticed
        try:
            if not pipe.poll(seconds):
                raise Failed(f"was ended after {seconds:.3g} seconds{_last_words(log)}")
            result, error = pipe.recv()
            process.join(ENDING)
        except EOFError:
            process.join()
            raise Failed(f"{_ending(process.exitcode)}{_last_words(log)}") from None
        finally:
            _kill(process)
    if error is not None:
        raise Failed(error)
    return result


def _serve(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """The process: computes, and ends when the one that has started it does."""
    os.setsid()  # what this process starts ends with it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        result, error = function(*arguments), None
    except Exception as raised:
        text = str(raised).strip().splitlines()
        result, error = None, f"{type(raised).__name__}: {text[0] if text else ''}"
    pipe.send((result, error))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)


@contextlib.contextmanager
def _written_to(file: int) -> Iterator[None]:
    """What processes that start in the block print goes to a file; crashes say what they are on stderr."""
    kept = {stream: os.dup(stream) for stream in (1, 2)}
    try:
        for stream in kept:
            os.dup2(file, stream)
        yield
    finally:
        for stream, copy in kept.items():
            os.dup2(copy, stream)
            os.close(copy)


@contextlib.contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _kill(process: Any) -> None:
    """The process and what it has started; those of a process that has ended may be left."""
    if process.pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():  # before it led a group of its own
        process.kill()
    process.join()


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"ended with status {code}"


def _last_words(log: Any) -> str:
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - TAIL))
    said = " ".join(log.read().decode(errors="replace").split())
    return f"; its last words: {said}" if said else ""
