"""Batches read ahead of their use, by grain: in threads, or in processes of their own."""

import functools
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

AHEAD = 2  # batches that are read at once, and held beside the one in use
Batches = Callable[[int], Any]  # step -> batch; a function of the step alone, so that a run resumes exactly


def read_ahead(batches: Batches, start: int, stop: int, workers: int = 0) -> Iterator[tuple[int, Any]]:
    """Steps `start` to `stop` in order, each with its batch. The place in the data is the step alone.

    Args:
      workers: processes that read, each every so manieth batch; `batches` must then be such as can be pickled. 0 reads
        in threads of this process.
    Raises: OSError where a worker is killed; whatever `batches` raises.
    """
    steps = grain.MapDataset.range(start, stop).map(functools.partial(_numbered, batches))
    if workers and start < stop:
        if not flags.FLAGS.is_parsed():  # grain asks for its own, which are on no command line here
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=min(workers, stop - start), per_worker_buffer_size=1)
        one = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        ahead = iter(steps.to_iter_dataset(one).mp_prefetch(options, _begin_worker))
    else:
        ahead = iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=AHEAD, prefetch_buffer_size=AHEAD)))
    try:
        for step, batch in ahead:
            # Not a view of memory that a worker shares: that is given back at once.
            yield step, jax.tree.map(np.array, batch) if workers else batch
    except RuntimeError as error:
        if not workers or "terminated unexpectedly" not in str(error):
            raise
        raise OSError(
            "a process of --workers ended before its time, as when it is killed for its memory; "
            "the same command goes on from the newest checkpoint"
        ) from None
    finally:
        ahead.close()
        if workers:
            del ahead
            gc.collect()  # the iterator, which is part of a cycle, holds a batch in shared memory


def _numbered(batches: Batches, step: int) -> tuple[int, Any]:
    return step, batches(step)


def _begin_worker(worker: int, workers: int) -> None:
    """A worker ends with the process that began it, and not before: signals to all of them are that one's."""
    jax.config.update("jax_platforms", "cpu")  # the accelerator, if there is one, is that process's
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
