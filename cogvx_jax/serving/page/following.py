"""Jobs that one page looks at, as they change, with the time that each will take yet. All pages share the looks."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from cogvx_jax.serving.jobs import RUNNING, Job, Placed
from cogvx_jax.serving.keys import Key
from cogvx_jax.serving.looks import Looks

LOOK = 0.5  # seconds between two looks
AGAIN = 2.0  # seconds until one is tried again that failed


class Seen(NamedTuple):
    """A job as it stands now; None where it is not kept any more."""

    job: Job | None
    left: float | None  # seconds that sampling will take yet
    place: int | None  # in the queue


class Pace:
    """How fast a job is sampled, of the steps that were seen: compiling, before the first of them, does not count."""

    def __init__(self) -> None:
        self._first: tuple[float, int, int] | None = None

    def left(self, job: Job, now: float) -> float | None:
        """Seconds until the last step; None where nothing tells."""
        if job.status != RUNNING or job.stage != "sampling" or job.step < 1:
            self._first = None
            return None
        if self._first is None or self._first[2] != job.attempts:
            self._first = now, job.step, job.attempts
        began, step, _ = self._first
        return None if job.step <= step else (now - began) / (job.step - step) * (job.steps - job.step)


async def follow(looks: Looks, ids: Sequence[str], key: Key, look: float = LOOK) -> AsyncIterator[list[Seen]]:
    """These jobs each time that one of them has changed, until all have ended."""
    paces, last = {id: Pace() for id in ids}, None
    while True:
        try:
            found = await asyncio.gather(*(looks.job(id, key.name) for id in ids))
        except OSError as error:  # the queue may answer again soon
            print(f"cogvx: {error}", file=sys.stderr)
            await asyncio.sleep(AGAIN)
            continue
        seen = [_seen(placed, paces[id]) for id, placed in zip(ids, found, strict=True)]
        state = [(one.job and one.job.revision, one.place) for one in seen]
        if state != last:
            last = state
            yield seen
        if all(one.job is None or one.job.ended for one in seen):
            return
        await asyncio.sleep(look)


def _seen(placed: Placed | None, pace: Pace) -> Seen:
    if placed is None:
        return Seen(None, None, None)
    return Seen(placed.job, pace.left(placed.job, time.monotonic()), placed.position)
