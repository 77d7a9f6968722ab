"""The server over HTTP: both APIs' calls, what they refuse, and what connections may do. No model is loaded."""

import base64
import hashlib
import hmac
import json
import re
import socket
import sqlite3
import struct
import threading
import time
import urllib.parse
import zlib

import pytest

pytest.importorskip("sqlalchemy", reason="the server needs the extra `serve`")
pytest.importorskip("httpx", reason="tests of the server need the extra `test-serve`")

import httpx
from serving import CIRCLE, CREATE, GENERATE, Site, create, data_url, fake_video, files_of, picture, refused

from cogvx_jax.data.video import read_video
from cogvx_jax.serving.guards import ImpatientProtocol
from cogvx_jax.serving.keys import new_key
from cogvx_jax.serving.queue import Retention


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    made = Site(tmp_path_factory.mktemp("site"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(site):
    with httpx.Client(base_url=site.url, timeout=30) as found:
        yield found


@pytest.fixture(scope="module")
def waiting(tmp_path_factory):
    """A server without a worker: what is asked for waits."""
    made = Site(tmp_path_factory.mktemp("waiting"), works=False)
    yield made
    made.close()


def test_a_video_is_made(site, client):
    video = create(client, seed=7, num_inference_steps=3, num_frames=9)
    assert (video["status"], video["object"], video["progress"]) == ("queued", "video", 0)
    assert (video["size"], video["seconds"], video["fps"]) == ("64x64", "1.125", 8)
    assert (video["seed"], video["num_inference_steps"], video["num_frames"]) == (7, 3, 9)
    site.wait(video["id"])
    done = client.get(f"{CREATE}/{video['id']}").json()
    assert (done["status"], done["progress"], done["error"]) == ("completed", 100, None)
    bytes_ = client.get(f"{CREATE}/{video['id']}/content").content
    assert bytes_[4:8] == b"ftyp"
    assert httpx.get(done["url"]).content == bytes_  # without a key
    for variant, start in (("thumbnail", b"RIFF"), ("spritesheet", b"\xff\xd8\xff")):
        answer = client.get(f"{CREATE}/{video['id']}/content", params={"variant": variant})
        assert answer.content.startswith(start) and answer.headers["content-type"].startswith("image/")


def test_players_can_seek(site, client):
    video = create(client)
    site.wait(video["id"])
    place = f"{CREATE}/{video['id']}/content"
    whole = client.get(place).content
    part = client.get(place, headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")
    assert part.headers["content-range"] == f"bytes 4-7/{len(whole)}"
    several = client.get(place, headers={"Range": f"bytes=0-3, 4-7,{len(whole)}-"})  # the last is not there
    assert several.status_code == 206 and several.headers["content-range"] == f"bytes 0-7/{len(whole)}"
    for beyond in (f"bytes={len(whole)}-", "bytes=-0", f"bytes={len(whole)}-,{10**18}-"):
        answer = client.get(place, headers={"Range": beyond})
        refused(answer, 416, "range_not_satisfiable")
        assert answer.headers["content-range"] == f"bytes */{len(whole)}"
    other = client.get(place, headers={"Range": f"bytes={len(whole)}-", "If-Range": '"of another file"'})
    assert (other.status_code, other.content) == (200, whole)


@pytest.fixture(scope="module")
def whole(site, client):
    """Where a video that is made lies."""
    id = create(client)["id"]
    site.wait(id)
    return f"{CREATE}/{id}/content"


@pytest.mark.parametrize("text", ["bytes=abc", "bytes=", "bytes=7-4", "bytes=-", "bytes=1-2,x", "bytes", "pages=1-2"])
def test_a_range_that_cannot_be_read_is_passed_over(client, whole, text):
    answer = client.get(whole, headers={"Range": text})
    assert (answer.status_code, answer.content[4:8]) == (200, b"ftyp")


def test_heads_of_files(site, client):
    video = create(client)
    place = f"{CREATE}/{video['id']}/content"
    assert client.head(place).status_code == 409
    site.wait(video["id"])
    for query in ({}, {"variant": "thumbnail"}):
        head, whole = client.head(place, params=query), client.get(place, params=query)
        assert head.status_code == 200 and head.content == b""
        for name in ("content-length", "content-type"):
            assert head.headers[name] == whole.headers[name]
    assert client.put(place).headers["allow"] == "GET, HEAD"


def test_forms_and_json_say_the_same(client):
    fields = {"seed": 3, "num_frames": 9, "guidance_scale": 2.5, "use_dynamic_cfg": True, "sampler": "dpm"}
    by_json = create(client, **fields)
    form = {name: (None, str(value)) for name, value in ({"prompt": CIRCLE} | fields).items()}
    by_form = client.post(CREATE, files=form | {"negative_prompt": (None, "")}).json()
    by_extra = create(client, extra_body=fields)
    inner = {"prompt": (None, CIRCLE), "extra_body": (None, json.dumps(fields))}
    by_extra_form = client.post(CREATE, files=inner).json()
    for other in (by_form, by_extra, by_extra_form):
        assert {k: other[k] for k in fields if k in other} == {k: by_json[k] for k in fields if k in by_json}


def test_nulls_are_as_if_not_there(client):
    assert create(client, seed=1, num_frames=None, input_reference=None, n=None)["num_frames"] == 17


def test_vendors_sizes_become_the_models(client):
    video = create(client, size="1280x720", seconds="8")
    assert (video["size"], video["seconds"]) == ("64x64", "2.125")
    assert len(video["notes"]) == 2 and "1280x720 became 64x64" in video["notes"][0]
    assert create(client, size="48x32")["size"] == "48x32"  # not a vendor's: as asked, width first
    assert create(client, width=48, height=32)["size"] == "48x32"
    assert create(client, seconds=1)["num_frames"] == 9


def test_frames_win_over_seconds(client):
    """And both are checked: `seconds` beside `num_frames` is not passed over."""
    both = create(client, num_frames=9, seconds="2")
    assert both["num_frames"] == 9 and "num_frames decides: 9 frames, not 2 seconds" in both["notes"][0]
    for fields in ({"num_frames": 9, "seconds": 1}, {"num_frames": 17, "seconds": 2.125}):
        assert not any("seconds" in note for note in create(client, **fields).get("notes", ()))
    answer = client.post(CREATE, json={"prompt": CIRCLE, "num_frames": 9, "seconds": "soon"})
    refused(answer, 400, "invalid_value", "seconds must be a number")


def test_a_vendors_model_is_ours(client):
    video = create(client, model="sora-2")
    assert video["model"] == "tiny" and video["notes"][0] == "model sora-2 is not served here; tiny makes the video"
    assert "notes" not in create(client, model="tiny")


def test_warnings_of_a_request_are_notes(client):
    fields = {"guidance_scale": 1, "use_dynamic_cfg": True}
    with pytest.warns(UserWarning, match="guidance is off"):
        several = [create(client, **fields)["notes"] for _ in range(2)]  # Python shows a warning once
    for notes in several:
        assert sum("guidance is off" in note for note in notes) == 1, notes


def test_strict_refuses_them(tmp_path):
    site = Site(tmp_path, works=False, strict=True)
    try:
        for fields in ({"size": "1280x720"}, {"seconds": "12"}):
            answer = httpx.post(site.url + CREATE, json={"prompt": "x"} | fields)
            refused(answer, 400, "invalid_value", "tiny makes videos of")
        refused(httpx.post(site.url + CREATE, json={"prompt": "x", "model": "sora-2"}), 404, "model_not_found")
        both = {"prompt": "x", "seconds": "2", "num_frames": 9}
        refused(httpx.post(site.url + CREATE, json=both), 400, "exclusive_parameters", "9 frames are not 2 seconds")
    finally:
        site.close()


BOMB = b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    for kind, body in (
        (b"IHDR", struct.pack(">IIBBBBB", 12000, 12000, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1000))),
        (b"IEND", b""),
    )
)
SVG = b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"


BAD = [
    ({"prompt": None}, "missing_required_parameter", "prompt", "missing"),
    ({"prompt": " "}, "invalid_value", "prompt", "empty"),
    ({"prompt": 3}, "invalid_value", "prompt", "must be text"),
    ({"prompt": "x" * 10001}, "invalid_value", "prompt", "10,000"),
    ({"prompt": "a\0b"}, "invalid_value", "prompt", "NUL"),
    ({"colour": "red"}, "unknown_parameter", "colour", "unknown field"),
    ({"num_inference_step": 4}, "unknown_parameter", "num_inference_step", "meant is perhaps num_inference_steps"),
    ({"num_frames": "9"}, "invalid_value", "num_frames", "whole number"),
    ({"num_frames": [9]}, "invalid_value", "num_frames", "whole number"),
    ({"num_frames": True}, "invalid_value", "num_frames", "whole number"),
    ({"num_frames": 10}, "invalid_value", "num_frames", "8N.1.*nearest: 9 or 17"),
    ({"num_frames": 10**30}, "invalid_value", "num_frames", ""),
    ({"num_inference_steps": 0}, "invalid_value", "num_inference_steps", "steps must be 1 to 1000"),
    ({"guidance_scale": 1e9}, "invalid_value", "guidance_scale", "from -1000 to 1000"),
    ({"seed": "random"}, "invalid_value", "seed", ""),
    ({"seed": 2**64}, "invalid_value", "seed", "2.63"),
    ({"fps": 0}, "invalid_value", "fps", ""),
    ({"steps": 0}, "invalid_value", "steps", "steps must be 1 to 1000"),
    ({"strength": 0.5}, "invalid_value", "strength", ""),
    ({"sampler": "euler9"}, "invalid_value", "sampler", "unknown sampler"),
    ({"size": "big"}, "invalid_value", "size", "WIDTHxHEIGHT"),
    ({"width": 100, "height": 64}, "invalid_value", "width", "nearest: 96 or 112"),
    ({"size": "100x64"}, "invalid_value", "size", "nearest: 96 or 112"),
    ({"size": "64x64", "width": 64, "height": 64}, "exclusive_parameters", "size", "not both"),
    ({"width": 64}, "missing_required_parameter", "width", "width and height"),
    ({"seconds": "-4"}, "invalid_value", "seconds", "number"),
    ({"seconds": "nan"}, "invalid_value", "seconds", "number"),
    ({"seconds": {}}, "invalid_value", "seconds", "number"),
    ({"aspect_ratio": "5:4"}, "invalid_value", "aspect_ratio", "16:9"),
    ({"num_frames": 9, "frames": 9}, "exclusive_parameters", "frames", "give one"),
    ({"generate_sound": True}, "invalid_value", "generate_sound", "no sound"),
    ({"enable_teacache": True}, "invalid_value", "enable_teacache", "reuse"),
    ({"output_path": "/etc"}, "invalid_value", "output_path", "by name"),
    ({"n": 2}, "invalid_value", "n", "one video"),
    ({"image": data_url(picture())}, "invalid_value", None, "takes no image"),
    ({"input_reference": data_url(BOMB)}, "invalid_value", "input_reference", "12000x12000"),
    ({"input_reference": data_url(SVG)}, "invalid_value", "input_reference", "no picture"),
    ({"input_reference": "https://example.com/a.png"}, "invalid_value", "input_reference", "not fetched"),
    ({"input_reference": "file:///etc/passwd"}, "invalid_value", "input_reference", "not fetched"),
    ({"input_reference": "/etc/passwd"}, "invalid_value", "input_reference", ""),
    ({"input_reference": {"file_id": "x"}}, "invalid_value", "input_reference", "no stored files"),
    ({"video": data_url(picture())}, "invalid_value", "video", "is a picture"),
    ({"video": data_url(b"\0\0\0\x20ftypisom" + bytes(99))}, "invalid_value", None, "cannot be read as a video"),
    ({"calibration": "/etc/passwd"}, "invalid_value", "calibration", "no calibration '/etc/passwd'"),
    ({"loras": [{"name": "none"}]}, "invalid_value", "loras", "no LoRA 'none'"),
    ({"loras": [{"path": "/etc/passwd"}]}, "invalid_value", "loras", "must have name"),
    ({"lora": {"name": "tiny-fast", "weight": 1e6}}, "invalid_value", "lora", "-100 to 100"),
    ({"model": "5b"}, "model_not_found", "model", "no model '5b'"),
    ({"user": 3}, "invalid_value", "user", "text"),
    ({"extra_body": 3}, "invalid_value", "extra_body", "object"),
    ({"seed": 1, "extra_body": {"seed": 2}}, "invalid_request", "seed", "stands in"),
]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("fields, code, param, words", BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_fields_are_refused(waiting, fields, code, param, words):
    answer = httpx.post(waiting.url + CREATE, json={"prompt": "x"} | fields)
    error = refused(answer, 404 if code == "model_not_found" else 400, code, words)
    assert error["param"] == param
    assert str(waiting.store.folder) not in answer.text and "/etc" not in str(waiting.store.ids())


def test_nothing_is_left_of_what_was_refused(waiting):
    before = waiting.store.ids()
    clip = data_url(b"\0\0\0\x20ftypisom" + bytes(99))
    assert httpx.post(waiting.url + CREATE, json={"prompt": "x", "video": clip}).status_code == 400
    assert waiting.store.ids() == before


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"3", b"{", b'{"prompt": NaN}', b'{"a": 1, "a": 2}', b"\xff\xfe", b"[" * 9999]
)
def test_broken_json_is_refused(waiting, body):
    for path in (CREATE, GENERATE):
        answer = httpx.post(waiting.url + path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400 and "error" in answer.json(), answer.text


def test_broken_forms_are_refused(waiting):
    for kind, body in (
        ("multipart/form-data; boundary=x", b"--x\r\nno"),
        ("multipart/form-data", b"--x"),
        ("text/plain", b"x"),
    ):
        answer = httpx.post(waiting.url + CREATE, content=body, headers={"content-type": kind})
        refused(answer, 415 if kind == "text/plain" else 400)
    for kind in ("application/json", "application/x-www-form-urlencoded"):
        headers = {"content-type": kind, "content-encoding": "gzip"}
        answer = httpx.post(waiting.url + CREATE, content=zlib.compress(b"{}"), headers=headers)
        refused(answer, 415, "unsupported_media_type", "Content-Encoding 'gzip'")
        assert answer.headers["accept-encoding"] == "identity"
    twice = [("prompt", (None, "a")), ("prompt", (None, "b"))]
    refused(httpx.post(waiting.url + CREATE, files=twice), 400, words="twice")
    refused(httpx.post(waiting.url + CREATE, data={"loras[][a]": "1"}), 400, words="JSON text")


def test_uploads(waiting, site, client):
    source = create(client, num_frames=9)
    site.wait(source["id"])
    clip = client.get(f"{CREATE}/{source['id']}/content").content
    answer = httpx.post(
        waiting.url + CREATE, data={"prompt": CIRCLE, "strength": "0.5"}, files={"input_reference": ("a.bin", clip)}
    )
    video = answer.json()
    assert video["task"] == "v2v" and video["num_frames"] == 9, answer.text
    assert files_of(waiting.store.folder_of(video["id"])) == ["video.mp4"]
    truncated = httpx.post(
        waiting.url + CREATE, data={"prompt": "x"}, files={"video": ("a.mp4", clip[: len(clip) // 3])}
    )
    refused(truncated, 400, "invalid_value", "cannot be read as a video")
    renamed = httpx.post(waiting.url + CREATE, data={"prompt": "x"}, files={"video": ("a.mp4", b"text")})
    refused(renamed, 400, "invalid_value", "no video that is known")
    refused(httpx.post(waiting.url + CREATE, data={"prompt": "x"}, files={"seed": ("a", b"1")}), 400, words="no file")


def test_the_list_has_pages(tmp_path):
    site = Site(tmp_path, works=False)
    try:
        ids = [create(httpx.Client(base_url=site.url))["id"] for _ in range(3)]
        page = httpx.get(site.url + CREATE, params={"limit": 2}).json()
        assert [video["id"] for video in page["data"]] == [ids[2], ids[1]] and page["has_more"]
        assert (page["first_id"], page["last_id"]) == (ids[2], ids[1])
        rest = httpx.get(site.url + CREATE, params={"after": ids[1]}).json()
        assert [video["id"] for video in rest["data"]] == [ids[0]] and not rest["has_more"]
        rising = httpx.get(site.url + CREATE, params={"order": "asc", "limit": 1}).json()
        assert rising["data"][0]["id"] == ids[0]
        positions = [httpx.get(f"{site.url}{CREATE}/{id}").json()["queue_position"] for id in ids]
        assert positions == [0, 1, 2]
    finally:
        site.close()


@pytest.mark.parametrize("query", ["limit=-5", "limit=0", "limit=x", "limit=101", "order=up", "limit=9e9", "limit=²"])
def test_bad_queries_are_refused(client, query):
    refused(client.get(f"{CREATE}?{query}"), 400, "invalid_value")


@pytest.mark.parametrize("id", ["none", "..%2f..%2fqueue.sqlite", "video_" + "a" * 32, "%00", "a" * 5000, "'--"])
@pytest.mark.parametrize("path", ["{}", "{}/content", "{}/events"])
def test_unknown_ids(client, id, path):
    assert client.get(f"{CREATE}/{path.format(id)}").status_code == 404


def test_cancelling_and_deleting(waiting):
    with httpx.Client(base_url=waiting.url) as client:
        one, two = create(client), create(client)
        cancelled = client.post(f"{CREATE}/{one['id']}/cancel").json()
        assert (cancelled["status"], cancelled["error"]["code"]) == ("failed", "cancelled")
        assert client.post(f"{CREATE}/{one['id']}/cancel").json()["status"] == "failed"
        refused(client.get(f"{CREATE}/{one['id']}/content"), 409, "not_ready")
        gone = client.delete(f"{CREATE}/{two['id']}").json()
        assert gone == {"id": two["id"], "object": "video.deleted", "deleted": True}
        refused(client.delete(f"{CREATE}/{two['id']}"), 404, "not_found")
        assert two["id"] not in waiting.store.ids()


def test_a_video_that_fails_says_why(site, client):
    video = create(client, prompt="fail")
    site.wait(video["id"])
    error = client.get(f"{CREATE}/{video['id']}").json()["error"]
    assert error == {"code": "generation_failed", "message": "the sampler met numbers that are not finite"}
    refused(client.get(f"{CREATE}/{video['id']}/content"), 409, "not_ready", "has failed")


def test_a_key_of_a_request_makes_one_video(waiting):
    with httpx.Client(base_url=waiting.url) as client:
        how = {"headers": {"Idempotency-Key": "k1"}}
        first = client.post(CREATE, json={"prompt": "a"}, **how).json()
        assert client.post(CREATE, json={"prompt": "a"}, **how).json()["id"] == first["id"]
        refused(client.post(CREATE, json={"prompt": "b"}, **how), 409, "request_repeated")


def test_a_full_queue_refuses(tmp_path):
    site = Site(tmp_path, works=False, capacity=1)
    try:
        with httpx.Client(base_url=site.url) as client:
            create(client)
            answer = client.post(CREATE, json={"prompt": "x"})
            refused(answer, 429, "queue_full")
            assert int(answer.headers["retry-after"]) > 0
            zhipu = client.post(GENERATE, json={"model": "cogvideox-3", "prompt": "x"})
            assert zhipu.status_code == 429 and zhipu.json()["error"]["code"] == "1302"
            assert len(site.store.ids()) == 1
    finally:
        site.close()


def test_a_full_disk_and_a_locked_database(tmp_path, monkeypatch):
    site = Site(tmp_path, works=False)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(site.store, "free", lambda: 0)
            refused(httpx.post(site.url + CREATE, json={"prompt": "x"}), 507, "disk_full")
        other = sqlite3.connect(tmp_path / "queue.sqlite")
        other.execute("BEGIN IMMEDIATE")
        answer = httpx.post(site.url + CREATE, json={"prompt": "x"}, timeout=30)
        refused(answer, 503, "unavailable")
        assert answer.headers["retry-after"] and "sqlite" not in answer.text
        other.rollback()
        assert httpx.post(site.url + CREATE, json={"prompt": "x"}).status_code == 200
    finally:
        site.close()


def test_remix_edits_and_extensions(site, client):
    source = create(client, seed=5, num_frames=9)
    refused(client.post(f"{CREATE}/{source['id']}/remix", json={"prompt": "x", "seed": 1}), 400, "unknown_parameter")
    site.wait(source["id"])
    remix = client.post(f"{CREATE}/{source['id']}/remix", json={"prompt": "a blue circle"}).json()
    assert (remix["remixed_from_video_id"], remix["task"], remix["num_frames"]) == (source["id"], "v2v", 9)
    again = {"headers": {"Idempotency-Key": "remix"}, "json": {"prompt": "a blue circle"}}
    ids = {client.post(f"{CREATE}/{source['id']}/remix", **again).json()["id"] for _ in range(2)}
    assert len(ids) == 1  # though each would draw a seed
    edit = client.post(f"{CREATE}/edits", json={"prompt": "a blue circle", "video": {"id": source["id"]}}).json()
    assert edit["task"] == "v2v"
    longer = client.post(f"{CREATE}/extensions", json={"prompt": CIRCLE, "video": source["id"], "seconds": "1"}).json()
    assert (longer["task"], longer["seconds"], longer["num_frames"]) == ("extend", "2.125", 17)
    clip = client.get(f"{CREATE}/{source['id']}/content").content
    form = client.post(f"{CREATE}/edits", data={"prompt": "x"}, files={"video": ("v.mp4", clip)})
    assert form.json()["task"] == "v2v"
    for id in (remix["id"], edit["id"], longer["id"], form.json()["id"]):
        assert site.wait(id).status == "completed"
    whole = site.service.video_of(site.queue.get(longer["id"]))
    assert len(read_video(whole)[0]) == 17
    refused(client.post(f"{CREATE}/edits", json={"prompt": "x"}), 400, "missing_required_parameter")
    refused(client.post(f"{CREATE}/edits", json={"prompt": "x", "video": "video_" + "0" * 32}), 404, "not_found")
    for path in ("edits", "extensions"):
        for id, said in (("nope", "there is no video 'nope'"), (source["id"] + "x", "there is no video")):
            answer = client.post(f"{CREATE}/{path}", json={"prompt": "x", "video": {"id": id}})
            refused(answer, 404, "not_found", said)
        answer = client.post(f"{CREATE}/{path}", json={"prompt": "x", "video": {"id": 5}})
        refused(answer, 400, "invalid_value", "text, got 5")
    fields = {"prompt": CIRCLE, "video": source["id"], "seconds": "1", "num_frames": 13}
    both = client.post(f"{CREATE}/extensions", json=fields).json()
    assert both["num_frames"] == 13 and "num_frames decides" in both["notes"][0]
    refused(client.post(f"{CREATE}/characters", json={"name": "x"}), 501, "not_implemented")
    refused(client.get(f"{CREATE}/characters/x"), 501, "not_implemented")


def test_waiting_for_the_video_itself(site, client):
    answer = client.post(f"{CREATE}/sync", json={"prompt": CIRCLE, "num_frames": 9})
    assert answer.content[4:8] == b"ftyp" and answer.headers["content-type"] == "video/mp4"
    assert answer.headers["x-video-id"].startswith("video_")
    refused(client.post(f"{CREATE}/sync", json={"prompt": "fail"}), 500, "server_error", "not finite")


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


def test_models_health_and_numbers(site, client):
    names = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert "tiny" in names and client.get("/v1/models/tiny").json()["id"] == "tiny"
    refused(client.get("/v1/models/5b"), 404, "model_not_found")
    assert client.get("/models").json()["defaults"]["num_frames"] == 17
    assert client.get("/health").json()["status"] == "ok"
    until = time.monotonic() + 10
    while client.get("/ready").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.1)
    numbers = client.get("/metrics").text
    assert 'cogvx_http_requests_total{method="GET",route="/health",status="200"}' in numbers
    assert 'cogvx_jobs{status="completed"}' in numbers and "cogvx_workers 1.0" in numbers


def test_the_reference_fetches_nothing_from_elsewhere(client):
    text = client.get("/docs").text
    assert "POST /v1/videos</code>" in text and "num_inference_steps" in text and "/api/paas/v4/async-result" in text
    assert not re.search(r"(src|href)=.(https?:)?//", text) and "<script" not in text


def test_not_ready_without_a_worker(waiting):
    refused(httpx.get(waiting.url + "/ready"), 503, "unavailable", "no worker")


def test_loras(site, client):
    listed = client.get("/v1/list_loras").json()
    assert {"nickname": "tiny-fast", "path": "tiny-fast"} in listed["loaded_adapters"]
    fast = create(client, loras=[{"name": "tiny-fast", "weight": 1}])
    plain = create(client)
    assert fast["num_inference_steps"] < plain["num_inference_steps"]  # what it was distilled for
    assert client.post("/v1/set_lora", json={"lora_nickname": "tiny-fast", "strength": 0.5}).status_code == 200
    active = client.get("/v1/list_loras").json()["active"]["transformer"]
    assert active == [{"nickname": "tiny-fast", "path": "tiny-fast", "merged": False, "strength": 0.5}]
    assert create(client)["num_inference_steps"] == fast["num_inference_steps"]
    empty = refused(client.post("/v1/set_lora", json={}), 400, "missing_required_parameter", "lora_nickname is missing")
    assert empty["param"] == "lora_nickname"
    refused(client.post("/v1/set_lora", json={"lora_nickname": "none"}), 400, "invalid_value", "no LoRA")
    refused(client.post("/v1/set_lora", json={"lora_nickname": ["a", "b"], "strength": [1.0]}), 400, "invalid_value")
    refused(client.post("/v1/merge_lora_weights", json={}), 501, "not_implemented")
    client.post("/v1/unmerge_lora_weights")
    assert client.get("/v1/list_loras").json()["active"]["transformer"] == []


# --- Zhipu's shape


def generate(client, **fields):
    return client.post(GENERATE, json={"model": "cogvideox-3", "prompt": CIRCLE} | fields)


def test_zhipu(site, client):
    made = generate(client, duration=5, size="1920x1080", fps=30, quality="quality", request_id="r1").json()
    assert (made["task_status"], made["request_id"], made["model"]) == ("PROCESSING", "r1", "tiny")
    assert len(made["notes"]) == 4
    assert (
        generate(client, duration=5, size="1920x1080", fps=30, quality="quality", request_id="r1").json()["id"]
        == made["id"]
    )
    job = site.wait(made["id"])
    assert job.asked["options"]["steps"] == 2 * site.service.spec.defaults.num_inference_steps
    done = client.get(f"/api/paas/v4/async-result/{made['id']}").json()
    assert done["task_status"] == "SUCCESS"
    result = done["video_result"][0]
    assert httpx.get(result["url"]).content[4:8] == b"ftyp"
    assert httpx.get(result["cover_image_url"]).content.startswith(b"RIFF")


@pytest.mark.parametrize(
    "fields, status, code",
    [
        ({"model": None}, 400, "1213"),
        ({"model": "vidu2-image"}, 400, "1211"),
        ({"prompt": None}, 400, "1213"),
        ({"prompt": "x" * 513}, 400, "1261"),
        ({"with_audio": True}, 400, "1214"),
        ({"watermark_enabled": True}, 400, "1214"),
        ({"quality": "best"}, 400, "1214"),
        ({"fps": 24}, 400, "1214"),
        ({"fps": "30"}, 400, "1214"),
        ({"duration": 7}, 400, "1214"),
        ({"size": "huge"}, 400, "1214"),
        ({"user_id": "me"}, 400, "1214"),
        ({"style": "anime"}, 400, "1214"),
        (
            {"style": "general", "off_peak": True, "sensitive_word_check": {"type": "ALL", "status": "DISABLE"}},
            200,
            None,
        ),
        ({"sensitive_word_check": {"type": "ALL", "status": "ENABLE"}}, 400, "1214"),
        ({"colour": 1}, 400, "1210"),
        ({"image_url": "http://example.com/a.png"}, 400, "1214"),
        ({"image_url": [1, 2, 3]}, 400, "1214"),
        ({"image_url": data_url(SVG)}, 400, "1214"),
        ({"image_url": data_url(picture())}, 400, "1214"),  # of a text model
    ],
)
def test_zhipu_refuses(waiting, fields, status, code):
    answer = httpx.post(waiting.url + GENERATE, json={"model": "cogvideox-3", "prompt": "x"} | fields)
    assert answer.status_code == status, answer.text
    if code is not None:
        error = answer.json()["error"]
        assert error["code"] == code and set(error) == {"code", "message"}, error


def test_zhipus_request_ids(waiting):
    with httpx.Client(base_url=waiting.url) as client:
        generate(client, request_id="same")
        other = generate(client, prompt="other", request_id="same")
        assert (other.status_code, other.json()["error"]["code"]) == (400, "1231")
        unknown = client.get("/api/paas/v4/async-result/none")
        assert unknown.status_code == 404 and set(unknown.json()["error"]) == {"code", "message"}


# --- keys


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    keys, lines = zip(*(new_key(name) for name in ("ada", "bob")), strict=True)
    (folder / "keys.toml").write_text(lines[0] + "\njobs = 1\n" + lines[1] + "\npriority = 5\n")
    made = Site(folder, keys=folder / "keys.toml")
    made.keys = keys
    yield made
    made.close()


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def test_keys(guarded):
    ada, bob = guarded.keys
    with httpx.Client(base_url=guarded.url) as client:
        for path in (CREATE, "/v1/models", "/models", "/v1/list_loras", f"{CREATE}/x/content", f"{CREATE}/x/events"):
            refused(client.get(path), 401, "no_api_key")
        refused(client.get(CREATE, headers=bearer("wrong")), 401, "invalid_api_key")
        assert client.get("/health").status_code == 200
        zhipu = client.post(GENERATE, json={})
        assert zhipu.status_code == 401 and zhipu.json()["error"]["code"] == "1001"
        video = client.post(CREATE, json={"prompt": CIRCLE}, headers=bearer(ada)).json()
        refused(client.get(f"{CREATE}/{video['id']}", headers=bearer(bob)), 404)
        refused(client.delete(f"{CREATE}/{video['id']}", headers=bearer(bob)), 404)
        assert client.get(CREATE, headers=bearer(bob)).json()["data"] == []
        guarded.wait(video["id"])
        done = client.get(f"{CREATE}/{video['id']}", headers=bearer(ada)).json()
        assert httpx.get(done["url"]).status_code == 200
        assert guarded.queue.page("bob", after=None, limit=1, newest_first=True) == []
        bobs = client.post(CREATE, json={"prompt": CIRCLE}, headers=bearer(bob)).json()
        assert guarded.queue.get(bobs["id"]).priority == 5
    assert ada not in (guarded.store.folder / "keys.toml").read_text()


def test_signed_addresses(guarded):
    ada, _ = guarded.keys
    with httpx.Client(base_url=guarded.url) as client:
        video = client.post(CREATE, json={"prompt": CIRCLE}, headers=bearer(ada)).json()
        guarded.wait(video["id"])
        url = urllib.parse.urlsplit(client.get(f"{CREATE}/{video['id']}", headers=bearer(ada)).json()["url"])
        query = dict(urllib.parse.parse_qsl(url.query))
        for change in (
            {"signature": "0" * 64},
            {"expires": "9999999999"},
            {"variant": "thumbnail"},
            {"signature": "ü"},
        ):
            refused(client.get(url.path, params=query | change), 401, "invalid_api_key")
        past = guarded.service.signer
        old = past.query(video["id"], "video", until=time.time() - 5)
        refused(client.get(url.path, params=old), 401, "token_expired")


def token(key, *, alg="HS256", ahead=210.0, exp=None):
    identity, secret = key.split(".")
    now = time.time()
    claims = {"api_key": identity, "exp": round((now + ahead) * 1000) if exp is None else exp, "timestamp": now * 1000}
    parts = [{"alg": alg, "sign_type": "SIGN"}, claims]
    text = ".".join(base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts)
    made = hmac.new(secret.encode(), text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(made).decode().rstrip('=')}"


def test_zhipus_tokens(guarded):
    ada, bob = guarded.keys
    with httpx.Client(base_url=guarded.url) as client:
        assert client.get(CREATE, headers=bearer(token(ada))).status_code == 200
        refused(client.get(CREATE, headers=bearer(token(ada, ahead=-1))), 401, "token_expired")
        # In seconds it would be long past; in milliseconds of year 57000 it would never end.
        refused(client.get(CREATE, headers=bearer(token(ada, exp=round(time.time() + 210)))), 401, "token_expired")
        refused(client.get(CREATE, headers=bearer(token(ada, ahead=10**6))), 401, "invalid_api_key", "milliseconds")
        refused(client.get(CREATE, headers=bearer(token(ada, alg="none"))), 401, "invalid_api_key")
        forged = token(ada)[:-4] + "AAAA"
        refused(client.get(CREATE, headers=bearer(forged)), 401, "invalid_api_key")
        refused(client.get(CREATE, headers=bearer("a.b.c")), 401, "invalid_api_key")


# --- connections


def connect(site):
    made = socket.create_connection(("127.0.0.1", site.port), timeout=20)
    return made


def read_all(connection):
    data = b""
    try:
        while part := connection.recv(65536):
            data += part
    except (ConnectionResetError, TimeoutError):
        pass
    return data


def test_a_body_that_is_too_large_is_refused_on_the_way(waiting):
    """By its declared length at once, and without one when it has come so far."""
    refused(httpx.post(waiting.url + CREATE, content=bytes(2**21), headers={"content-type": "text/json"}), 413)
    connection = connect(waiting)
    connection.sendall(
        b"POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    sent, chunk = 0, b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    try:
        while sent < 64 * 2**20:
            connection.sendall(chunk)
            sent += 0x10000
    except OSError:
        pass
    assert sent < 2**20 + 2**23, sent  # the limit, and what the system's buffers hold
    answer = read_all(connection)
    assert not answer or b" 413 " in answer.split(b"\r\n")[0]


def test_a_lie_about_the_length(waiting):
    connection = connect(waiting)
    connection.sendall(b"POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n{")
    answer = read_all(connection)
    assert b" 413 " in answer and b"body_too_large" in answer and b"connection: close" in answer


def test_silent_connections_are_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(ImpatientProtocol, "silent", 0.5)
    site = Site(tmp_path, works=False)
    try:
        began = time.monotonic()
        sockets = [connect(site) for _ in range(200)]
        for number, one in enumerate(sockets):
            if number % 2:
                one.sendall(b"POST /v1/videos HTTP/1.1\r\nHost: x\r\n")  # and nothing more
        assert all(read_all(one) == b"" for one in sockets)
        assert time.monotonic() - began < 15
        assert httpx.get(site.url + "/health").status_code == 200
    finally:
        site.close()


def test_a_body_that_stops_is_answered(tmp_path):
    site = Site(tmp_path, works=False, silent=0.5)
    try:
        connection = connect(site)
        connection.sendall(
            b"POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\nContent-Type: application/json\r\n\r\n{"
        )
        answer = read_all(connection)
        assert b" 408 " in answer and b"request_timeout" in answer
    finally:
        site.close()


def test_pages_of_other_origins_are_refused(waiting):
    for origin, status in (("http://evil.example", 403), (waiting.url, 200), ("null", 403), ("http://[", 403)):
        answer = httpx.post(waiting.url + CREATE, json={"prompt": "x"}, headers={"Origin": origin})
        assert answer.status_code == status, origin


def test_names_that_are_made_to_mean_this_machine(tmp_path):
    site = Site(tmp_path, works=False, hosts=("127.0.0.1", "localhost"))
    try:
        for host, status in (
            ("127.0.0.1:1", 200),
            ("localhost", 200),
            ("evil.example:8000", 403),
            ("[", 403),
            ("", 403),
        ):
            assert httpx.get(site.url + "/health", headers={"Host": host}).status_code == status, host
    finally:
        site.close()


def test_a_client_that_goes_away_cancels_what_it_waits_for(tmp_path):
    site = Site(tmp_path, works=False)
    try:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{site.url}{CREATE}/sync", json={"prompt": "x"}, timeout=1.0)
        (id,) = site.store.ids()
        assert site.wait(id).error_code == "cancelled"
    finally:
        site.close()


def test_lossy_options_say_so(waiting):
    notes = create(httpx.Client(base_url=waiting.url), reuse="every:2", num_inference_steps=8)["notes"]
    assert any("lossy" in note for note in notes)


def test_unknown_paths_and_methods(client):
    refused(client.get("/v2/videos"), 404, "not_found")
    refused(client.put(CREATE), 405, "method_not_allowed")
    assert client.put(CREATE).headers["allow"]
    zhipu = client.get("/api/paas/v4/nothing")
    assert zhipu.status_code == 404 and set(zhipu.json()["error"]) == {"code", "message"}


def test_retention_removes_files(tmp_path):
    site = Site(tmp_path, keep=Retention(count=1))
    try:
        with httpx.Client(base_url=site.url) as client:
            ids = [create(client)["id"] for _ in range(3)]
            for id in ids:
                site.wait(id)
            site.service.tidy()
            assert site.store.ids() == ids[-1:]
            refused(client.get(f"{CREATE}/{ids[0]}"), 404)
    finally:
        site.close()
