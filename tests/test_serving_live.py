"""A video that is watched while it is decoded, and what its reader sees when it is not finished."""

import io
import threading
import time

import av
import numpy as np
import pytest

pytest.importorskip("sqlalchemy", reason="the server needs the extra `serve`")
pytest.importorskip("httpx", reason="tests of the server need the extra `test-serve`")

import httpx
from serving import CREATE, Site, create, files_of, refused

from cogvx_jax.data.fragments import FragmentedWriter
from cogvx_jax.data.writer import VideoWriter
from cogvx_jax.serving.store import live_of

HALVES = 12  # frames each


def count_frames(data):
    with av.open(io.BytesIO(data)) as container:
        return sum(1 for _ in container.decode(video=0))


def is_fragmented(data):
    return b"moof" in data


class Halves:
    """A maker that writes one half of a video, and waits until it is told to go on."""

    def __init__(self):
        self.half, self.go_on, self.error = threading.Event(), threading.Event(), None

    def __call__(self, job, folder, out, progress):
        frames = np.random.default_rng(0).integers(0, 255, (2, HALVES, 64, 64, 3), np.uint8)
        progress.tell(stage="decoding")
        with VideoWriter(out, fps=8) as writer, FragmentedWriter(live_of(out), fps=8) as live:
            for half in frames:
                writer.write(half)
                live.write(half)
                self.half.set()
                while not self.go_on.wait(0.02):
                    progress.check()
                if self.error is not None:
                    raise self.error


@pytest.fixture
def halves():
    return Halves()


@pytest.fixture
def site(tmp_path, halves):
    made = Site(tmp_path, halves, lease=1.0)
    yield made
    halves.go_on.set()
    made.close()


@pytest.fixture
def client(site):
    with httpx.Client(base_url=site.url, timeout=30) as found:
        yield found


def half_of(answer, stream):
    """The bytes until half of the video is there."""
    assert answer.status_code == 200 and answer.headers["content-type"] == "video/mp4"
    data, until = b"", time.monotonic() + 20
    while not is_fragmented(data) or count_frames(data) < HALVES // 2:
        data += next(stream)
        assert time.monotonic() < until
    return data


def test_fragments_play_before_the_rest_is_there(site, client, halves):
    video = create(client, num_frames=9)
    with client.stream("GET", f"{CREATE}/{video['id']}/content?stream=true") as answer:
        stream = answer.iter_raw()
        first = half_of(answer, stream)
        assert not halves.go_on.is_set() and site.queue.get(video["id"]).status == "running"
        halves.go_on.set()
        data = first + b"".join(stream)
    assert count_frames(data) == 2 * HALVES
    site.wait(video["id"])
    whole = client.get(f"{CREATE}/{video['id']}/content").content
    assert count_frames(whole) == 2 * HALVES and not is_fragmented(whole)
    assert whole.index(b"moov") < whole.index(b"mdat")
    assert client.get(f"{CREATE}/{video['id']}/content?stream=true").content == whole
    until = time.monotonic() + 10
    while len(files := files_of(site.store.folder_of(video["id"]))) > 1:  # the worker tidies up last
        assert time.monotonic() < until, files
        time.sleep(0.02)
    assert files == ["video-1.mp4"]


@pytest.mark.parametrize("end", ["failed", "cancelled", "deleted", "taken over"])
def test_the_answer_breaks_off_where_the_rest_does_not_come(site, client, halves, end):
    id = create(client, num_frames=9)["id"]
    with client.stream("GET", f"{CREATE}/{id}/content?stream=true") as answer:
        stream = answer.iter_raw()
        half_of(answer, stream)
        if end == "failed":
            halves.error = ValueError("numbers are not finite")
            halves.go_on.set()
        elif end == "cancelled":
            client.post(f"{CREATE}/{id}/cancel")
        elif end == "deleted":
            client.delete(f"{CREATE}/{id}")
        else:
            site.queue.died(site.worker.name)
            assert site.queue.claim("another", "tiny").id == id
        with pytest.raises(httpx.RemoteProtocolError):
            b"".join(stream)
    until = time.monotonic() + 10
    while files := files_of(site.store.folder):
        if not [name for name in files if name.endswith(".mp4")]:
            break
        assert time.monotonic() < until, files
        time.sleep(0.02)


def test_a_job_that_ends_before_it_decodes_is_answered_as_ever(tmp_path):
    site = Site(tmp_path, works=False)
    answers = []

    def get(id):
        answers.append(httpx.get(f"{site.url}{CREATE}/{id}/content?stream=true", timeout=30))

    try:
        with httpx.Client(base_url=site.url) as client:
            id = create(client)["id"]
            waiting = threading.Thread(target=get, args=(id,))
            waiting.start()
            client.post(f"{CREATE}/{id}/cancel")
            waiting.join(20)
            refused(answers[0], 409, "not_ready", "has failed")
            for query in ("stream=yes", "stream=true&variant=thumbnail"):
                answer = client.get(f"{CREATE}/{id}/content?{query}")
                assert refused(answer, 400, "invalid_value")["param"] == "stream"
    finally:
        site.close()


def test_fragments_are_removed_where_the_video_is_not_made(tmp_path):
    with pytest.raises(ValueError, match="even|not divisible|uint8"), FragmentedWriter(tmp_path / "a.mp4", 8) as writer:
        writer.write(np.zeros((9, 64, 64, 3), np.uint8))
        raise ValueError("uint8")
    assert files_of(tmp_path) == []
