"""The nodes for ComfyUI: what they declare, what they ask for, and the workflows that come with them."""

import ast
import json
import subprocess
import sys

import pytest
from comfyui_pack import PACK

from cogvx_jax.comfyui_cogvx import nodes, v1
from cogvx_jax.comfyui_cogvx.declarations import NODES, SAMPLERS, WIDGETS
from cogvx_jax.comfyui_cogvx.server import Server, ServerError
from cogvx_jax.diffusion.samplers import SAMPLERS as SERVERS_SAMPLERS

BY_ID = {node.id: node for node in NODES}
RECORDED = json.loads((PACK.parents[1] / "tests" / "data" / "comfyui_object_info.json").read_text())
COMMON = ["prompt", "negative_prompt", "width", "height", "num_frames", "num_inference_steps", "guidance_scale"]
COMMON += ["sampler", "fps", "seed", "more"]
WIDGETS_OF = {  # in the order in which saved workflows hold their values; only ever add at the end
    "CogvxServer": ["url", "key"],
    "CogvxTextToVideo": COMMON,
    "CogvxImageToVideo": COMMON,
    "CogvxVideoToVideo": [*COMMON, "strength"],
    "CogvxLoRA": ["name", "weight"],
    "CogvxEnhancePrompt": ["prompt"],
}
OUTPUTS_OF = dict.fromkeys(
    ("CogvxTextToVideo", "CogvxImageToVideo", "CogvxVideoToVideo"), ["VIDEO", "IMAGE", "FLOAT", "STRING"]
)
OUTPUTS_OF |= {"CogvxServer": ["COGVX_SERVER"], "CogvxLoRA": ["COGVX_LORAS"], "CogvxEnhancePrompt": ["STRING"]}
SOCKETS_OF = {  # links are by name
    "CogvxServer": [],
    "CogvxTextToVideo": ["server", "loras"],
    "CogvxImageToVideo": ["server", "image", "loras", "last_image"],
    "CogvxVideoToVideo": ["server", "loras", "video", "images"],
    "CogvxLoRA": ["loras"],
    "CogvxEnhancePrompt": ["server", "image"],
}
CORE = {  # nodes of ComfyUI in the workflows: widgets, further values of the page, kinds of outputs
    "LoadImage": (["image"], 1, ["IMAGE", "MASK"]),
    "LoadVideo": (["file"], 1, ["VIDEO"]),
    "SaveVideo": (["filename_prefix", "format", "codec"], 0, []),
}
LINKED = {"SaveVideo": {"video": "VIDEO"}}
WORKFLOWS = sorted(path.name for path in (PACK / "example_workflows").glob("*.json"))


def test_what_workflows_store_stays():
    assert [node.id for node in NODES] == list(WIDGETS_OF)
    for node in NODES:
        assert [one.name for one in node.inputs if one.kind in WIDGETS] == WIDGETS_OF[node.id]
        assert [one.name for one in node.inputs if one.kind not in WIDGETS] == SOCKETS_OF[node.id]
        assert [one.kind for one in node.outputs] == OUTPUTS_OF[node.id]
        assert not [one for one in node.inputs if one.optional and one.kind in WIDGETS]  # of today's
        assert node.id.startswith("Cogvx")


@pytest.mark.parametrize("id", WIDGETS_OF)
def test_both_schemas_declare_what_comfyui_answered(id):
    """`GET /object_info` of a ComfyUI that loaded the V3 nodes, beside the V1 classes."""
    recorded, cls = RECORDED["nodes"][id], v1.NODE_CLASS_MAPPINGS[id]
    declared = cls.INPUT_TYPES()
    assert recorded["input_order"] == {part: list(inputs) for part, inputs in declared.items()}
    for part in ("required", "optional"):
        for name, (kind, settings) in declared.get(part, {}).items():
            theirs, about = recorded["input"][part][name]
            if isinstance(kind, list):  # V3 has the choices beside the kind
                assert theirs == "COMBO" and about.pop("options") == kind and about.pop("multiselect") is False
            else:
                assert theirs == kind
            assert about == settings, name
    assert (recorded["output"], recorded["output_name"]) == (list(cls.RETURN_TYPES), list(cls.RETURN_NAMES))
    assert recorded["display_name"] == v1.NODE_DISPLAY_NAME_MAPPINGS[id] and recorded["category"] == cls.CATEGORY


def test_widgets_are_fields_of_the_server():
    pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
    from cogvx_jax.serving.asking import FILES, OPTIONS, OTHERS

    made_into = {"width", "height", "more"}  # size, and the fields inside
    for id in OUTPUTS_OF.keys() - {"CogvxServer", "CogvxLoRA", "CogvxEnhancePrompt"}:
        assert set(WIDGETS_OF[id]) - made_into <= {*OPTIONS, *OTHERS}
    assert {"image", "last_image", "video"} <= FILES.keys()
    assert set(SAMPLERS) == set(SERVERS_SAMPLERS)


ALONE = """
import asyncio, sys

class Refuse:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("jax", "flax", "cogvx_jax", "transformers", "torch", "requests"):
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1])
from comfyui_pack import load
module = load()
names = sorted(name for name in vars(module) if name in ("comfy_entrypoint", "NODE_CLASS_MAPPINGS"))
assert names == ["NODE_CLASS_MAPPINGS"], names
print(*module.NODE_CLASS_MAPPINGS)
"""


def test_the_pack_needs_no_other_package():
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(PACK.parents[1] / "tests")],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ""},
    )
    assert done.stdout.split() == list(WIDGETS_OF), done.stderr


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in sorted(PACK.glob("*.py"))])
def test_files_are_read_by_older_pythons_and_import_what_comfyui_brings(path):
    tree = ast.parse(path.read_text(), feature_version=(3, 10))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    brought = {"av", "comfy", "numpy", "PIL", "server", "torch"}  # `server` is a module of ComfyUI
    assert {name.partition(".")[0] for name in names} <= brought | sys.stdlib_module_names


def test_what_is_zero_is_left_to_the_model():
    plain = {one.name: one.default for one in BY_ID["CogvxTextToVideo"].inputs if one.kind in WIDGETS}
    assert nodes.fields_of(**plain | {"prompt": "a"}) == {"prompt": "a", "seed": 0}
    asked = plain | dict(prompt="a", width=720, height=480, num_frames=9, fps=8.0, sampler="dpm", seed=2**32 + 1)
    asked |= dict(loras=({"name": "x", "weight": 0.5},), more='{"reuse": "every:2"}', negative_prompt="b")
    assert nodes.fields_of(**asked) == {
        "prompt": "a",
        "negative_prompt": "b",
        "seed": 0,
        "size": "720x480",
        "num_frames": 9,
        "fps": 8.0,
        "sampler": "dpm",
        "loras": [{"name": "x", "weight": 0.5}],
        "reuse": "every:2",
    }


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(width=720), "give width and height"),
        (dict(more="["), "more must be a JSON object, and is none"),
        (dict(more="[1]"), "more must be a JSON object, such as"),
        (dict(more="[" * 10**5), "more must be a JSON object"),
        (dict(more='{"seed": 1}'), "seed stands in more"),
    ],
)
def test_widgets_that_cannot_be(wrong, said):
    plain = {one.name: one.default for one in BY_ID["CogvxTextToVideo"].inputs if one.kind in WIDGETS}
    with pytest.raises(ValueError, match=said):
        nodes.fields_of(**plain | wrong)


def test_seeds_of_64_bits():
    assert [nodes.folded(seed) for seed in (0, 7, 2**32 - 1)] == [0, 7, 2**32 - 1]
    assert [nodes.folded(seed) for seed in (2**32, 2**63 + 5, 2**64 - 1)] == [1, 2**31 + 5, 0]


def test_loras_are_a_chain():
    call = nodes.Call()
    first = nodes.lora(call, "a", 0.5)[0]
    assert nodes.lora(call, " b ", 1.0, first) == (({"name": "a", "weight": 0.5}, {"name": "b", "weight": 1.0}),)
    with pytest.raises(ValueError, match="name is empty"):
        nodes.lora(call, " ", 1.0)


def test_addresses():
    for url in ("127.0.0.1:8000", "ftp://x", "", "http://"):
        with pytest.raises(ServerError, match="the url of a server is such as"):
            nodes.server(nodes.Call(), url, "")
    assert "secret" not in repr(nodes.server(nodes.Call(), " http://x:1/ ", "secret"))


def test_graphs_go_without_keys():
    typed = {"type": "CogvxServer", "widgets_values": ["http://x", "secret"]}
    named = {"type": "CogvxServer", "widgets_values": ["http://x", "$COGVX_KEY"]}
    graph = {"nodes": [typed, named], "definitions": {"subgraphs": [{"nodes": [typed]}]}}
    sent = nodes.graph_of({"workflow": graph})
    assert "secret" not in json.dumps(sent) and sent["nodes"][1] == named
    assert typed["widgets_values"][1] == "secret"  # ComfyUI's own stays
    for none in (None, {}, {"workflow": None}, {"workflow": {"a": "x" * 2**20}}):
        assert nodes.graph_of(none) is None


# --- the workflows that come with the pack


def read(name, api=False):
    return json.loads((PACK / "example_workflows" / ("api" if api else "") / name).read_text())


def test_there_are_three():
    assert WORKFLOWS == [f"cogvx_{kind}_to_video.json" for kind in ("image", "text", "video")]


def declared(kind):
    """Names of widgets (None for what only the page has), kinds of sockets, kinds of outputs."""
    if kind in CORE:
        names, spare, outputs = CORE[kind]
        return [*names, *[None] * spare], LINKED.get(kind, {}), outputs
    node = BY_ID[kind]
    widgets = [one for one in node.inputs if one.kind in WIDGETS]
    names = [name for one in widgets for name in ([one.name, None] if one.control else [one.name])]
    sockets = {one.name: one.kind for one in node.inputs if one.kind not in WIDGETS}
    return names, sockets, [one.kind for one in node.outputs]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_file_for_the_page_and_that_for_the_api_are_one(name):
    page, api = read(name), read(name, api=True)
    links, found = {link[0]: link for link in page["links"]}, {}
    assert page["version"] == 0.4 and len(links) == page["last_link_id"]
    for node in page["nodes"]:
        names, sockets, outputs = declared(node["type"])
        assert len(node["widgets_values"]) == len(names)
        assert [one["type"] for one in node["outputs"]] == outputs
        inputs = {}
        for one in node["inputs"]:
            assert one["type"] == sockets[one["name"]]
            if one["link"] is not None:
                _, source, slot, target, _, kind = links[one["link"]]
                assert (target, kind) == (node["id"], one["type"])
                inputs[one["name"]] = [str(source), slot]
        inputs |= {key: value for key, value in zip(names, node["widgets_values"], strict=True) if key}
        found[str(node["id"])] = (node["type"], inputs)
    assert found == {id: (node["class_type"], node["inputs"]) for id, node in api.items()}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_are_valid(name):
    """As ComfyUI validates them before it runs one."""
    api = read(name, api=True)
    for node in api.values():
        names, sockets, _ = declared(node["class_type"])
        required = set(filter(None, names)) | sockets.keys()
        if node["class_type"] in BY_ID:
            required -= {one.name for one in BY_ID[node["class_type"]].inputs if one.optional}
        assert required <= node["inputs"].keys()
        for key, value in node["inputs"].items():
            if isinstance(value, list):
                source, slot = value
                assert declared(api[source]["class_type"])[2][slot] == sockets[key]
            elif node["class_type"] in BY_ID:
                check(next(one for one in BY_ID[node["class_type"]].inputs if one.name == key), value)


def check(one, value):
    if one.choices:
        assert value in one.choices
    elif one.kind == "STRING":
        assert isinstance(value, str)
    else:
        assert type(value) in ((int,) if one.kind == "INT" else (int, float)) and one.low <= value <= one.high


def test_defaults_are_valid():
    for one in (one for node in NODES for one in node.inputs if one.kind in WIDGETS):
        check(one, one.default)


def test_the_server_of_the_workflows_is_where_serve_listens():
    assert Server(BY_ID["CogvxServer"].inputs[0].default).url == "http://127.0.0.1:8000"
