"""The durable queue: leases, order, limits, keys and retention, on SQLite and Postgres."""

import asyncio
import multiprocessing
import sqlite3
import time

import pytest

pytest.importorskip("sqlalchemy", reason="the queue needs the extra `serve`")

from serving import postgres_url, queue_url, take_all  # noqa: F401

from cogvx_jax.scripts import benchmark_server
from cogvx_jax.scripts.served import Setting
from cogvx_jax.serving.database import Unavailable
from cogvx_jax.serving.jobs import new_id
from cogvx_jax.serving.queue import Full, KeyUsed, Queue, Retention

SHORT = 0.3  # a lease, in seconds


@pytest.fixture
def queue(queue_url):  # noqa: F811
    made = Queue(queue_url)
    yield made
    made.close()


def submit(queue, prompt="p", owner="me", **how):
    how = dict(id=new_id(), owner=owner, model="tiny", asked={"prompt": prompt}, shown={}) | how
    return queue.submit(**how)[0]


def claim(queue, worker="w", lease=30.0):
    return queue.claim(worker, "tiny", lease)


def test_a_job_goes_through_the_queue(queue):
    job = submit(queue, "a red circle")
    assert (job.status, job.attempts, job.started) == ("queued", 0, None)
    mine = claim(queue)
    assert (mine.id, mine.status, mine.attempts, mine.asked) == (job.id, "running", 1, {"prompt": "a red circle"})
    assert claim(queue, "other") is None
    assert queue.beat(mine, stage="sampling", step=2, steps=5, preview=b"\0picture")
    seen = queue.get(job.id)
    assert (seen.stage, seen.step, seen.steps, seen.preview) == ("sampling", 2, 5, b"\0picture")
    assert seen.revision == mine.revision + 1
    assert queue.beat(mine) and queue.get(job.id).revision == seen.revision  # nothing is new
    assert queue.complete(mine, result="video.mp4", size=7, seconds="2")
    done = queue.get(job.id)
    assert (done.status, done.result, done.bytes, done.step) == ("completed", "video.mp4", 7, 5)
    assert done.shown == {"seconds": "2"} and done.preview is None
    assert done.created <= done.started <= done.finished
    assert not queue.complete(mine, result="again.mp4", size=1)
    assert queue.counts() == {"queued": 0, "running": 0, "completed": 1, "failed": 0}


def test_higher_priorities_come_first_then_older_ones(queue):
    jobs = [submit(queue, priority=p) for p in (0, 5, 0, 5)]
    assert [queue.position(job) for job in jobs] == [2, 0, 3, 1]
    assert [claim(queue).id for _ in jobs] == [jobs[i].id for i in (1, 3, 0, 2)]
    assert queue.position(queue.get(jobs[0].id)) is None


def test_workers_take_jobs_of_their_model(queue):
    job = submit(queue, model="5b")
    assert claim(queue) is None
    assert queue.claim("w", "5b").id == job.id


def test_another_worker_takes_over_and_the_slow_one_changes_nothing(queue):
    job = submit(queue)
    slow = claim(queue, "slow", SHORT)
    time.sleep(SHORT + 0.1)
    other = claim(queue, "other")
    assert (other.id, other.attempts) == (job.id, 2)
    assert not queue.beat(slow, step=4)
    assert not queue.complete(slow, result="slow.mp4", size=1)
    assert not queue.fail(slow, "x", "y") and not queue.give_back(slow)
    assert queue.complete(other, result="other.mp4", size=1)
    assert queue.get(job.id).result == "other.mp4"


def test_a_worker_that_claims_its_own_lost_job_again_holds_only_the_new_claim(queue):
    submit(queue)
    lost = claim(queue, lease=SHORT)
    time.sleep(SHORT + 0.1)
    again = claim(queue)
    assert not queue.beat(lost) and queue.beat(again)


def test_a_job_that_takes_down_worker_after_worker_fails(queue):
    job = submit(queue)
    for attempt in (1, 2, 3):
        assert claim(queue, lease=SHORT).attempts == attempt
        time.sleep(SHORT + 0.1)
    assert claim(queue) is None
    failed = queue.get(job.id)
    assert (failed.status, failed.error_code) == ("failed", "worker_lost")


def test_a_worker_that_is_known_to_be_dead_holds_nothing(queue):
    submit(queue)
    theirs = submit(queue, priority=1)
    queue.claim("alive", "tiny", 3000)
    queue.seen("dead", "tiny", "working")
    mine = claim(queue, "dead", lease=3000)
    assert claim(queue) is None
    queue.died("dead")
    again = claim(queue)
    assert (again.id, again.attempts) == (mine.id, 2) and claim(queue) is None
    assert not queue.beat(mine) and queue.workers() == {} and queue.get(theirs.id).worker == "alive"


def test_a_job_that_is_given_back_waits_and_counts_no_attempt(queue):
    job = submit(queue)
    mine = claim(queue)
    assert queue.give_back(mine, wait=SHORT, stage="the disk is full")
    waiting = queue.get(job.id)
    assert (waiting.status, waiting.stage, waiting.attempts) == ("queued", "the disk is full", 0)
    assert claim(queue) is None
    time.sleep(SHORT + 0.1)
    assert claim(queue, "other").attempts == 1


def test_cancelling_and_deleting_stop_the_worker(queue):
    one, two = submit(queue), submit(queue)
    first, second = claim(queue), claim(queue)
    assert queue.cancel(one.id) and not queue.cancel(one.id)
    assert not queue.beat(first)
    assert queue.get(one.id).error_code == "cancelled"
    assert queue.delete(two.id) and not queue.delete(two.id)
    assert not queue.beat(second) and queue.get(two.id) is None


def test_a_request_key_makes_one_job(queue):
    first, new = queue.submit(
        id="video_1", owner="me", model="tiny", asked={}, shown={}, request_key="k", fingerprint="f"
    )
    again, second = queue.submit(
        id="video_2", owner="me", model="tiny", asked={}, shown={}, request_key="k", fingerprint="f"
    )
    assert (new, second, again.id) == (True, False, first.id)
    with pytest.raises(KeyUsed, match="used before"):
        submit(queue, request_key="k", fingerprint="other")
    assert submit(queue, owner="you", request_key="k", fingerprint="f").id != first.id
    assert queue.of_request("me", "k").id == first.id and queue.of_request("me", "z") is None


def test_limits_of_an_owner_and_of_all(queue_url):  # noqa: F811
    queue = Queue(queue_url, capacity=3)
    submit(queue, most=2), submit(queue, most=2)
    with pytest.raises(Full, match="2 of your jobs"):
        submit(queue, most=2)
    submit(queue, owner="you", most=2)
    with pytest.raises(Full, match="3 jobs wait"):
        submit(queue, owner="he")
    mine = claim(queue)
    with pytest.raises(Full, match="2 of your jobs"):  # one runs
        submit(queue, owner=mine.owner, most=2)
    assert queue.counts()["queued"] == 2


def test_owners_see_their_own_jobs(queue):
    mine, yours = submit(queue), submit(queue, owner="you")
    assert queue.get(mine.id, "you") is None and queue.get(yours.id, "you").id == yours.id
    assert [job.id for job in queue.page("you", after=None, limit=9, newest_first=True)] == [yours.id]


def test_pages(queue):
    jobs = [submit(queue) for _ in range(5)]
    first = queue.page("me", after=None, limit=2, newest_first=True)
    assert [job.id for job in first] == [jobs[4].id, jobs[3].id]
    rest = queue.page("me", after=first[-1].seq, limit=9, newest_first=True)
    assert [job.id for job in rest] == [job.id for job in reversed(jobs[:3])]
    assert [job.id for job in queue.page("me", after=jobs[3].seq, limit=9, newest_first=False)] == [jobs[4].id]


@pytest.mark.parametrize("keep, left", [(dict(count=2), 2), (dict(bytes=25), 2), (dict(age=60.0), 5), ({}, 5)])
def test_retention(queue, keep, left):
    jobs = [submit(queue) for _ in range(6)]
    for _ in jobs[:5]:
        queue.complete(claim(queue), result="v.mp4", size=10)
        time.sleep(0.002)
    gone = queue.expire(Retention(**keep))
    assert sorted(gone) == sorted(job.id for job in jobs[: 5 - left])  # the oldest; what waits stays
    assert queue.counts() == {"queued": 1, "running": 0, "completed": left, "failed": 0}


def test_retention_by_age(queue):
    job = submit(queue)
    queue.fail(claim(queue), "x", "y")
    time.sleep(0.2)
    assert queue.expire(Retention(age=0.1)) == [job.id]


def test_workers_are_seen_for_a_while(queue):
    queue.seen("a", "tiny", "loading")
    queue.seen("a", "tiny", "idle")
    assert queue.workers() == {"a": "idle"} and queue.workers(within=0.0) == {}
    queue.gone("a")
    assert queue.workers() == {}


def test_what_is_kept_is_made_once(queue):
    assert queue.kept("secret", lambda: "one") == queue.kept("secret", lambda: "two") == "one"
    queue.keep("active", [1])
    queue.keep("active", [2])
    assert queue.kept("active", lambda: "") == "[2]"


def test_what_the_apis_show_is_added_to(queue):
    job = submit(queue)
    assert queue.show(job.id, a=1) and queue.show(job.id, b=2) and not queue.show("none", a=1)
    assert queue.get(job.id).shown == {"a": 1, "b": 2}


def test_the_clock_is_the_databases(queue):
    assert abs(queue.now() - time.time()) < 5  # one machine here


def test_no_job_is_taken_twice(queue, queue_url):  # noqa: F811
    ids = [submit(queue).id for _ in range(40)]
    spawn = multiprocessing.get_context("spawn")
    barrier, taken = spawn.Barrier(3), spawn.Queue()
    workers = [spawn.Process(target=take_all, args=(queue_url, f"w{i}", barrier, taken)) for i in range(3)]
    for worker in workers:
        worker.start()
    found = [taken.get(timeout=60) for _ in ids]
    for worker in workers:
        worker.join(60)
    assert sorted(found) == sorted(ids) and taken.empty()


@pytest.mark.parametrize("url", ["mysql://a/b", "nonsense", "sqlite://", "sqlite:///:memory:"])
def test_other_urls_are_refused(url):
    with pytest.raises(ValueError, match="queue"):
        Queue(url)


def test_passwords_are_not_shown():
    with pytest.raises(ValueError) as caught:
        Queue("mysql://me:secret@host/name")
    assert "secret" not in str(caught.value)
    with pytest.raises(Unavailable) as refused:
        Queue("postgresql://me:secret@127.0.0.1:1/name", patience=2)
    assert "secret" not in str(refused.value)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "queue.sqlite").write_text("no database, but text that is long enough to be looked at" * 20)
    with pytest.raises((OSError, ValueError), match="queue"):
        Queue(f"sqlite:///{tmp_path}/queue.sqlite")
    with pytest.raises(OSError, match="cannot be used"):
        Queue(f"sqlite:///{tmp_path}/none/queue.sqlite")


def test_a_queue_of_another_version_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path}/queue.sqlite"
    queue = Queue(url)
    queue.keep("version", 0)
    with pytest.raises(ValueError, match="version"):
        Queue(url)


def test_a_locked_database_is_a_sentence(tmp_path):
    file = tmp_path / "queue.sqlite"
    queue = Queue(f"sqlite:///{file}", patience=0.2)
    job = submit(queue)
    other = sqlite3.connect(file)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked"):
        submit(queue)
    assert queue.get(job.id).id == job.id  # who only reads does not wait
    other.rollback()
    assert submit(queue).id


def test_the_benchmark_claims():
    found = asyncio.run(benchmark_server.claim(Setting(), jobs=200))
    assert len(found) == 1 and float(found[0].value) > 0
