"""How a server ends while clients listen."""

import time

import pytest

pytest.importorskip("sqlalchemy", reason="the server needs the extra `serve`")
pytest.importorskip("httpx", reason="tests of the server need the extra `test-serve`")

import httpx
from serving import Site

import cogvx_jax.serving.http as http


def test_a_server_ends_although_a_client_listens(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(http, "PATIENCE", 0.2)
    site = Site(tmp_path, works=False)
    id = httpx.post(f"{site.url}/v1/videos", json={"prompt": "a star"}).json()["id"]
    with httpx.stream("GET", f"{site.url}/v1/videos/{id}/events", timeout=30) as events:
        parts = events.iter_text()
        next(parts)
        began = time.monotonic()
        site.close()
        with pytest.raises(httpx.RemoteProtocolError):  # the stream has no end by itself
            list(parts)
    assert time.monotonic() - began < 4  # uvicorn would cancel it after 5 seconds, with a traceback
    assert "Traceback" not in caplog.text and "Cancel" not in caplog.text
