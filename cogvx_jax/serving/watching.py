"""Changes of jobs as they come, for any number of listeners: one look at the queue at a time serves them all."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool

from cogvx_jax.serving.jobs import Job
from cogvx_jax.serving.queue import Queue

LOOK = 0.25  # seconds between two looks


class Watcher:
    """Looks at the jobs that someone listens to, from the event loop of one process."""

    def __init__(self, queue: Queue):
        self._queue = queue
        self._listeners: dict[str, set[asyncio.Queue[Job | None]]] = {}
        self._revisions: dict[str, int] = {}
        self._task: asyncio.Task | None = None

    async def changes(self, job: Job, seen: int | None = None, pause: float = 5.0) -> AsyncIterator[Job | None]:
        """The job each time that it has changed, until it has ended or is deleted.

        Args:
          seen: the revision that the listener has; None is none.
          pause: seconds without a change after which None is given.
        """
        changed: asyncio.Queue[Job | None] = asyncio.Queue()
        self._listeners.setdefault(job.id, set()).add(changed)
        self._revisions.pop(job.id, None)  # what changed since the job was read is told to this listener, too
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look())
        last, now = seen if seen is not None and seen <= job.revision else 0, job
        try:
            while True:
                if now.revision > last:
                    last = now.revision
                    yield now
                if now.ended:
                    return
                try:
                    found = await asyncio.wait_for(changed.get(), pause)
                except TimeoutError:
                    yield None
                    continue
                if found is None:
                    return
                now = found
        finally:
            self._listeners[job.id].discard(changed)
            if not self._listeners[job.id]:
                del self._listeners[job.id]
                self._revisions.pop(job.id, None)

    async def _look(self) -> None:
        while self._listeners:
            ids = list(self._listeners)
            try:
                found = await run_in_threadpool(self._all, ids)
            except OSError as error:  # the listeners wait on
                print(f"cogvx: {error}", file=sys.stderr)
                found = None
            for id in ids if found is not None else ():
                self._tell(id, (found or {}).get(id))
            await asyncio.sleep(LOOK)

    def _all(self, ids: list[str]) -> dict[str, Job]:
        found: dict[str, Job] = {}
        for some in (ids[i : i + 500] for i in range(0, len(ids), 500)):
            found |= self._queue.several(some)
        return found

    def _tell(self, id: str, job: Job | None) -> None:
        revision = -1 if job is None else job.revision
        if self._revisions.get(id) != revision:
            self._revisions[id] = revision
            for listener in self._listeners.get(id, ()):
                listener.put_nowait(job)

    async def close(self) -> None:
        """Ends the looking."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
