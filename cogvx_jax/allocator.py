"""Host memory that one step frees is kept for the next one."""

import contextlib
import ctypes
import functools
import os
import sys
from typing import Any

# Of <malloc.h>: glibc's names for its own settings.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8

COMPILED = "/jax/core/compile/backend_compile_duration"  # jax's event
LONG = 1.0  # seconds of a compilation that leaves much behind


def keep_freed_memory() -> None:
    """Has glibc keep large blocks that are freed, instead of giving them back to the system.

    XLA on CPU frees its temporaries after every call. Given back, they are cleared page by page when
    they are needed again, which took a quarter of the time of a VAE decode. The process stays as large as
    its largest step. Threads that have begun keep their ways, so call this before jax computes anything.
    What a compilation leaves is given back: its holes are too small for the blocks of the program that it has made.
    A user's own settings of malloc, and other systems, are left alone.
    """
    ours = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    if sys.platform != "linux" or any(name.startswith(ours) for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(M_ARENA_MAX, 1)  # for all threads: the heaps of other arenas are too small for large blocks
    mallopt(M_MMAP_MAX, 0)  # large blocks from the heap, too
    mallopt(M_TRIM_THRESHOLD, -1)  # which never shrinks
    _give_back_after_compiling()


@functools.cache  # one listener
def _give_back_after_compiling() -> None:
    import jax.monitoring

    def after(event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILED and duration_secs >= LONG:
            give_back_freed_memory()

    jax.monitoring.register_event_duration_secs_listener(after)


def give_back_freed_memory() -> None:
    """Has glibc give all that is free back to the system, once: after what leaves many holes in the heap."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
