"""Ctrl-C and SIGTERM: the first one unwinds the work, which removes what is half written; the second ends at once."""

import contextlib
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = (
    5.0  # seconds from a SIGTERM to the end of work that does not unwind; whoever sends one mostly waits 10 or 30
)
HELD_PATIENCE = 25.0  # the same while a signal is held: a step is to end first
AGAIN = 0.02  # seconds until an exception is raised anew


class Signalled(KeyboardInterrupt):
    """A signal came that ends the command."""

    def __init__(self, number: int):
        super().__init__(name(number))
        self.number = number


def name(number: int) -> str:
    """Such as "SIGTERM"."""
    return signal.Signals(number).name


@contextlib.contextmanager
def raised(end: Callable[[int], None]) -> Iterator[None]:
    """Inside, a signal of `NUMBERS` raises `Signalled`, and the block never ends as if none had come.

    JAX may compute for minutes before Python can raise anything, so a thread listens, too. It calls `end` with the
    signal's number, at the second signal and `PATIENCE` seconds after a SIGTERM.

    Signals that are ignored, as below nohup, and those that the block handles itself, as training does, stay so.
    Does nothing outside the main thread, where Python handles no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = _came
    came.clear()

    def handle(number: int, frame: object) -> None:
        came.append(number)
        if not _holding.is_set():
            _quiet()
            raise Signalled(number)

    with _handlers(handle), _raised_again(came), _listening(handle, end):
        try:
            yield
        except BaseException as error:
            if came and not isinstance(error, Signalled):  # such as ffmpeg's end by the same Ctrl-C
                raise Signalled(came[0]) from error
            raise
        else:
            if came:
                raise Signalled(came[0])
        finally:
            came.clear()


@contextlib.contextmanager
def held(said: str) -> Iterator[Callable[[], bool]]:
    """Inside, a signal raises nothing; the function given tells whether one came, and the block's end raises it.

    The second signal ends at once, and so does a SIGTERM after `HELD_PATIENCE` seconds. Outside `raised` nothing is
    held, and the function is always false.

    Args:
      said: printed when a signal comes, for whoever waits.
    """
    _said[:] = [said]
    _holding.set()
    try:
        yield lambda: bool(_came)
    finally:
        _holding.clear()
    if _came:
        _quiet()
        raise Signalled(_came[0])


_came: list[int] = []  # signals that came in `raised`
_holding = threading.Event()
_said: list[str] = []


@contextlib.contextmanager
def _handlers(handle: Callable[[int, object], None]) -> Iterator[None]:
    ordinary = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in NUMBERS}
    before = {number: handler for number, handler in before.items() if handler in ordinary}
    for number in before:
        signal.signal(number, handle)
    _in_children[:] = [before]
    try:
        yield
    finally:
        _in_children.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _raised_again(came: list[int]) -> Iterator[None]:
    """Raises anew what Python drops: in callbacks of the garbage collector, of which JAX has one, and in `__del__`."""
    report = sys.unraisablehook

    def dropped(found: "sys.UnraisableHookArgs") -> None:
        if isinstance(found.exc_value, Signalled):
            signal.setitimer(signal.ITIMER_REAL, AGAIN)  # the callback goes on first
        elif not came:
            report(found)

    def handle(number: int, frame: object) -> None:
        raise Signalled(came[0])

    sys.unraisablehook, before = dropped, signal.signal(signal.SIGALRM, handle)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if not came and sys.unraisablehook is dropped:
            sys.unraisablehook = report


@contextlib.contextmanager
def _listening(handle: Callable[[int, object], None], end: Callable[[int], None]) -> Iterator[None]:
    """Runs a thread that Python tells of each signal when it comes, even while the main thread is in C++."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=_listen, args=(reader, handle, end), name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)
        thread.join()
        os.close(reader)


def _listen(reader: int, handle: Callable[[int, object], None], end: Callable[[int], None]) -> None:
    first: int = 0
    patience: float | None = None
    while True:
        if not select.select([reader], [], [], patience)[0]:
            end(first)
            return
        came = os.read(reader, 1)
        if not came:
            return
        number = came[0]
        if signal.getsignal(number) is not handle:  # one that the work handles itself
            continue
        if first:
            end(number)
            return
        first, patience = number, _patience(number)


def _patience(number: int) -> float | None:
    """Seconds in which the work may end after its first signal; says what is waited for where it is held."""
    if _holding.is_set():
        os.write(2, f"cogvx: {_said[0]}\n".encode())
    if number == signal.SIGINT:
        return None
    return HELD_PATIENCE if _holding.is_set() else PATIENCE


def _quiet() -> None:
    """From here to the end of the process, other threads, such as Orbax's, fail since their files are taken away."""
    logging.disable()
    threading.excepthook = lambda _: None


_in_children: list[dict] = []  # of the handlers that a forked process gets back


def _after_fork() -> None:
    """A forked process, such as a worker that reads ahead, handles signals in the ordinary way."""
    for before in _in_children:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
    _in_children.clear()


os.register_at_fork(after_in_child=_after_fork)
