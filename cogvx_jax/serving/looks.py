"""Jobs for whoever asks: those who ask while one look at the queue is under way share the next one.

So many clients that poll cost a few statements, and no thread each. Nobody is told what was read before they asked.
"""

import asyncio

from starlette.concurrency import run_in_threadpool

from cogvx_jax.serving.queue import Placed, Queue


class Looks:
    """Of the event loop of one process."""

    def __init__(self, queue: Queue):
        self._queue = queue
        self._asked: dict[str, asyncio.Future[Placed | None]] = {}
        self._task: asyncio.Task | None = None

    async def job(self, id: str, owner: str) -> Placed | None:
        """A job and its place in the queue; None where there is none, or none of this owner. Raises: Unavailable."""
        if id not in self._asked:
            self._asked[id] = asyncio.get_running_loop().create_future()
        answer = self._asked[id]
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look())
        found = await asyncio.shield(answer)  # which others wait for, too
        return found if found is not None and found.job.owner == owner else None

    async def _look(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, {}
            try:
                found = await run_in_threadpool(self._queue.placed, list(asked))
            except Exception as error:
                for answer in asked.values():
                    answer.set_exception(error)
                    answer.exception()  # all who asked may have gone
            else:
                for id, answer in asked.items():
                    answer.set_result(found.get(id))
