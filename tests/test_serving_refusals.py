"""What the server refuses, in each place where it can be wrong, and that nothing is left of it."""

import sqlite3
import struct
import zlib

import pytest

pytest.importorskip("sqlalchemy", reason="the server needs the extra `serve`")
pytest.importorskip("httpx", reason="tests of the server need the extra `test-serve`")

import httpx
from serving import (
    CIRCLE,
    CREATE,
    GENERATE,
    Site,
    client_fixture,
    create,
    data_url,
    files_of,
    picture,
    refused,
    site_fixture,
)

site = site_fixture()
client = client_fixture()
waiting = site_fixture(works=False)  # what is asked for waits


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
    ({"generate_sound": True}, "invalid_value", "generate_sound", "no maker of sound"),
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
    refused(httpx.post(waiting.url + CREATE, data={"loras[][a][b]": "1"}), 400, words="JSON text")


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


@pytest.mark.parametrize("query", ["limit=-5", "limit=0", "limit=x", "limit=101", "order=up", "limit=9e9", "limit=²"])
def test_bad_queries_are_refused(client, query):
    refused(client.get(f"{CREATE}?{query}"), 400, "invalid_value")


@pytest.mark.parametrize("id", ["none", "..%2f..%2fqueue.sqlite", "video_" + "a" * 32, "%00", "a" * 5000, "'--"])
@pytest.mark.parametrize("path", ["{}", "{}/content", "{}/events"])
def test_unknown_ids(client, id, path):
    assert client.get(f"{CREATE}/{path.format(id)}").status_code == 404


def test_unknown_paths_and_methods(client):
    refused(client.get("/v2/videos"), 404, "not_found")
    refused(client.put(CREATE), 405, "method_not_allowed")
    assert client.put(CREATE).headers["allow"]
    zhipu = client.get("/api/paas/v4/nothing")
    assert zhipu.status_code == 404 and set(zhipu.json()["error"]) == {"code", "message"}


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
