"""A worker of two processes, joined over loopback: they make each job together."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sqlalchemy", reason="the queue needs the extra `serve`")

from joined import finish, start
from serving import free_port, submit

import cogvx_jax as cx
from cogvx_jax.cli.work import WorkFlags, work
from cogvx_jax.data.video import read_video
from cogvx_jax.serving.queue import Queue
from cogvx_jax.serving.stepping import STEPS
from cogvx_jax.serving.store import Store

# Each process says in which order it met what.
WORDS = """
import sys, threading
import jax
jax.config.update("jax_num_cpu_devices", 1)
from cogvx_jax.sharding import Exchange, ProcessLost, initialize
initialize()
exchange = Exchange("words")
first = exchange.index == 0
for i in range(3):
    print(exchange.of_first(f"a{i}" if first else "unheard"), file=sys.stderr)
if first:
    exchange.of_first("passed over, as the others do not come")
print(*exchange.of_each(f"b{exchange.index}", "here"), file=sys.stderr)
print(repr(exchange.of_first("")), exchange.is_called() if first else "", file=sys.stderr)
exchange.of_each("", "there")
if not first:
    exchange.call()
exchange.of_each("", "there")
print(exchange.is_called(), file=sys.stderr)
left = exchange._client.key_value_dir_get("words/")
exchange.of_each("", "last")
rounds = {key.split("/")[1] for key, _ in left} - {"3"}  # to which the other may have come by then
print(sorted(rounds), file=sys.stderr)
try:
    exchange.of_each("", f"apart {exchange.index}", patience=0.5)
except ProcessLost as error:
    print(error, file=sys.stderr)
"""


def test_words_between_processes():
    running = start(WORDS)
    said = finish(running, 120)
    assert [process.returncode for process in running] == [0, 0], said
    first, second = ([line for line in text.splitlines() if "Gloo" not in line] for text in said)
    assert first[:6] == ["a0", "a1", "a2", "b0 b1", "'' False", "True"]
    assert second[:6] == ["a0", "a1", "a2", "b0 b1", "''", "True"] or second[4].startswith("''"), second
    assert first[6] == "['2', 'called']"  # words of rounds before are gone
    assert first[7] == second[7] == "another process of this run did not come within 0.5 s"


class Crew:
    """Both processes of `cogvx work --distributed`, a queue, and what is in it."""

    def __init__(self, folder, tmp_path, monkeypatch):
        monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "4")
        self.model, self.store = str(folder), Store(tmp_path / "store")
        self.url = f"sqlite:///{tmp_path}/queue.sqlite"
        self.queue = Queue(self.url)
        self.running = []

    def start(self, *flags):
        where = ["--model", self.model, "--store", self.store.folder, "--queue", self.url, "--lease", 600]
        self.running = start("cogvx_jax.cli", "work", "--distributed", "--mesh", "cfg=2", *where, *flags)

    def submit(self, steps, **more):
        asked = {"options": {"seed": 3, "steps": steps}} | more
        return submit(self.queue, self.store, "a red circle", asked=asked, model=self.model).id

    def wait(self, id, has, seconds=600):
        """The job as soon as `has(job)`."""
        until = time.monotonic() + seconds
        while not has(job := self.queue.get(id)):
            alive = [process.poll() is None for process in self.running]
            assert all(alive) and time.monotonic() < until and not job.ended, (job, self._killed())
            time.sleep(0.02)
        return job

    def _killed(self):
        for process in self.running:
            process.kill()
        return finish(self.running)

    def finish(self, *statuses):
        """What each process said."""
        said = finish(self.running)
        assert [process.returncode for process in self.running] == list(statuses), said
        return said


@pytest.fixture
def crew(small, tmp_path, monkeypatch):
    found = Crew(small("2b")[0], tmp_path, monkeypatch)
    yield found
    for process in found.running:
        process.kill()


def sampled(job):
    return job.step >= 3


def ended(job):
    return job.ended


@pytest.mark.full
def test_a_crew_makes_jobs_cancels_saves_and_goes_on(crew, small, tmp_path):
    made, bad, cancelled, last = (
        crew.submit(4),
        crew.submit(4, files={"video": "none.mp4"}),
        *map(crew.submit, (1000, 3)),
    )
    crew.start("--save-every", "0.001")
    done = crew.wait(made, ended)
    assert done.status == "completed", done.error_message
    failed = crew.wait(bad, ended)
    assert failed.status == "failed" and "none.mp4" in failed.error_message
    running = crew.wait(cancelled, sampled)
    assert running.preview is not None
    crew.queue.cancel(cancelled)
    assert crew.wait(last, ended).status == "completed"  # by the same processes
    saved = crew.submit(1000)
    crew.wait(saved, sampled)
    crew.running[1].send_signal(signal.SIGTERM)  # of all processes, whichever hears of it
    first, second = crew.finish(0, 0)
    assert "has ended" in first and "SIGTERM: ends after this step" in second
    job = crew.queue.get(saved)
    assert (job.status, job.attempts) == ("queued", 0) and (crew.store.folder_of(saved) / STEPS).exists()
    crew.start()
    assert crew.wait(saved, lambda now: now.step > job.step).step > job.step
    on = crew.wait(saved, lambda now: now.stage == "sampling" and now.step > job.step + 1)
    assert on.step < job.step + 200  # not from the beginning
    crew.running[0].send_signal(signal.SIGTERM)
    first, second = crew.finish(0, 0)
    assert "begins anew" not in first + second
    # Last, as jobs go on meanwhile.
    alone = cx.generate(small("2b")[1], "a red circle", seed=3, num_inference_steps=4, progress=False)
    alone.save(tmp_path / "alone.mp4")
    files = crew.store.folder_of(made) / done.result, tmp_path / "alone.mp4"
    first, second = (np.float32(read_video(file)[0]) for file in files)
    assert np.abs(first - second).mean() < 1


@pytest.mark.full
@pytest.mark.parametrize("dies", [0, 1])
def test_a_killed_process_ends_the_others_and_frees_the_job(crew, dies):
    id = crew.submit(1000)
    crew.start()
    crew.wait(id, sampled)
    crew.running[dies].kill()
    said = finish(crew.running, 120)
    other = crew.running[1 - dies]
    assert other.returncode == 2 and "cogvx: another process of this" in said[1 - dies], said
    assert "Traceback" not in said[1 - dies]
    job = crew.queue.claim("another", crew.model)
    if dies == 1:  # though the lease was of ten minutes
        assert job is not None and (job.id, job.attempts) == (id, 2)
    else:
        assert job is None


def children(process):
    """Numbers of the processes that one has started."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")  # of each thread
    return [int(word) for file in tasks for word in file.read_text().split()]


@pytest.mark.full
def test_serve_keeps_a_crew_which_joins_anew_when_one_is_killed(crew):
    httpx, port = pytest.importorskip("httpx"), free_port()
    where = ["--model", crew.model, "--store", crew.store.folder, "--queue", crew.url, "--port", port, "--no-page"]
    crew.running = start("cogvx_jax.cli", "serve", "--distributed", "--mesh", "cfg=2", *where, "--lease", 10)
    url, body = f"http://127.0.0.1:{port}/v1/videos", {"prompt": "a red circle", "num_inference_steps": 2}

    def posted(seconds=600):
        until = time.monotonic() + seconds
        while True:
            try:
                return httpx.post(url, json=body, timeout=60).json()["id"]
            except httpx.TransportError:
                assert time.monotonic() < until, crew._killed()
                time.sleep(0.2)

    assert crew.wait(posted(), ended).status == "completed"
    before = [children(process) for process in crew.running]
    os.kill(before[1][0], signal.SIGKILL)
    assert crew.wait(posted(), ended).status == "completed"
    assert not set(before[0] + before[1]) & {id for process in crew.running for id in children(process)}
    for process in crew.running:
        process.send_signal(signal.SIGTERM)
    first, second = finish(crew.running)
    assert f"127.0.0.1:{port} serves" in first and "this host has process 1 of the worker" in second
    assert "Traceback" not in first + second


def test_processes_that_would_work_alone_are_refused():
    with pytest.raises(ValueError, match="--distributed needs --mesh"):
        work(run=WorkFlags(distributed=True))
