"""Clients of the vendors' APIs that fit no environment of the others; each test runs where its client is installed."""

import time
import urllib.request

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra `serve`")

from serving import Site

from cogvx_jax.serving.keys import new_key

PROMPT = "a red circle moves right on a white background"


@pytest.fixture
def known(tmp_path):
    """A server with a key, and that key."""
    key, lines = new_key("ada")
    (tmp_path / "keys.toml").write_text(lines)
    site = Site(tmp_path, keys=tmp_path / "keys.toml")
    yield site, key
    site.close()


@pytest.mark.parametrize("token", [False, True])
def test_zhipuai(known, token):
    """The older client of Zhipu, which sends its key, or a token that it signs."""
    zhipuai = pytest.importorskip("zhipuai", reason="`pip install zhipuai sniffio` in an environment of its own")
    site, key = known
    client = zhipuai.ZhipuAI(base_url=f"{site.url}/api/paas/v4", api_key=key, disable_token_cache=not token)
    made = client.videos.generations(model="cogvideox-2", prompt=PROMPT, quality="speed", size="1920x1080")
    assert made.task_status == "PROCESSING" and made.request_id == made.id
    until = time.monotonic() + 60
    while (found := client.videos.retrieve_videos_result(id=made.id)).task_status == "PROCESSING":
        assert time.monotonic() < until
        time.sleep(0.1)
    (result,) = found.video_result
    assert found.task_status == "SUCCESS" and b"ftyp" in urllib.request.urlopen(result.url).read(12)
    assert urllib.request.urlopen(result.cover_image_url).read(4) == b"RIFF"
    with pytest.raises(zhipuai.APIRequestFailedError, match="with_audio cannot be had"):
        client.videos.generations(model="cogvideox-2", prompt=PROMPT, with_audio=True)


@pytest.mark.parametrize("model", ["openai/sora-2", "hosted_vllm/tiny"])
def test_litellm(known, model, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # which it would fetch otherwise
    litellm = pytest.importorskip("litellm", reason="`pip install litellm` in an environment of its own")
    site, key = known
    how = dict(api_base=f"{site.url}/v1", api_key=key)
    made = litellm.video_generation(model=model, prompt=PROMPT, seconds="4", size="1280x720", **how)
    until = time.monotonic() + 60
    while (found := litellm.video_status(video_id=made.id, **how)).status in ("queued", "in_progress"):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert (found.status, found.model, found.size) == ("completed", "tiny", "64x64")
    assert b"ftyp" in litellm.video_content(video_id=made.id, **how)[:12]
    again = litellm.video_remix(video_id=made.id, prompt="a blue star", **how)
    assert again.remixed_from_video_id is not None
    with pytest.raises(litellm.AuthenticationError):
        litellm.video_generation(model=model, prompt=PROMPT, **(how | {"api_key": "wrong"}))
