"""The vendors' own clients against the server, unchanged but for their `base_url`."""

import asyncio
import io
import warnings

import pytest

pytest.importorskip("sqlalchemy", reason="the server needs the extra `serve`")
pytest.importorskip("openai", reason="tests of the server need the extra `test-serve`")
pytest.importorskip("zai", reason="tests of the server need the extra `test-serve`")

import openai
import zai
from serving import Site

from cogvx_jax.serving.keys import new_key

PROMPT = "a red circle moves right on a white background"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    key, lines = new_key("ada")
    (folder / "keys.toml").write_text(lines)
    made = Site(folder, keys=folder / "keys.toml", poll=50)
    made.key = key
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(site):
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=site.key, max_retries=0) as found:
        yield found


@pytest.fixture(scope="module")
def zhipu(site):
    return zai.ZhipuAiClient(base_url=f"{site.url}/api/paas/v4", api_key=site.key, max_retries=0)


def test_the_client_still_has_videos():
    assert hasattr(openai.OpenAI(api_key="x"), "videos"), "this openai has no videos; pin an older one"


def test_create_and_poll(client):
    video = client.videos.create_and_poll(prompt=PROMPT, model="sora-2", seconds="4", size="720x1280")
    assert (video.status, video.progress, video.size, video.model) == ("completed", 100, "64x64", "tiny")
    assert video.completed_at >= video.created_at and video.expires_at is None and video.error is None
    assert client.videos.download_content(video.id).read()[4:8] == b"ftyp"
    assert client.videos.download_content(video.id, variant="thumbnail").read().startswith(b"RIFF")
    assert client.videos.download_content(video.id, variant="spritesheet").read().startswith(b"\xff\xd8\xff")


def test_what_is_asked_for_more(client):
    more = {"seed": 5, "num_frames": 9, "loras": [{"name": "tiny-fast", "weight": 0.5}], "negative_prompt": "blue"}
    video = client.videos.create(prompt=PROMPT, extra_body=more)
    assert (video.seed, video.num_frames, video.seconds) == (5, 9, "1.125")
    with pytest.raises(openai.BadRequestError, match="one field with JSON text") as caught:
        client.videos.create(prompt=PROMPT, extra_body={"region": [[[0, 0, 0.5, 1], "a star"]]})
    assert caught.value.param == "region"


def test_pages_remixes_edits_and_deletes(client, site):
    first = client.videos.create_and_poll(prompt=PROMPT, extra_body={"num_frames": 9})
    remix = client.videos.remix(first.id, prompt="a blue circle")
    assert remix.remixed_from_video_id == first.id
    clip = io.BytesIO(client.videos.download_content(first.id).read())
    edit = client.videos.edit(prompt="a blue circle", video=("clip.mp4", clip, "video/mp4"))
    clip.seek(0)
    longer = client.videos.extend(prompt=PROMPT, seconds="1", video=("clip.mp4", clip, "video/mp4"))
    assert longer.seconds == "2.125" and edit.task == "v2v"
    ids = [video.id for video in client.videos.list(limit=2)]  # all pages
    assert ids[:3] == [longer.id, edit.id, remix.id] and first.id in ids
    for id in (remix.id, edit.id, longer.id):
        site.wait(id)
    assert client.videos.delete(first.id).deleted
    with pytest.raises(openai.NotFoundError) as caught:
        client.videos.retrieve(first.id)
    assert caught.value.code == "not_found"


def test_an_image_to_a_text_model(client):
    picture = io.BytesIO()
    __import__("PIL.Image").Image.new("RGB", (64, 64)).save(picture, "PNG")
    with pytest.raises(openai.BadRequestError, match="takes no image"):
        client.videos.create(prompt=PROMPT, input_reference=("a.png", picture.getvalue(), "image/png"))


def test_errors(client, site):
    with pytest.raises(openai.BadRequestError) as caught:
        client.videos.create(prompt=PROMPT, size="100x64")
    assert caught.value.code == "invalid_value" and "nearest: 96 or 112" in str(caught.value)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{site.url}/v1", api_key="wrong", max_retries=0).videos.list()
    with pytest.raises(openai.NotFoundError):
        client.videos.create(prompt=PROMPT, model="5b")
    failed = client.videos.create_and_poll(prompt="fail")
    assert failed.status == "failed" and failed.error.code == "generation_failed"


def test_models_and_raw_answers(client):
    assert "tiny" in [model.id for model in client.models.list()]
    raw = client.videos.with_raw_response.create(prompt=PROMPT)
    assert raw.headers["openai-poll-after-ms"] == "50"


def test_the_asynchronous_client(site):
    async def make():
        async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key=site.key, max_retries=0) as client:
            video = await client.videos.create_and_poll(prompt=PROMPT, extra_body={"num_frames": 9})
            return video, (await client.videos.download_content(video.id)).read()

    video, data = asyncio.run(make())
    assert video.status == "completed" and data[4:8] == b"ftyp"


def test_zhipu(zhipu, site):
    import httpx

    made = zhipu.videos.generations(model="cogvideox-3", prompt=PROMPT, quality="speed", size="1280x720", duration=5)
    assert made.task_status == "PROCESSING" and made.request_id
    site.wait(made.id)
    done = zhipu.videos.retrieve_videos_result(id=made.id)
    assert done.task_status == "SUCCESS"
    assert httpx.get(done.video_result[0].url).content[4:8] == b"ftyp"  # without the key, as its users do
    assert httpx.get(done.video_result[0].cover_image_url).content.startswith(b"RIFF")


@pytest.mark.parametrize(
    "fields, code",
    [
        ({"model": "vidu2"}, "1211"),
        ({"with_audio": True}, "1214"),
        ({"prompt": "x" * 513}, "1261"),
        ({"fps": 24}, "1214"),
    ],
)
def test_zhipus_errors(zhipu, fields, code):
    with pytest.raises(zai.core.APIRequestFailedError) as caught:
        zhipu.videos.generations(**{"model": "cogvideox-3", "prompt": PROMPT} | fields)
    assert f'"code":"{code}"' in str(caught.value).replace(" ", "").replace("'", '"')


def test_zhipus_other_errors(zhipu, site):
    with pytest.raises(zai.core.APIAuthenticationError):
        wrong = zai.ZhipuAiClient(base_url=f"{site.url}/api/paas/v4", api_key="wrong", max_retries=0)
        wrong.videos.retrieve_videos_result(id="x")
    with pytest.raises(zai.core.APIStatusError):
        zhipu.videos.retrieve_videos_result(id="x")


def test_zhipus_tokens(site):
    """The client signs a token with its key and sends that in place of the key."""
    where = dict(base_url=f"{site.url}/api/paas/v4", max_retries=0, disable_token_cache=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyJWT's of a key's length
        client = zai.ZhipuAiClient(api_key=site.key, **where)
        made = client.videos.generations(model="cogvideox-3", prompt=PROMPT)
    assert site.queue.get(made.id).owner == "ada"
    forged = zai.ZhipuAiClient(api_key=site.key[:-4] + "0000", **where)
    with pytest.raises(zai.core.APIAuthenticationError):
        forged.videos.generations(model="cogvideox-3", prompt=PROMPT)
