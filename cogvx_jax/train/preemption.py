"""SIGTERM, by which machines announce that they will be taken away, as a question a loop can ask."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def sigterm() -> Iterator[Callable[[int], bool]]:
    """Inside, SIGTERM ends nothing; the function given, asked with the number of each update, says whether to stop.

    Of several processes, any may get the signal: all are told to stop at the same update, one that none of them has
    come to yet. jax's coordination service agrees on it, beside the computation; for that, they have joined with
    `initialize(preemptible=True)`. Outside, SIGTERM ends the command as Ctrl-C does.

    Only the main thread can ask for signals; in others of a single process the function is always false.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda done: False
        return
    came = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield lambda done: came.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
