"""What several tests of the server share: a queue in each database."""

import itertools
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
    """The main function of a process; it notes in a file what it completed."""
    from cogvx_jax.serving.queue import Queue
    from cogvx_jax.serving.store import Store
    from cogvx_jax.serving.worker import Worker

    def report(line):
        with open(log, "a") as file:
            file.write(f"{line}\n")

    Worker(Queue(url), Store(folder), fake(**how), model="tiny", name=name, lease=lease, report=report).run()
