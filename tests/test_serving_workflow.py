"""ComfyUI's graph that a client sends: it travels in the video, beside the record. And prompts that are rewritten."""

import base64
import io
import json

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("sqlalchemy", reason="the server needs the extra `serve`")
pytest.importorskip("httpx", reason="tests of the server need the extra `test-serve`")

import httpx
from serving import Site, submit

from cogvx_jax.data.comments import MAX_BYTES, read_tags
from cogvx_jax.data.video import VideoWriter
from cogvx_jax.pipelines.record import read_record
from cogvx_jax.serving.adapters import Adapters
from cogvx_jax.serving.making import Maker
from cogvx_jax.serving.queue import Queue
from cogvx_jax.serving.store import WORKFLOW, Store
from cogvx_jax.serving.worker import Worker

GRAPH = {
    "nodes": [{"id": 1, "type": "CogvxTextToVideo", "widgets_values": ["熊猫 \" ' = ;\n", 2**53, 0.1]}],
    "version": 0.4,
}
FRAMES = np.zeros((9, 32, 48, 3), np.uint8)


def graph_maker(job, folder, out, progress):
    """Writes what of a graph came to the worker."""
    with VideoWriter(out, fps=8, tags={"workflow": (folder / WORKFLOW).read_text()}) as writer:
        writer.write(FRAMES)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    made = Site(tmp_path_factory.mktemp("site"), graph_maker)
    yield made
    made.close()


@pytest.mark.parametrize("kind", ["json", "form"])
def test_a_graph_comes_back_with_the_video(site, tmp_path, kind):
    form = {"data": {"prompt": "x", "workflow": json.dumps(GRAPH)}, "files": {}}
    how = {"json": {"prompt": "x", "workflow": GRAPH}} if kind == "json" else form
    made = httpx.post(f"{site.url}/v1/videos", **how)
    assert made.status_code == 200, made.text
    id = made.json()["id"]
    assert site.wait(id).status == "completed"
    (tmp_path / "out.mp4").write_bytes(httpx.get(f"{site.url}/v1/videos/{id}/content").content)
    assert json.loads(read_tags(tmp_path / "out.mp4")["workflow"]) == GRAPH
    assert not (site.store.folder_of(id) / WORKFLOW).exists()  # the video has it


@pytest.mark.parametrize(
    "graph, said", [("x", "an object"), ([1], "an object"), ({"a": "\0"}, "NUL"), ({"a": "x" * MAX_BYTES}, "at most")]
)
def test_what_is_no_graph_is_refused(tmp_path, graph, said):
    site = Site(tmp_path, works=False, limit=4 * MAX_BYTES)
    try:
        answer = httpx.post(f"{site.url}/v1/videos", json={"prompt": "x", "workflow": graph})
    finally:
        site.close()
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "workflow", answer.text
    assert said in answer.json()["error"]["message"]


def test_another_graph_is_another_request(site):
    headers = {"Idempotency-Key": "one"}
    for graph, status in ((GRAPH, 200), (GRAPH, 200), ({}, 409)):
        answer = httpx.post(f"{site.url}/v1/videos", json={"prompt": "x", "workflow": graph}, headers=headers)
        assert answer.status_code == status, answer.text


@pytest.mark.parametrize("record", [True, False])
def test_a_worker_writes_the_graph_beside_the_record(tmp_path, small, record):
    """Without records there is no graph either, which holds the prompt."""
    queue, store = Queue(f"sqlite:///{tmp_path}/queue.sqlite"), Store(tmp_path)
    job = submit(queue, store, "a red circle", asked={"options": {"seed": 3, "steps": 1}})
    (store.folder_of(job.id) / WORKFLOW).write_text(json.dumps(GRAPH))
    Worker(queue, store, Maker(small("2b")[1], Adapters(None), record=record), model="tiny").run(until_idle=True)
    file = store.folder_of(job.id) / queue.get(job.id).result
    if record:
        assert json.loads(read_tags(file)["workflow"]) == GRAPH
        assert read_record(file).prompt == "a red circle"
    else:
        assert not {"workflow", "comment"} & read_tags(file).keys()


def picture():
    file = io.BytesIO()
    PIL.Image.new("RGB", (48, 32), "red").save(file, "PNG")
    return file.getvalue()


def test_prompts_are_rewritten(tmp_path):
    def enhance(prompt, image):
        if prompt == "silence":
            raise OSError("the language model at x did not answer")
        return f"{prompt}, seen{'' if image is None else f' in {image.size}'}"

    site = Site(tmp_path, works=False, enhance=enhance)
    url = f"{site.url}/v1/prompts/enhance"
    try:
        assert httpx.post(url, json={"prompt": "a panda"}).json() == {"prompt": "a panda, seen", "wish": "a panda"}
        seen = httpx.post(url, data={"prompt": "it waves"}, files={"image": picture()})
        assert seen.json()["prompt"] == "it waves, seen in (48, 32)"
        for asked, status, said in (
            ({"prompt": "silence"}, 503, "did not answer"),
            ({"prompt": " "}, 400, "empty"),
            ({"prompt": "x" * 4001}, 400, "at most 4,000"),
            ({"prompt": "x", "colour": 1}, 400, "unknown field 'colour'"),
            ({"prompt": "x", "image": base64.b64encode(picture()[:60]).decode()}, 400, "broken picture"),
        ):
            answer = httpx.post(url, json=asked)
            assert answer.status_code == status and said in answer.json()["error"]["message"], answer.text
    finally:
        site.close()


def test_without_a_language_model_prompts_stay(site):
    answer = httpx.post(f"{site.url}/v1/prompts/enhance", json={"prompt": "a panda"})
    assert answer.status_code == 501 and "OPENAI_API_KEY" in answer.json()["error"]["message"]
