"""The server over HTTP: OpenAI's calls, and what it tells of itself. No model is loaded."""

import json
import re
import time

import pytest

pytest.importorskip("sqlalchemy", reason="the server needs the extra `serve`")
pytest.importorskip("httpx", reason="tests of the server need the extra `test-serve`")

import httpx
from serving import CIRCLE, CREATE, Site, client_fixture, create, refused, site_fixture

from cogvx_jax.data.video import read_video
from cogvx_jax.serving.jobs import ALIKE
from cogvx_jax.serving.queue import Retention

site = site_fixture()
client = client_fixture()
waiting = site_fixture(works=False)  # what is asked for waits


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


def test_requests_that_are_alike_say_so(waiting):
    """What a worker may make together; see test_serving_together.py."""

    def like(**fields):
        video = httpx.post(waiting.url + CREATE, json={"prompt": "x"} | fields, timeout=30).json()
        return waiting.queue.get(video["id"]).asked[ALIKE]

    own = like()
    assert own == like(prompt="y", seed=7, negative_prompt="dark") and own is not None
    assert own not in (like(num_inference_steps=7), like(loras=["tiny-fast"]))
    assert like(reuse="every:2") is None


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


def test_lossy_options_say_so(waiting):
    notes = create(httpx.Client(base_url=waiting.url), reuse="every:2", num_inference_steps=8)["notes"]
    assert any("lossy" in note for note in notes)


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
