"""An abort in XLA becomes a sentence and exit status 2, where XLA itself prints a stack and dumps core.

XLA's coordination service, which all processes of a run talk to, aborts its process when another one is lost. It takes
no callback of Python for that. So this module handles the signal SIGABRT, in C by ctypes: Python's own handlers would
run only after the abort.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable

from cogvx_jax.temporaries import remove_own

_last_words = ""  # what to say when it comes
_last_act: Callable[[], None] | None = None  # what to do then
_process = 0  # the one that asked for it, not those that it forks
PATIENCE = 5.0  # seconds for the last act


def say_if_aborted(words: str, act: Callable[[], None] | None = None) -> None:
    """From now on an abort of this process says these words on stderr; with none it ends without a word.

    Libraries may handle the signal, too, as libtpu does once it is loaded: after that, call this again.

    Args:
      act: called in a thread before the process ends, which waits for it up to `PATIENCE` seconds.
    """
    global _last_words, _last_act, _process
    _last_words, _last_act, _process = words, act, os.getpid()
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(number: int) -> None:
    """Runs in the thread that aborts, while the others go on."""
    if os.getpid() == _process:
        if _last_words:
            os.write(2, f"cogvx: {_last_words}\n".encode())
        remove_own()
        if _last_act is not None:
            acting = threading.Thread(target=_last_act, daemon=True)
            acting.start()
            acting.join(PATIENCE)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
    os._exit(2)
