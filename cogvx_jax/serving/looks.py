"""Jobs for whoever asks: those who ask at the same time share a look at the queue.

So many clients that poll cost a few statements, and no thread each. Nobody is told what was read before they asked.
"""

import asyncio

from starlette.concurrency import run_in_threadpool

from cogvx_jax.serving.jobs import Placed
from cogvx_jax.serving.queue import Queue

AT_ONCE = 3  # looks that are under way; who asks then waits for the next one, with all others who do


class Looks:
    """Of the event loop of one process."""

    def __init__(self, queue: Queue):
        self._queue = queue
        self._asked: dict[str, asyncio.Future[Placed | None]] = {}
        self._looking: set[asyncio.Task] = set()

    async def job(self, id: str, owner: str) -> Placed | None:
        """A job and its place in the queue; None where there is none, or none of this owner. Raises: Unavailable."""
        if id not in self._asked:
            loop = asyncio.get_running_loop()
            self._asked[id] = loop.create_future()
            loop.call_soon(self._begin)  # after all who ask now
        found = await asyncio.shield(self._asked[id])  # which others wait for, too
        return found if found is not None and found.job.owner == owner else None

    def _begin(self) -> None:
        if self._asked and len(self._looking) < AT_ONCE:
            asked, self._asked = self._asked, {}
            look = asyncio.create_task(self._look(asked))
            self._looking.add(look)
            look.add_done_callback(self._end)

    def _end(self, look: asyncio.Task) -> None:
        self._looking.discard(look)
        self._begin()

    async def _look(self, asked: dict[str, asyncio.Future[Placed | None]]) -> None:
        try:
            found = await run_in_threadpool(self._queue.placed, list(asked))
        except Exception as error:
            for answer in asked.values():
                answer.set_exception(error)
                answer.exception()  # all who asked may have gone
        else:
            for id, answer in asked.items():
                answer.set_result(found.get(id))
