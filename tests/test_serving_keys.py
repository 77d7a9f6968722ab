"""API keys, Zhipu's tokens and signed addresses."""

import base64
import hashlib
import hmac
import json
import time
import urllib.parse

import pytest

pytest.importorskip("sqlalchemy", reason="the server needs the extra `serve`")
pytest.importorskip("httpx", reason="tests of the server need the extra `test-serve`")

import httpx
from serving import CIRCLE, CREATE, GENERATE, Site, refused

from cogvx_jax.serving.keys import new_key


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
