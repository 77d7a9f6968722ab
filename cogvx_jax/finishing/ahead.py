"""Work a little ahead of who takes it: a thread runs an iterator and waits where a few things lie ready."""

import contextlib
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
DEPTH = 2  # things that lie ready; another one is being made, and one is in use
END = object()


@contextlib.contextmanager
def ahead(items: Iterable[T], depth: int = DEPTH) -> Iterator[Iterator[T]]:
    """The items, made in a thread, which has ended when the block has.

    What the iterable raises is raised where its next item would be taken.
    """
    ready: queue.Queue = queue.Queue(depth)
    stop = threading.Event()
    problem: list[BaseException] = []

    def put(item: object) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def run() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    break
        except BaseException as error:  # of whatever kind: the thread that waits for the item gets it
            problem.append(error)
        finally:
            if isinstance(items, Generator):
                items.close()
            put(END)

    def take() -> Iterator[T]:
        while (item := ready.get()) is not END:
            yield item
        if problem:
            raise problem[0]

    thread = threading.Thread(target=run, name="cogvx-ahead", daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        stop.set()
        thread.join()
