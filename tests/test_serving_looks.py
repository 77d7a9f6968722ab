"""Those who ask for jobs at the same time share a look at the queue."""

import asyncio
import time

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra `serve`")

from serving import submit

from cogvx_jax.serving.database import Unavailable
from cogvx_jax.serving.looks import AT_ONCE, Looks
from cogvx_jax.serving.queue import Queue
from cogvx_jax.serving.store import Store


class Counted(Queue):
    """A queue that counts looks, each of which takes a while, and may fail."""

    looks, fails = 0, False

    def placed(self, ids):
        self.looks += 1
        found = super().placed(ids)
        time.sleep(0.05)
        if self.fails:
            raise Unavailable("the database is gone")
        return found


@pytest.fixture
def queue(tmp_path):
    return Counted(f"sqlite:///{tmp_path}/queue.sqlite")


def test_many_who_ask_share_a_look(queue, tmp_path):
    jobs = [submit(queue, Store(tmp_path)) for _ in range(3)]

    async def ask():
        looks = Looks(queue)
        return await asyncio.gather(*(looks.job(jobs[i % 3].id, "me") for i in range(60)))

    found = asyncio.run(ask())
    assert [one.job.id for one in found] == [jobs[i % 3].id for i in range(60)]
    assert {(one.job.id, one.position) for one in found} == {(job.id, place) for place, job in enumerate(jobs)}
    assert queue.looks == 1


def test_looks_at_a_time_are_bounded(queue, tmp_path):
    jobs = [submit(queue, Store(tmp_path)) for _ in range(20)]

    async def ask():
        looks = Looks(queue)
        asking = []
        for job in jobs:
            asking.append(asyncio.create_task(looks.job(job.id, "me")))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return await asyncio.gather(*asking)

    assert [one.job.id for one in asyncio.run(ask())] == [job.id for job in jobs]
    assert queue.looks == AT_ONCE + 1  # the others waited for one together


def test_nobody_is_told_what_was_read_before_they_asked(queue, tmp_path):
    job = submit(queue, Store(tmp_path))

    async def ask():
        looks = Looks(queue)
        early = asyncio.create_task(looks.job(job.id, "me"))
        await asyncio.sleep(0.03)  # the look has read, and is not back yet
        queue.cancel(job.id)
        late = await looks.job(job.id, "me")
        return (await early).job.status, late.job.status

    assert asyncio.run(ask()) == ("queued", "failed")
    assert queue.looks == 2


def test_jobs_of_others_and_of_nobody_are_not_there(queue, tmp_path):
    job = submit(queue, Store(tmp_path))

    async def ask():
        looks = Looks(queue)
        return await looks.job(job.id, "you"), await looks.job("video_" + "0" * 32, "me")

    assert asyncio.run(ask()) == (None, None)


def test_a_look_that_fails_fails_all_who_wait_for_it(queue, tmp_path):
    job = submit(queue, Store(tmp_path))

    async def ask():
        looks = Looks(queue)
        queue.fails = True
        failed = await asyncio.gather(*(looks.job(job.id, "me") for _ in range(3)), return_exceptions=True)
        queue.fails = False
        return failed, await looks.job(job.id, "me")

    failed, after = asyncio.run(ask())
    assert [type(error) for error in failed] == [Unavailable] * 3 and after.job.id == job.id


def test_one_who_goes_away_takes_nobody_along(queue, tmp_path):
    job = submit(queue, Store(tmp_path))

    async def ask():
        looks = Looks(queue)
        first, second = (asyncio.create_task(looks.job(job.id, "me")) for _ in range(2))
        await asyncio.sleep(0.01)
        first.cancel()
        return await second

    assert asyncio.run(ask()).job.id == job.id
