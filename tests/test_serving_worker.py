"""Workers: what they make, what stops them, and that no job is lost when they are killed."""

import errno
import multiprocessing
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("sqlalchemy", reason="the queue needs the extra `serve`")

from serving import fake, fake_worker, files_of, postgres_url, queue_url, submit  # noqa: F401

from cogvx_jax.serving import worker as workers
from cogvx_jax.serving.queue import Queue
from cogvx_jax.serving.store import Store
from cogvx_jax.serving.worker import Stopped, Worker


@pytest.fixture
def queue(tmp_path):
    return Queue(f"sqlite:///{tmp_path}/queue.sqlite")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def run(queue, store, make, **how):
    lines = []
    Worker(queue, store, make, model="tiny", report=lines.append, **how).run(until_idle=True)
    return lines


def test_a_job_is_made(queue, store):
    job = submit(queue, store, asked={"files": {"image": "image.png"}})
    folder = store.folder_of(job.id)
    (folder / "image.png").write_text("picture")
    (folder / "video-7.mp4").write_text("of an earlier attempt")
    run(queue, store, fake(seconds=0.1))
    done = queue.get(job.id)
    assert (done.status, done.result, done.step, done.steps) == ("completed", "video-1.mp4", 5, 5)
    assert files_of(folder) == ["image.png", "video-1.mp4"]
    assert done.shown["inference_time_s"] > 0 and done.bytes >= 38_000
    assert queue.workers() == {}  # it has ended


def fails(error):
    def make(job, folder, out, progress):
        out.write_text("half")
        raise error

    return make


@pytest.mark.parametrize(
    "error, code, message",
    [
        (ValueError("the image is missing"), "generation_failed", "the image is missing"),
        (OSError("no such file"), "generation_failed", "no such file"),
        (KeyError("x"), "server_error", workers.BUG),  # of this program: its words are for the log
        (Exception("secret"), "server_error", workers.BUG),
    ],
)
def test_what_fails_is_said(queue, store, error, code, message):
    job, after = submit(queue, store), submit(queue, store)
    lines = run(queue, store, fails(error))
    failed = queue.get(job.id)
    assert (failed.status, failed.error_code, failed.error_message) == ("failed", code, message)
    assert files_of(store.folder_of(job.id)) == []
    assert queue.get(after.id).status == "failed"  # the worker went on
    assert str(error) in "".join(lines)


def test_a_full_disk_lets_the_job_wait(queue, store):
    job = submit(queue, store)
    wrapped = OSError("could not be written")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    run(queue, store, fails(wrapped))
    waiting = queue.get(job.id)
    assert (waiting.status, waiting.stage, waiting.attempts) == ("queued", "waiting: the disk is full", 0)
    assert waiting.due - queue.now() > 30


def test_a_full_disk_is_found_among_all_causes():
    full, other = OSError(errno.ENOSPC, "No space left on device"), ValueError("x")
    other.__cause__, other.__context__ = KeyError("y"), full
    assert workers.is_full(other) and not workers.is_full(KeyError("y")) and not workers.is_full(None)
    one, another = ValueError("one"), ValueError("another")
    one.__context__, another.__cause__ = another, one  # as of `raise one from None` where another came of it
    assert not workers.is_full(one)


def test_a_cancelled_job_stops_at_a_step(queue, store):
    job, steps = submit(queue, store), []

    def make(job, folder, out, progress):
        queue.cancel(job.id)
        for step in range(1000):
            time.sleep(0.01)
            steps.append(step)
            progress.tell(step=step)

    run(queue, store, make)
    assert len(steps) < 500 and queue.get(job.id).error_code == "cancelled"


def test_a_job_whose_files_are_gone_fails(queue, store):
    job = submit(queue, store)
    store.remove(job.id)
    run(queue, store, fake())
    assert "not in" in queue.get(job.id).error_message


def test_a_worker_that_ends_gives_its_job_back(queue, store):
    job = submit(queue, store)
    made = []

    def make(job, folder, out, progress):
        worker.end()
        with pytest.raises(Stopped):
            progress.check()
        made.append(progress.why)
        progress.check()

    worker = Worker(queue, store, make, model="tiny")
    worker.run()
    assert made == [Stopped.ENDING]
    assert (queue.get(job.id).status, queue.get(job.id).attempts) == ("queued", 0)


WORKER = """
import threading
from cogvx_jax.cli.work import sigterm

ended = threading.Event()
with sigterm(ended.set):
    print("begun", flush=True)
    while not ended.wait(0.05):
        pass
"""


@pytest.mark.parametrize("by", ["signal", "input"])
def test_a_worker_ends_well_with_its_server(by):
    """By SIGTERM while its standard input is open, and when that is closed."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = os.environ | {"COGVX_PARENT": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", WORKER], env=environment, text=True, **pipes) as process:
        assert process.stdout.readline() == "begun\n"
        if by == "signal":
            process.terminate()
        else:
            process.stdin.close()
        status, said = process.wait(60), process.stderr.read()
    assert status == 0 and "Fatal" not in said, said
    assert ("SIGTERM: ends after this step" in said) == (by == "signal")


def test_the_lease_is_renewed_while_nothing_is_told(queue, store):
    """As while a step compiles, for several leases."""
    job, lease = submit(queue, store), 0.8
    rival = threading.Event()

    def make(job, folder, out, progress):
        until = time.monotonic() + 3 * lease
        while time.monotonic() < until:
            time.sleep(0.1)
            if queue.claim("rival", "tiny", lease) is not None:
                rival.set()
        out.write_text("video")

    run(queue, store, make, lease=lease)
    assert not rival.is_set() and queue.get(job.id).status == "completed"


def test_a_slow_worker_leaves_the_other_ones_file(queue, store):
    job = submit(queue, store)

    def make(mine, folder, out, progress):
        if mine.attempts == 1:  # stopped until another has made it
            other = queue.database
            with other.writes() as connection:
                connection.exec_driver_sql("UPDATE jobs SET due = 0")
            run(queue, store, fake(steps=1), name="other")
        out.write_text("late")

    run(queue, store, make, name="slow", lease=3000)
    done = queue.get(job.id)
    assert (done.status, done.result, done.worker) == ("completed", "video-2.mp4", "other")
    assert files_of(store.folder_of(job.id)) == ["video-2.mp4"]


def test_other_folders_are_removed(store):
    young, old, known = (f"video_{letter * 32}" for letter in "abc")
    for id in (young, old, known):
        store.make(id)
    for id in (old, known):
        os.utime(store.folder_of(id), (1, 1))
    assert store.remove_others([known]) == [old]
    assert sorted(store.ids()) == [young, known]


@pytest.mark.parametrize("id", ["../jobs", "video_", "video_" + "A" * 32, "video_" + "a" * 31 + "/"])
def test_other_ids_are_no_folders(store, id):
    with pytest.raises(ValueError, match="no id"):
        store.folder_of(id)


class Crew:
    """Processes of fake workers that are killed at random and replaced."""

    def __init__(self, url, folder, log, count=3):
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["serving", "cogvx_jax.serving.worker"])
        self._arguments, self._made = (url, folder), 0
        self._log, self.random = log, random.Random(0)
        self.processes = [self._new() for _ in range(count)]

    def _new(self):
        self._made += 1
        process = self._context.Process(target=fake_worker, args=(*self._arguments, f"w{self._made}", self._log))
        process.start()
        return process

    def hurt(self):
        """Kills one, or lets it sleep for longer than its lease."""
        place = self.random.randrange(len(self.processes))
        process = self.processes[place]
        if self.random.random() < 0.2:
            os.kill(process.pid, signal.SIGSTOP)
            threading.Timer(1.5, os.kill, (process.pid, signal.SIGCONT)).start()
        else:
            os.kill(process.pid, signal.SIGKILL)
        self.processes[place] = self._new()

    def end(self):
        time.sleep(1.6)  # those that sleep wake up
        for process in [*self.processes, *multiprocessing.active_children()]:
            process.kill()
            process.join()


def jobs_survive(url, tmp_path, kills):
    """Every job is completed once, with one whole file, though workers are killed."""
    queue, store, log = Queue(url), Store(tmp_path), tmp_path / "log"
    jobs = [submit(queue, store) for _ in range(3 * kills)]
    crew = Crew(url, tmp_path, log)
    try:
        for _ in range(kills):
            time.sleep(crew.random.uniform(0.05, 0.4))
            crew.hurt()
        until = time.monotonic() + 120
        while queue.counts()["completed"] < len(jobs) and time.monotonic() < until:
            time.sleep(0.2)
    finally:
        crew.end()
    for job in queue.several([job.id for job in jobs]).values():
        assert job.status == "completed", job
        folder = store.folder_of(job.id)
        assert (folder / job.result).read_text() == f"{job.id}\n" * 1000
    finished = re.findall(r"^(video_\w+): made in", log.read_text(), flags=re.M)
    assert len(finished) == len(set(finished)) and len(finished) > kills
    if url.startswith("sqlite"):
        assert sqlite3.connect(tmp_path / "queue.sqlite").execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_killed_workers_lose_no_job(queue_url, tmp_path):  # noqa: F811
    jobs_survive(queue_url, tmp_path, kills=8)


@pytest.mark.full
def test_a_hundred_killed_workers_lose_no_job(queue_url, tmp_path):  # noqa: F811
    jobs_survive(queue_url, tmp_path, kills=100)
