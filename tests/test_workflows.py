"""Workflows of ComfyUI's CogVideoX wrapper as requests: files of its page and of its API, and hostile ones."""

import base64
import copy
import json
import random
import shlex
import sys

import pytest
import tyro

from cogvx_jax.cli import main as cli
from cogvx_jax.cli.main import VERBS
from cogvx_jax.comfyui_cogvx.nodes import folded
from cogvx_jax.pipelines.options import Options
from cogvx_jax.workflows.bodies import body_of
from cogvx_jax.workflows.graphs import CONTROL, MAX_NODES, read_graph
from cogvx_jax.workflows.requests import import_graph
from cogvx_jax.workflows.wrapper import SAMPLERS, WIDGETS

PROMPT, NEGATIVE = "a bear runs\ndown a stream\n\n", "blurry"
T5 = ("CLIPLoader", {"clip_name": "t5.safetensors", "type": "sd3"}, {})
ENDS = {  # nodes that all three have: id -> kind, values, links
    "20": T5,
    "30": ("CogVideoTextEncode", {"prompt": PROMPT}, {"clip": ("20", 0)}),
    "31": ("CogVideoTextEncode", {"prompt": NEGATIVE, "strength": 1, "force_offload": True}, {"clip": ("30", 1)}),
    "40": ("CogVideoDecode", {}, {"vae": ("1", 1), "samples": ("35", 0)}),
    "41": ("VHS_VideoCombine", {"frame_rate": 8, "format": "video/h264-mp4", "crf": 19}, {"images": ("40", 0)}),
}
SAMPLER = {"num_frames": 49, "steps": 25, "cfg": 6, "seed": 7, "scheduler": "CogVideoXDDIM", "denoise_strength": 1}
LINKS = {"model": ("1", 0), "positive": ("30", 0), "negative": ("31", 0)}


def model(name, **links):
    values = {"precision": "bf16", "quantization": "disabled", "enable_sequential_cpu_offload": False}
    return ("DownloadAndLoadCogVideoModel", {"model": name} | values | {"attention_mode": "sdpa"}, links)


def sampler(links, **values):
    return ("CogVideoSampler", SAMPLER | values, LINKS | links)


def resize(of, width=720, height=480, crop="disabled"):
    values = {"width": width, "height": height, "upscale_method": "lanczos", "keep_proportion": False}
    return (
        "ImageResizeKJ",
        values | {"divisible_by": 16, "width_input": 0, "height_input": 0, "crop": crop},
        {"image": of},
    )


ENCODE = ("CogVideoImageEncode", {"enable_tiling": False, "noise_aug_strength": 0.05}, {"start_image": ("37", 0)})
T2V = ENDS | {
    "1": model("THUDM/CogVideoX-5b"),
    "35": sampler({"samples": ("36", 0)}, scheduler="CogVideoXDPMScheduler"),
    "36": ("EmptyLatentImage", {"width": 720, "height": 480, "batch_size": 1}, {}),
}
I2V = ENDS | {
    "1": model("kijai/CogVideoX-5b-1.5-I2V"),
    "35": sampler({"image_cond_latents": ("38", 0)}),
    "36": ("LoadImage", {"image": "animals\\stag.png"}, {}),
    "37": resize(("36", 0)),
    "38": ENCODE[:2] + ({"start_image": ("37", 0), "end_image": ("39", 0)},),
    "39": ("LoadImage", {"image": "last.png [output]"}, {}),
}
LOADED = {"video": "jeep.mp4", "force_rate": 0, "frame_load_cap": 20, "skip_first_frames": 0, "select_every_nth": 1}
V2V = ENDS | {
    "1": model("THUDM/CogVideoX-2b", lora=("50", 0)),
    "35": sampler({"samples": ("38", 0), "num_frames": ("39", 3)}, denoise_strength=0.8),
    "36": ("VHS_LoadVideo", LOADED, {"frame_load_cap": ("42", 0)}),
    "37": ("GetImageSizeAndCount", {}, {"image": ("43", 0)}),
    "38": ENCODE,
    "39": ("GetImageSizeAndCount", {}, {"image": ("37", 0)}),
    "42": ("INTConstant", {"value": 33}, {}),
    "43": resize(("36", 0)),
    "50": ("CogVideoLoraSelect", {"lora": "b.safetensors", "strength": 0.5}, {"prev_lora": ("51", 0)}),
    "51": ("CogVideoLoraSelectComfy", {"lora": "a.safetensors", "strength": 1}, {}),
}
OF_ALL = dict(steps=25, guidance_scale=6, seed=7, size=[480, 720], fps=8, negative_prompt=NEGATIVE)
EXPECTED = {  # prompt, model, LoRAs, and options
    "t2v": ("5b", (), OF_ALL | dict(frames=49, sampler="dpm")),
    "i2v": (
        "1.5-5b-i2v",
        (),
        OF_ALL
        | dict(frames=49, sampler="ddim")
        | dict(image="input/animals/stag.png", last_image="output/last.png", image_noise=0.05),
    ),
    "v2v": (
        "2b",
        (("models/loras/a.safetensors", 1.0), ("models/CogVideo/loras/b.safetensors", 0.5)),
        OF_ALL | dict(frames=33, sampler="ddim") | dict(video="input/jeep.mp4", strength=0.8),
    ),
}
GRAPHS = {"t2v": T2V, "i2v": I2V, "v2v": V2V}


def api(graph):
    """A file for ComfyUI's API."""
    return {
        id: {"class_type": kind, "inputs": values | {name: list(link) for name, link in links.items()}}
        for id, (kind, values, links) in graph.items()
    }


def page(graph, objects=False):
    """A file of ComfyUI's page: values by position, with what stands after a seed; links by number."""
    nodes, links = [], []
    for id, (kind, values, ends) in graph.items():
        inputs = []
        for name, (source, output) in ends.items():
            links.append([len(links) + 1, int(source), output, int(id), len(inputs), "X"])
            inputs.append({"name": name, "type": "X", "link": len(links)})
        inputs.append({"name": "more", "type": "X", "link": None})
        known, positions = WIDGETS.get(kind), values if kind.startswith("VHS") else list(values.values())
        if known is not None:
            positions = []
            for widget in known:
                if widget.name not in values and len(positions) >= len(values):
                    break  # an older version of the node had fewer
                positions.append(values.get(widget.name, widget.default))
                positions += ["fixed"] if widget.controlled else []
        nodes.append(
            {"id": int(id), "type": kind, "mode": 0, "inputs": inputs, "outputs": [], "widgets_values": positions}
        )
    if objects:
        links = [
            {"id": a, "origin_id": b, "origin_slot": c, "target_id": d, "target_slot": e} for a, b, c, d, e, _ in links
        ]
    return {"nodes": nodes, "links": links, "version": 0.4}


FORMS = {
    "api": api,
    "posted": lambda graph: {"prompt": api(graph), "client_id": "x"},
    "page": page,
    "objects": lambda graph: page(graph, objects=True),
}


@pytest.fixture
def imported(tmp_path):
    def read(found, **how):
        (tmp_path / "w.json").write_text(json.dumps(found))
        return import_graph(read_graph(tmp_path / "w.json", WIDGETS), **how)

    return read


def changed(graph, id, kind=None, values=None, links=None):
    """A graph with another node, or with more values or links of one."""
    new = copy.deepcopy(graph)
    old = new.get(id, (kind, {}, {}))
    new[id] = (kind or old[0], old[1] | (values or {}), old[2] | (links or {}))
    return new


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", GRAPHS)
def test_the_wrappers_workflows_become_requests(imported, tmp_path, name, form):
    found = imported(FORMS[form](GRAPHS[name]), comfyui=tmp_path)
    named, loras, options = EXPECTED[name]
    assert (found.prompt, found.model, found.notes) == ("a bear runs down a stream", named, ())
    assert found.loras == tuple((str(tmp_path / path), weight) for path, weight in loras)
    places = {key: str(tmp_path / value) for key, value in options.items() if key in ("image", "last_image", "video")}
    assert found.options == options | places
    Options(**found.options)


def test_without_comfyuis_folder_names_stay(imported):
    assert imported(page(I2V)).options["image"] == "animals/stag.png"
    assert imported(api(V2V)).loras == (("a.safetensors", 1.0), ("b.safetensors", 0.5))


EXTRAS = T2V
for _id, _name, _kind, _values in (
    (
        "60",
        "context_options",
        "CogVideoContextOptions",
        {"context_frames": 48, "context_overlap": 8, "context_schedule": "uniform_looped"},
    ),
    ("61", "feta_args", "CogVideoEnhanceAVideo", {"weight": 2.0, "start_percent": 0.2}),
    ("62", "teacache_args", "CogVideoXTeaCache", {"rel_l1_thresh": 0.25}),
    ("63", "fastercache", "CogVideoXFasterCache", {}),
    ("64", "controlnet", "CogVideoControlNet", {}),
    ("65", "tora_trajectory", "ToraEncodeTrajectory", {}),
):
    EXTRAS = changed(changed(EXTRAS, _id, _kind, _values), "35", links={_name: (_id, 0)})


def test_windows_and_enhancement_are_carried_over(imported):
    found = imported(api(EXTRAS))
    assert (found.options["enhance"], found.options["reuse"]) == (2.0, "teacache:0.25")
    assert found.options["windows"].startswith("48:8") and "looped" in found.options["windows"]
    said = " ".join(found.notes)
    for kind in ("CogVideoXFasterCache", "CogVideoControlNet", "ToraEncodeTrajectory"):
        assert f"({kind}) is not carried over" in said
    assert "(CogVideoEnhanceAVideo) counts in all steps" in said and "TeaCache is lossy" in said


@pytest.mark.parametrize(
    "graph, said",
    [
        (changed(T2V, "30", values={"strength": 2.0}), "the strength of node 30"),
        (changed(T2V, "35", values={"denoise_strength": 0.5}), "denoise_strength 0.5 is not carried over"),
        (changed(T2V, "35", values={"scheduler": "PNDM"}), "the scheduler 'PNDM' is not there"),
        (changed(T2V, "35", values={"seed": 2**40}), "a seed of more than 32 bits"),
        (changed(T2V, "1", values={"quantization": "fp8_e4m3fn"}), "quantization 'fp8_e4m3fn' is not carried over"),
        (changed(T2V, "1", values={"enable_sequential_cpu_offload": True}), "--memory auto"),
        (changed(T2V, "1", kind="CogVideoXModelLoader"), "is a transformer alone"),
        (changed(I2V, "37", values={"crop": "center"}), "keeps proportions or crops"),
        (changed(I2V, "38", values={"start_percent": 0.1}), "start_percent of node 38"),
        (changed(I2V, "36", kind="DWPreprocessor"), "put its file in place of IMAGE"),
        (changed(V2V, "36", values={"skip_first_frames": 5}), "skip_first_frames of node 36"),
        (
            changed(V2V, "42", kind="Elsewhere"),
            "frame_load_cap of node 36 (VHS_LoadVideo) comes from node 42 (Elsewhere)",
        ),
    ],
)
def test_what_is_not_carried_over_is_said(imported, graph, said):
    for form in (api, page):
        assert said in " ".join(imported(form(graph)).notes)


@pytest.mark.parametrize("seed", [0, 7, 2**32, 2**64 - 1])
def test_seeds_are_those_of_our_nodes(imported, seed):
    assert imported(api(changed(T2V, "35", values={"seed": seed}))).options["seed"] == folded(seed)


def test_positions_of_older_versions(imported):
    """Fewer values are an older node's; of another kind, they are not read."""
    found = page(T2V)
    node = next(node for node in found["nodes"] if node["type"] == "CogVideoSampler")
    node["widgets_values"] = [49, 25, 6, 7, "randomize", "CogVideoXDDIM"]
    assert imported(found).options["sampler"] == "ddim"
    node["widgets_values"] = [480, 720, 49, 25, 6.0, 7, "fixed", "DDIM"]
    with pytest.raises(ValueError, match="node 35 .CogVideoSampler. cannot be read: its scheduler is 6.0"):
        imported(found)
    found = page(I2V)
    next(node for node in found["nodes"] if node["type"] == "CogVideoImageEncode")["widgets_values"] = [16, False]
    assert "node 38 (CogVideoImageEncode) is taken with its defaults" in imported(found).notes[0]


def test_nodes_that_hand_on_or_do_not_run(imported):
    found = page(changed(changed(T2V, "35", links={"samples": ("70", 0)}), "70", "Reroute", links={"": ("36", 0)}))
    assert imported(found).options["size"] == [480, 720]
    found = page(changed(I2V, "38", links={"start_image": ("37", 0)}))
    resizing = next(node for node in found["nodes"] if node["id"] == 37)
    resizing |= {"mode": 4, "outputs": [{"name": "IMAGE", "type": "X"}]}
    assert "size" not in imported(found).options and imported(found).options["image"] == "animals/stag.png"
    next(node for node in found["nodes"] if node["id"] == 36)["mode"] = 2
    assert "comes from a node that does not run" in imported(found).notes[0]


def test_one_of_several_samplers(imported):
    two = changed(T2V, "80", "CogVideoSampler", SAMPLER | {"seed": 9}, LINKS)
    with pytest.raises(ValueError, match="2 nodes CogVideoSampler; say which by --node, one of 35, 80"):
        imported(api(two))
    assert imported(api(two), node="80").options["seed"] == 9
    with pytest.raises(ValueError, match="no CogVideoSampler '5' in it; there are 35, 80"):
        imported(api(two), node="5")


@pytest.mark.parametrize(
    "found, said",
    [
        ([], "not a JSON object"),
        ({}, "no workflow of ComfyUI"),
        ({"1": 5}, "no workflow of ComfyUI"),
        ({"nodes": 5}, "nodes must be a list"),
        ({"nodes": [{}]}, "id must be"),
        ({"nodes": [{"id": 1}]}, "type of a node must be text"),
        ({"nodes": [{"id": 1, "type": "x"}] * 2}, "the same id"),
        ({"nodes": [{"id": 1, "type": "x", "inputs": 3}]}, "inputs of a node must be a list"),
        ({"nodes": [], "links": [3]}, "a link is"),
        ({"nodes": [{"id": i, "type": "x"} for i in range(MAX_NODES + 1)]}, "nodes, of which at most"),
        ({"1": {"class_type": 3}}, "class_type of a node must be text"),
        ({"1": {"class_type": "x", "inputs": []}}, "inputs of node 1 must be an object"),
        (api(ENDS), "no CogVideoSampler in it"),
        (api(changed(T2V, "36", kind="Noise")), "samples of node 35 .CogVideoSampler. comes from node 36 .Noise."),
        (api(changed(T2V, "30", kind="CogVideoTextEncodeCombine")), "positive of node 35"),
        (api(changed(T2V, "30", links={"prompt": ("20", 0)})), "prompt of node 30 .* whose text is not known"),
        (api(changed(T2V, "41", values={"frame_rate": -5})), "fps must be"),
        (api(changed(V2V, "51", links={"prev_lora": ("50", 0)})), "comes from itself"),
        (api(changed(I2V, "36", values={"image": "../../etc/passwd"})), "leads out of ComfyUI's input"),
        (api(changed(I2V, "36", values={"image": "C:\\x.png"})), "leads out of ComfyUI's input"),
        (api(changed(V2V, "51", values={"lora": "/etc/x"})), "leads out of ComfyUI's models/loras"),
        (
            page(changed(changed(T2V, "35", links={"samples": ("70", 0)}), "70", "Reroute", links={"": ("70", 0)})),
            "itself",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(imported, found, said):
    with pytest.raises(ValueError, match=said) as caught:
        imported(found)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_pictures_in_a_circle_end(imported):
    round_ = changed(
        changed(I2V, "37", links={"image": ("39", 0)}), "39", "GetImageSizeAndCount", links={"image": ("37", 0)}
    )
    assert any("put its file in place of IMAGE" in note for note in imported(api(round_)).notes)


def test_broken_graphs_are_refused_or_read(imported):
    """Whatever stands where, a sentence or a request comes out."""
    rng = random.Random(0)
    values = [None, True, -1, 2**70, 1.5, "x", "\0", [], {}, ["35", 0], ["x", -1], {"a": 1}, *CONTROL]

    def spoil(found):
        place = found
        while True:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            if not keys:
                return
            key = rng.choice(keys)
            if not isinstance(place[key], dict | list) or rng.random() < 0.15:
                place[key] = copy.deepcopy(rng.choice(values))
                return
            place = place[key]

    outcomes = set()
    for _ in range(200):
        found = rng.choice(list(FORMS.values()))(rng.choice([T2V, I2V, V2V, EXTRAS]))
        for _ in range(rng.randint(1, 3)):
            spoil(found)
        try:
            outcomes.add(type(imported(found)).__name__)
        except ValueError as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
    assert outcomes == {"Imported", "refused"}


def test_hostile_json(tmp_path):
    for text, said in (("[" * 10**5, "nested too deep"), ('{"a": NaN}', "not finite"), ('{"a": 1, "a": 2}', "twice")):
        (tmp_path / "w.json").write_text(text)
        with pytest.raises(ValueError, match=said):
            read_graph(tmp_path / "w.json", WIDGETS)
    (tmp_path / "w.json").write_text(json.dumps({"a": "x" * 2**23}))
    with pytest.raises(ValueError, match="w.json"):
        read_graph(tmp_path / "w.json", WIDGETS)


def test_samplers_are_ours():
    for ours in SAMPLERS.values():
        Options(sampler=ours)


# --- the command


def cogvx(*arguments, monkeypatch, code=0):
    monkeypatch.setattr(sys, "argv", ["cogvx", "comfy", *map(str, arguments)])
    if not code:
        return cli.main()
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == code


@pytest.mark.parametrize("name", GRAPHS)
def test_the_command_is_that_of_generate(tmp_path, monkeypatch, capsys, name):
    (tmp_path / "w.json").write_text(json.dumps(page(GRAPHS[name])))
    cogvx("import", tmp_path / "w.json", monkeypatch=monkeypatch)
    words, seen = shlex.split(capsys.readouterr().out), {}
    assert words[:2] == ["cogvx", "generate"]
    monkeypatch.setattr(
        "cogvx_jax.cli.generate.make_videos", lambda jobs, run, *rest: seen.update(job=jobs[0], run=run)
    )
    tyro.extras.subcommand_cli_from_dict({name: verb.run for name, verb in VERBS.items()}, args=words[1:])
    job, (named, loras, options) = seen["job"], EXPECTED[name]
    assert (job.prompt, seen["run"].model) == ("a bear runs down a stream", named)
    assert len(seen["run"].lora) == len(loras) and job.options.seed == options["seed"]
    assert job.options.size == tuple(options["size"]) and job.options.steps == options["steps"]
    assert bool(job.options.video) == ("video" in options) and job.options.negative_prompt == NEGATIVE


def test_lines_and_requests(tmp_path, monkeypatch, capsys):
    (tmp_path / "w.json").write_text(json.dumps(api(V2V)))
    cogvx("import", tmp_path / "w.json", "--to", "line", monkeypatch=monkeypatch)
    out, said = capsys.readouterr()
    assert json.loads(out)["video"] == "jeep.mp4" and json.loads(out)["prompt"] == "a bear runs down a stream"
    assert "give --model 2b --lora a.safetensors:1 --lora b.safetensors:0.5" in said
    cogvx("import", tmp_path / "w.json", "--to", "request", monkeypatch=monkeypatch, code=2)
    assert "the video 'jeep.mp4' is not there; --comfyui says" in capsys.readouterr().err
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "jeep.mp4").write_bytes(b"clip")
    cogvx("import", tmp_path / "w.json", "--to", "request", "--comfyui", tmp_path, monkeypatch=monkeypatch)
    body = json.loads(capsys.readouterr().out)
    assert body["video"] == f"data:video/mp4;base64,{base64.b64encode(b'clip').decode()}"
    assert (body["size"], body["num_frames"], body["num_inference_steps"]) == ("720x480", 33, 25)
    assert body["loras"] == [{"name": "a", "weight": 1.0}, {"name": "b", "weight": 0.5}]


def test_requests_are_what_the_server_takes(imported):
    pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
    from cogvx_jax.pipelines.model import load_spec
    from cogvx_jax.serving.asking import read_asked
    from cogvx_jax.serving.bodies import Fields

    asked = read_asked(Fields(body_of(imported(api(EXTRAS)))), load_spec("tiny"))
    assert asked.options["reuse"] == "teacache:0.25" and asked.options["frames"] == 49


def test_the_nodes_are_installed(tmp_path, monkeypatch, capsys):
    cogvx("install", tmp_path, monkeypatch=monkeypatch, code=2)
    assert "there is no folder" in capsys.readouterr().err
    nodes = tmp_path / "custom_nodes"
    nodes.mkdir()
    target = nodes / "comfyui_cogvx"
    for place, flags in ((tmp_path, []), (nodes, []), (nodes, ["--link"]), (tmp_path, ["--link"]), (tmp_path, [])):
        cogvx("install", place, *flags, monkeypatch=monkeypatch)
        assert (target / "__init__.py").is_file() and target.is_symlink() == bool(flags)
        assert (target / "example_workflows" / "api" / "cogvx_text_to_video.json").is_file()
    assert not list(target.glob("**/__pycache__"))
    (target / "declarations.py").unlink()
    cogvx("install", tmp_path, monkeypatch=monkeypatch, code=2)
    assert "is something else; move it away" in capsys.readouterr().err
