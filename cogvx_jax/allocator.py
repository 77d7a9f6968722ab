"""Host memory that one step frees is kept for the next one."""

import contextlib
import ctypes
import os
import sys

# Of <malloc.h>: glibc's names for its own settings.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Has glibc keep large blocks that are freed, instead of giving them back to the system.

    XLA on CPU frees its temporaries after every call. Given back, they are cleared page by page when
    they are needed again, which took a quarter of the time of a VAE decode. The process stays as large as
    its largest step. Threads that have begun keep their ways, so call this before jax computes anything.
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


def give_back_freed_memory() -> None:
    """Has glibc give all that is free back to the system, once.

    After a first call, which compiles: that leaves holes in the heap, too small for the blocks of the next calls.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
