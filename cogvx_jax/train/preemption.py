"""SIGTERM, by which machines announce that they will be taken away, as a question a loop can ask."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def sigterm() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM ends nothing; the function given tells whether it has come.

    Only the main thread can ask for signals; in others the function is always false.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
