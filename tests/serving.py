"""What several tests of the server share: a queue in each database."""

import itertools
import socket
import threading
import time
from pathlib import Path

import postgres
import pytest

NAMES = itertools.count()


@pytest.fixture(scope="session")
def postgres_url():
    if postgres.find("initdb") is None:
        pytest.skip("no Postgres is installed here")
    with postgres.running() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def queue_url(request, tmp_path):
    """The URL of an empty queue."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/queue.sqlite"
    return new_schema(request.getfixturevalue("postgres_url"))


def new_schema(url):
    """The URL of the same server with empty tables; a database of its own would be 300 files."""
    import sqlalchemy as sa

    name = f"queue{next(NAMES)}"
    with sa.create_engine(url, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    return f"{url}&options=-csearch_path%3D{name}"


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def submit(queue, store, prompt="p", owner="me", **how):
    """A job with its folder."""
    from cogvx_jax.serving.queue import new_id

    id = new_id()
    store.make(id)
    asked = {"prompt": prompt, "options": {}} | how.pop("asked", {})
    return queue.submit(id=id, owner=owner, model="tiny", asked=asked, shown={}, **how)[0]


def fake(steps=5, seconds=0.01):
    """A maker that samples nothing: a video is its job's id."""
    from cogvx_jax.temporaries import temporary_beside

    def make(job, folder, out, progress):
        for step in range(steps):
            time.sleep(seconds)
            progress.tell(stage="sampling", step=step + 1, steps=steps)
        with temporary_beside(out) as partial:
            partial.write_text(f"{job.id}\n" * 1000)

    return make


def fake_worker(url, folder, name, log, lease=1.0, **how):
    """The main function of a process; it notes in a file what it completed. It never gives a job up."""
    from cogvx_jax.serving.queue import Queue
    from cogvx_jax.serving.store import Store
    from cogvx_jax.serving.worker import Worker

    def report(line):
        with open(log, "a") as file:
            file.write(f"{line}\n")

    queue = Queue(url, attempts=10**6)
    Worker(queue, Store(folder), fake(**how), model="tiny", name=name, lease=lease, report=report).run()


def fake_video(steps=4, seconds=0.02):
    """A maker that samples nothing and writes a small mp4 with the job's seed as its grey."""
    import numpy as np

    from cogvx_jax.data.writer import VideoWriter

    def make(job, folder, out, progress):
        if "fail" in job.asked["prompt"]:
            raise ValueError("the sampler met numbers that are not finite")
        for step in range(steps):
            time.sleep(seconds)
            progress.tell(stage="sampling", step=step + 1, steps=steps, preview=b"\xff\xd8\xffpreview")
        frames = np.full((job.asked["options"]["frames"], 64, 64, 3), job.asked["options"]["seed"] % 256, np.uint8)
        frames[:, :32] = np.arange(64, dtype=np.uint8)[:, None] * 4
        with VideoWriter(out, fps=8) as writer:
            writer.write(frames)

    return make


class Site:
    """A server in a thread of this process, with a worker in another unless told otherwise."""

    def __init__(self, folder, make=None, keys=None, url=None, works=True, limit=2**20, **how):
        from cogvx_jax.pipelines.model import load_spec
        from cogvx_jax.serving.adapters import Adapters
        from cogvx_jax.serving.http import make_app, run
        from cogvx_jax.serving.keys import Keys
        from cogvx_jax.serving.queue import Queue
        from cogvx_jax.serving.service import Rules, Service
        from cogvx_jax.serving.store import Store
        from cogvx_jax.serving.worker import Worker

        self.queue = Queue(url or f"sqlite:///{folder}/queue.sqlite", capacity=how.pop("capacity", 1000), patience=2.0)
        self.store = Store(folder)
        loras, enhance = how.pop("loras", None), how.pop("enhance", None)
        spec = how.pop("spec", None) or load_spec("tiny")
        guarded = {name: how.pop(name) for name in ("silent", "hosts") if name in how}
        rules = Rules(**how)
        service = dict(spec=spec, adapters=Adapters(loras), rules=rules, enhance=enhance)
        self.service = Service(self.queue, self.store, model="tiny", **service)
        self.app = make_app(self.service, Keys(keys), limit=limit, **guarded)
        self.worker = Worker(self.queue, self.store, make or fake_video(), model="tiny")
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = run(self.app, "", 0)
        threads = [threading.Thread(target=self.server.run, kwargs={"sockets": [listening]}, daemon=True)]
        threads += [threading.Thread(target=self.worker.run, daemon=True)] if works else []
        self._threads = threads
        for thread in threads:
            thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def close(self):
        self.worker.end()
        self.server.should_exit = True
        for thread in self._threads:
            thread.join(20)
        self.queue.close()

    def wait(self, id, seconds=30):
        """The job when it has ended."""
        until = time.monotonic() + seconds
        while not (job := self.queue.get(id)).ended:
            assert time.monotonic() < until, job
            time.sleep(0.02)
        return job


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def take_all(url, worker, barrier, taken):
    """Takes jobs until there are none; here, as a process that is spawned cannot import a file of tests."""
    from cogvx_jax.serving.queue import Queue

    queue = Queue(url)
    barrier.wait()
    while (job := queue.claim(worker, "tiny")) is not None:
        taken.put(job.id)
        queue.complete(job, result="v.mp4", size=1)
