"""Files of jobs in a bucket: a server and workers, each with a folder of its own."""

import contextlib
import itertools
import os
import signal
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the server needs the extra `serve`")
pytest.importorskip("httpx", reason="tests of the server need the extra `test-serve`")

import fsspec
import httpx
from bucket import Bucket
from page_desk import clip
from serving import CIRCLE, Site, create, data_url, fake_video, files_of, free_port, picture, submit
from test_buckets import finish, start

from cogvx_jax.cli.work import WorkFlags, work
from cogvx_jax.data.decode import stream_video
from cogvx_jax.pipelines.model import load_spec
from cogvx_jax.serving.bucket import KEPT, LISTED, MARK, BucketStore, open_store
from cogvx_jax.serving.queue import Queue
from cogvx_jax.serving.store import STEPS, YOUNG, Unreachable
from cogvx_jax.serving.worker import WAIT, Stopped, Worker

NUMBERS = itertools.count()


@pytest.fixture
def url():
    """A bucket in the memory of this process, which no other test sees."""
    return f"memory://bucket{next(NUMBERS)}/videos"


@pytest.fixture
def stores(url, tmp_path):
    """Of two machines."""
    return BucketStore(tmp_path / "a", url), BucketStore(tmp_path / "b", url)


@pytest.fixture
def queue(tmp_path):
    made = Queue(f"sqlite:///{tmp_path}/queue.sqlite")
    yield made
    made.close()


def objects(store):
    return sorted(path.partition("/jobs/")[2].partition("/")[2] for path in store._system.find(store._root))


def published(queue, store, **files):
    """A job that is made of these files."""
    job = submit(queue, store, asked={"files": {name.partition(".")[0]: name for name in files}})
    for name, data in files.items():
        (store.folder_of(job.id) / name).write_bytes(data)
    store.publish(job.id)
    return job


def once(queue, store, make, name):
    """Lets a worker make what waits."""
    said = []
    Worker(queue, store, make, model="tiny", name=name, report=said.append).run(until_idle=True)
    return said


@contextlib.contextmanager
def working(site, folder, url, make):
    worker = Worker(site.queue, BucketStore(folder, url), make, model="tiny", name=folder.name)
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    yield worker
    worker.end()
    thread.join(20)


def test_a_server_and_two_workers_share_no_folder(url, tmp_path):
    held = []

    def make(job, folder, out, progress):
        assert not job.inputs or (folder / job.inputs[0]).is_file()
        held.append(job.worker)
        fake_video(steps=2)(job, folder, out, progress)

    (tmp_path / "server").mkdir()
    site = Site(tmp_path / "server", works=False, results=url, spec=load_spec("1.5-5b-i2v"))
    with working(site, tmp_path / "one", url, make), working(site, tmp_path / "two", url, make):
        with httpx.Client(base_url=site.url, timeout=30) as client:
            small = {"width": 64, "height": 64, "num_frames": 17, "input_reference": data_url(picture())}
            ids = [create(client, **small, seed=seed)["id"] for seed in range(4)]
            assert [site.wait(id).status for id in ids] == ["completed"] * 4
            id = ids[1]
            whole = client.get(f"/v1/videos/{id}/content")
            part = client.get(f"/v1/videos/{id}/content", headers={"Range": "bytes=10-19"})
            assert whole.status_code == 200 and (part.status_code, part.content) == (206, whole.content[10:20])
            (tmp_path / "v.mp4").write_bytes(whole.content)
            with stream_video(tmp_path / "v.mp4") as stream:
                assert next(stream.at([0])).shape == (64, 64, 3)
            signed = client.get(f"/v1/videos/{id}").json()["url"]
            assert httpx.get(signed).content == whole.content
            assert client.get(f"/v1/videos/{id}/content?variant=gif").content.startswith(b"GIF8")
            again = client.post(f"/v1/videos/{id}/remix", json={"prompt": CIRCLE}).json()["id"]
            assert site.wait(again).status == "completed"
            assert client.delete(f"/v1/videos/{id}").status_code == 200
    assert set(held) == {"one", "two"}
    names = objects(site.store)
    assert len(names) == 4 * 3 and id not in str(names)  # of each job its mark, its picture and its video
    site.close()


def test_steps_that_a_worker_saved_are_those_that_another_goes_on_from(queue, stores):
    one, two = stores
    job, seen = published(queue, one, **{"image.png": b"a picture"}), []

    def make(job, folder, out, progress):
        steps = folder / STEPS
        seen.append(steps.read_bytes() if steps.exists() else None)
        assert (folder / "image.png").read_bytes() == b"a picture"
        steps.write_bytes(f"by {job.worker}".encode())
        progress.keep(steps)
        if len(seen) < 3:
            progress.stop(Stopped.ENDING)
        progress.check()
        out.write_bytes(b"a video")

    for name, store in (("one", one), ("two", two), ("one", one)):
        Worker(queue, store, make, model="tiny", name=name)._turn()
    assert seen == [None, b"by one", b"by two"]  # not its own, which are older
    done = queue.get(job.id)
    assert done.status == "completed" and objects(one) == ["image.png", MARK, done.result]
    assert two.fetch(job.id, done.result).read_bytes() == b"a video"


def test_a_worker_that_was_only_slow_leaves_no_video(queue, stores):
    job = published(queue, stores[0])

    def make(job, folder, out, progress):
        out.write_bytes(b"a video")
        queue.cancel(job.id)

    assert "another worker had it" in once(queue, stores[1], make, "slow")[-1]
    assert objects(stores[0]) == [MARK] and queue.get(job.id).status == "failed"


def test_a_worker_of_another_bucket_says_so(queue, stores, tmp_path):
    job = published(queue, stores[0])
    once(queue, BucketStore(tmp_path / "c", "memory://another/videos"), fake_video(), "w")
    assert queue.get(job.id).error_message == f"there is no job {job.id} in memory://another/videos"


@pytest.mark.parametrize("broken", ["ls", "put_file"])
def test_a_bucket_that_is_away_lets_the_job_wait(queue, stores, broken, monkeypatch, tmp_path):
    job = published(queue, stores[0])

    def away(*_, **__):
        raise RuntimeError("Service Unavailable\n<html>")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), broken, away)
    with pytest.raises(Unreachable, match=r"^memory://bucket\d+/videos cannot be reached now: Service Unavailable$"):
        stores[0].keep(job.id, tmp_path / "any") if broken == "put_file" else stores[0].bring(job.id, [])
    said = once(queue, stores[1], lambda job, folder, out, progress: out.write_bytes(b"a video"), "w")
    now = queue.get(job.id)
    assert (now.status, now.attempts, now.stage) == ("queued", 0, "waiting: the bucket cannot be reached"), said
    assert WAIT - 5 < now.due - queue.now() <= WAIT
    monkeypatch.undo()
    assert objects(stores[0]) == [MARK]


def test_copies_go_when_they_are_not_used_and_jobs_when_they_are_deleted(queue, stores):
    one, two = stores
    job = published(queue, one, **{"image.png": b"a picture"})
    two.bring(job.id, job.inputs)
    two.forget()
    assert files_of(two.folder) == [f"jobs/{job.id}/image.png"]
    for store in stores:
        os.utime(store.folder_of(job.id), (0, time.time() - KEPT - 60))
        store.forget()
        assert files_of(store.folder) == []
    assert one.ids() == two.ids() == [job.id]
    assert two.fetch(job.id, "image.png").read_bytes() == b"a picture"
    with pytest.raises(FileNotFoundError):
        two.fetch(job.id, "none.png")
    one.remove(job.id)
    assert one.ids() == objects(one) == []
    with pytest.raises(FileNotFoundError, match="there is no job"):
        two.bring(job.id, [])


def test_files_without_a_row_go_after_an_hour(queue, stores, monkeypatch):
    one, two = stores
    kept, lost = published(queue, two), published(queue, two, **{"image.png": b"a picture"})
    queue.delete(lost.id)
    now = time.monotonic()
    assert one.remove_others([kept.id]) == []
    monkeypatch.setattr("cogvx_jax.serving.bucket.time.monotonic", lambda: now + YOUNG + LISTED)
    assert one.remove_others([kept.id]) == [lost.id] and one.ids() == [kept.id]


def test_what_is_no_bucket_is_refused(tmp_path):
    for results, said in (
        (str(tmp_path), "--results is a bucket such as gs://NAME/videos, got .*; a folder is given by --store"),
        ("memory://here", "memory://here is no place known here; give a path, or gs:// or s3://"),
        ("ftp://here", "ftp://here is no place known here"),
    ):
        with pytest.raises(ValueError, match=said):
            open_store(tmp_path / "store", results)
        with pytest.raises(ValueError, match=said):
            work(run=WorkFlags(store=tmp_path / "store", results=results, until_idle=True))


@pytest.mark.full
def test_serve_and_workers_over_googles_storage(tmp_path, monkeypatch):
    """Processes of three machines: the server and two workers, the first of which is killed."""
    pytest.importorskip("gcsfs", reason="needs gcsfs: pip install gcsfs")
    served, port, url = Bucket(), free_port(), f"sqlite:///{tmp_path}/queue.sqlite"
    running = []
    with served:
        where = lambda name: ["--store", tmp_path / name, "--results", "gs://results/videos", "--queue", url]  # noqa: E731
        running.append(start(served, "serve", "--port", port, "--workers", 0, "--no-page", *where("server")))
        running.append(start(served, "work", *where("one"), "--lease", 2, "--save-every", 0.01))
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                wait_until(lambda: client.get("/ready").status_code == 200)
                files = {"video": Path(clip(tmp_path / "in.mp4")).read_bytes()}
                data = {"prompt": CIRCLE, "seed": 1, "num_inference_steps": 50, "strength": 0.9}
                id = client.post("/v1/videos", data=data, files=files).json()["id"]
                wait_until(lambda: any(name.endswith(STEPS) for _, name in served.objects))
                running[1].kill()
                running.append(start(served, "work", *where("two"), "--lease", 2, "--until-idle"))
                wait_until(lambda: client.get(f"/v1/videos/{id}").json()["status"] == "completed")
                found = client.get(f"/v1/videos/{id}/content", headers={"Range": "bytes=4-7"})
                assert (found.status_code, found.content) == (206, b"ftyp")
                assert len([name for _, name in served.objects if id in name]) == 3
                assert "begins anew" not in finish(running[2])
                assert client.delete(f"/v1/videos/{id}").status_code == 200
                assert not [name for _, name in served.objects if id in name]
            running[0].send_signal(signal.SIGTERM)
            finish(running[0], 143)
        finally:
            for process in running:
                process.kill()
    assert served.unknown == []


def wait_until(holds, seconds=600):
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.TransportError, KeyError):
            if holds():
                return
        assert time.monotonic() < until
        time.sleep(0.1)
