"""How the command ends: a sentence on stderr and an exit status for every way but the good one."""

import contextlib
import functools
import multiprocessing
import os
import select
import sys
from collections.abc import Iterator
from typing import NoReturn

from cogvx_jax.cli import signals
from cogvx_jax.cli.errors import sentence
from cogvx_jax.temporaries import remove_own

BROKEN_PIPE = 141  # as of a program that SIGPIPE ends
LEAVE = {"error": 10.0, "signal": 1.0}  # seconds in which the other processes of a run may fail likewise


@contextlib.contextmanager
def ends(left: str) -> Iterator[None]:
    """Ends the process where the block raises.

    Exit statuses: 2 and a sentence for an error in the input or of the machine; 1 and a traceback for an error in this
    program; 128 and the signal's number where one came, such as 130 for Ctrl-C.

    Args:
      left: what a signal leaves, the second half of a sentence.
    """
    try:
        with signals.raised(functools.partial(_end_now, left)):
            try:
                yield
            except SystemExit:  # as of --help
                _flush()
                raise
            _flush()
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, signals.Signalled) else signals.NUMBERS[0]
        _exit(128 + number, _stopped(number, left), "signal", at_once=isinstance(error, signals.Signalled))
    except BrokenPipeError as error:
        _exit(*((BROKEN_PIPE, None) if _reader_has_gone() else (2, sentence(error))))
    except Exception as error:
        if (said := sentence(error)) is None:
            _leave(1, "error")
            raise
        _exit(2, said)


def _stopped(number: int, left: str) -> str:
    return f"interrupted; {left}" if number == signals.NUMBERS[0] else f"ended by {signals.name(number)}; {left}"


def _end_now(left: str, number: int) -> None:
    """Ends this process from a thread, while the main one may be in the middle of anything."""
    os.write(2, f"cogvx: {_stopped(number, left)}\n".encode())
    remove_own()
    os._exit(128 + number)


def _exit(status: int, said: str | None, reason: str = "error", *, at_once: bool = False) -> NoReturn:
    if said is not None:
        print(f"cogvx: {said}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # Python would try it once more, and say so
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    _leave(status, reason)
    if at_once and not _has_joined_others():
        _end_at_once(status)
    sys.exit(status)


def _end_at_once(status: int) -> NoReturn:
    """Ends without Python's teardown, which can crash under threads in which JAX still computes."""
    for child in multiprocessing.active_children():
        child.terminate()
    remove_own()
    sys.stderr.flush()
    os._exit(status)


def _leave(status: int, reason: str) -> None:
    """Of several processes, one that has failed ends soon: jax alone would wait for the others for minutes."""
    if processes := sys.modules.get("cogvx_jax.sharding.processes"):
        processes.end_within(LEAVE[reason], status)


def _has_joined_others() -> bool:
    processes = sys.modules.get("cogvx_jax.sharding.processes")
    return processes is not None and processes.has_joined()


def _flush() -> None:
    """Writes out what was printed, here, where an error still becomes a sentence."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from None


def _reader_has_gone() -> bool:
    """Whether the program that reads the output, such as `head`, has ended."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
