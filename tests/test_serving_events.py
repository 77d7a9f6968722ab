"""Events of videos, and clients that wait for one."""

import json
import threading

import pytest

pytest.importorskip("sqlalchemy", reason="the server needs the extra `serve`")
pytest.importorskip("httpx", reason="tests of the server need the extra `test-serve`")

import httpx
from serving import CIRCLE, CREATE, Site, client_fixture, create, fake_video, refused, site_fixture

site = site_fixture()
client = client_fixture()


def read_events(client, id, **headers):
    found = []
    with client.stream("GET", f"{CREATE}/{id}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for block in "".join(answer.iter_text()).split("\n\n"):
            lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and line[0] != ":")
            if "data" in lines:
                found.append((int(lines["id"]), lines["event"], json.loads(lines["data"])))
    return found


def test_events(site, client):
    video = create(client)
    found = read_events(client, video["id"])
    revisions = [revision for revision, _, _ in found]
    assert revisions == sorted(set(revisions)) and found[-1][1] == "completed"
    assert {event for _, event, _ in found} <= {"queued", "in_progress", "completed"}
    assert read_events(client, video["id"], **{"Last-Event-ID": str(revisions[-1])}) == []
    again = read_events(client, video["id"], **{"Last-Event-ID": "1"})
    assert again[-1][2]["status"] == "completed"


def test_a_video_that_is_removed_is_a_last_event(tmp_path):
    site = Site(tmp_path, fake_video(steps=1000, seconds=0.02))
    try:
        with httpx.Client(base_url=site.url, timeout=30) as client:
            id = create(client)["id"]
            removing = threading.Timer(1.0, lambda: client.delete(f"{CREATE}/{id}"))
            removing.start()
            blocks = httpx.get(f"{site.url}{CREATE}/{id}/events", timeout=30).text.strip().split("\n\n")
            removing.join()
        event, data = blocks[-1].splitlines()
        assert event == "event: deleted" and "event: in_progress" in blocks[-2]
        assert json.loads(data.removeprefix("data: ")) == {"id": id, "object": "video.deleted", "deleted": True}
    finally:
        site.close()


def test_events_show_previews(tmp_path):
    site = Site(tmp_path, fake_video(steps=6, seconds=0.3))
    try:
        with httpx.Client(base_url=site.url, timeout=30) as client:
            video = create(client)
            shown = [told for _, _, told in read_events(client, video["id"]) if "preview" in told]
            assert (
                shown and shown[0]["preview"].startswith("data:image/jpeg;base64,") and shown[0]["stage"] == "sampling"
            )
    finally:
        site.close()


def test_waiting_for_the_video_itself(site, client):
    answer = client.post(f"{CREATE}/sync", json={"prompt": CIRCLE, "num_frames": 9})
    assert answer.content[4:8] == b"ftyp" and answer.headers["content-type"] == "video/mp4"
    assert answer.headers["x-video-id"].startswith("video_")
    refused(client.post(f"{CREATE}/sync", json={"prompt": "fail"}), 500, "server_error", "not finite")


def test_a_client_that_goes_away_cancels_what_it_waits_for(tmp_path):
    site = Site(tmp_path, works=False)
    try:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{site.url}{CREATE}/sync", json={"prompt": "x"}, timeout=1.0)
        (id,) = site.store.ids()
        assert site.wait(id).error_code == "cancelled"
    finally:
        site.close()
