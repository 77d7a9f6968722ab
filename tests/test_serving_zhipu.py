"""Zhipu's API: its fields, answers and errors."""

import pytest

pytest.importorskip("sqlalchemy", reason="the server needs the extra `serve`")
pytest.importorskip("httpx", reason="tests of the server need the extra `test-serve`")

import httpx
from serving import CIRCLE, GENERATE, client_fixture, data_url, picture, site_fixture

from cogvx_jax.serving import zhipu_api

site = site_fixture()
client = client_fixture()
waiting = site_fixture(works=False)  # what is asked for waits


def generate(client, **fields):
    return client.post(GENERATE, json={"model": "cogvideox-3", "prompt": CIRCLE} | fields)


def test_zhipu(site, client, monkeypatch):
    monkeypatch.setattr(zhipu_api, "interpolates", lambda: False)
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
        ({"image_url": data_url(b"<svg/>")}, 400, "1214"),
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
