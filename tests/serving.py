"""What several tests of the server share: a queue in each database."""

import base64
import io
import itertools
import re
import socket
import threading
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from cogvx_jax.scripts import postgres

NAMES = itertools.count()
CREATE, GENERATE = "/v1/videos", "/api/paas/v4/videos/generations"
CIRCLE = "a red circle moves right on a white background"


def picture(kind="PNG", size=(64, 64)):
    """A picture file of noise; the size is height and width."""
    file = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)).save(file, kind)
    return file.getvalue()


def data_url(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def create(client, **fields):
    answer = client.post(CREATE, json={"prompt": CIRCLE} | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(answer, status, code=None, words=""):
    """An error in OpenAI's shape."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and re.search(words, error["message"]), error
    assert code is None or error["code"] == code, error
    return error


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
    from cogvx_jax.serving.jobs import new_id

    id = new_id()
    store.make(id)
    asked = {"prompt": prompt, "options": {}} | how.pop("asked", {})
    how = {"model": "tiny", "shown": {}} | how
    return queue.submit(id=id, owner=owner, asked=asked, **how)[0]


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
    """A server in a thread of this process, with a worker in another unless told otherwise.

    results: a bucket for files.
    page: mount the web page, too, which needs the extra `ui`; `improve` rewrites its prompts.
    """

    def __init__(self, folder, make=None, keys=None, url=None, works=True, limit=2**20, page=False, lease=30.0, **how):
        from cogvx_jax.pipelines.model import load_spec
        from cogvx_jax.serving.adapters import Adapters
        from cogvx_jax.serving.bucket import BucketStore
        from cogvx_jax.serving.http import make_app, run
        from cogvx_jax.serving.keys import Keys
        from cogvx_jax.serving.queue import Queue
        from cogvx_jax.serving.service import Rules, Service
        from cogvx_jax.serving.store import Store
        from cogvx_jax.serving.worker import Worker

        self.queue = Queue(url or f"sqlite:///{folder}/queue.sqlite", capacity=how.pop("capacity", 1000), patience=2.0)
        results = how.pop("results", None)
        self.store = Store(folder) if results is None else BucketStore(folder, results)
        loras, enhance, improve = (how.pop(name, None) for name in ("loras", "enhance", "improve"))
        guarded = {name: how.pop(name) for name in ("silent", "hosts") if name in how}
        about = dict(spec=how.pop("spec", None) or load_spec("tiny"), parts=how.pop("parts", None))
        rules = Rules(**how)
        about |= dict(adapters=Adapters(loras), rules=rules, enhance=enhance)
        self.service = Service(self.queue, self.store, model="tiny", **about)
        self.app = make_app(self.service, Keys(keys), limit=limit, **guarded)
        if page:
            from cogvx_jax.serving.page.actions import Desk
            from cogvx_jax.serving.page.app import mount

            mount(self.app, Desk(self.service, Keys(keys), improve), limit)
        self.worker = Worker(self.queue, self.store, make or fake_video(), model="tiny", lease=lease)
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


def site_fixture(**how):
    """A fixture of a module: a server, told as `Site` is."""

    @pytest.fixture(scope="module")
    def site(tmp_path_factory):
        made = Site(tmp_path_factory.mktemp("site"), **how)
        yield made
        made.close()

    return site


def client_fixture():
    """A fixture of a module: a client of its `site`."""

    @pytest.fixture(scope="module")
    def client(site):
        import httpx

        with httpx.Client(base_url=site.url, timeout=30) as found:
            yield found

    return client


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
