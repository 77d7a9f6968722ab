"""Every command of docs/comfyui.md, and what the page says of the nodes."""

import json
import re
import shlex
from pathlib import Path

import pytest
import tyro

from cogvx_jax.cli.main import VERBS
from cogvx_jax.comfyui_cogvx.declarations import CATEGORY, NODES

PAGE = (Path(__file__).parents[1] / "docs" / "comfyui.md").read_text()
COMMANDS = re.findall(r"^\|[^|]+\| `(cogvx comfy [^`]+)` \|$", PAGE, flags=re.M)
COMMANDS += re.findall(r"^    (cogvx comfy .+)$", PAGE, flags=re.M)
WORKFLOW = {  # for ComfyUI's API
    "1": {"class_type": "DownloadAndLoadCogVideoModel", "inputs": {"model": "THUDM/CogVideoX-5b"}},
    "30": {"class_type": "CogVideoTextEncode", "inputs": {"prompt": "a bear runs", "clip": ["20", 0]}},
    "34": {"class_type": "LoadVideo", "inputs": {"file": "bear.mp4"}},
    "33": {"class_type": "GetVideoComponents", "inputs": {"video": ["34", 0]}},
    "32": {"class_type": "CogVideoImageEncode", "inputs": {"start_image": ["33", 0], "vae": ["1", 1]}},
    "35": {
        "class_type": "CogVideoSampler",
        "inputs": {"model": ["1", 0], "positive": ["30", 0], "samples": ["32", 0], "denoise_strength": 0.7},
    },
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "workflow.json").write_text(json.dumps(WORKFLOW))
    for folder in ("custom_nodes", "input"):
        (tmp_path / "ComfyUI" / folder).mkdir(parents=True)
    (tmp_path / "ComfyUI" / "input" / "bear.mp4").write_bytes(b"clip")
    return tmp_path


def run(command):
    words = shlex.split(command)[1:]
    tyro.extras.subcommand_cli_from_dict({name: verb.run for name, verb in VERBS.items()}, args=words)


def test_the_commands_run(place, capsys):
    assert len(COMMANDS) == 6
    printed = {}
    for command in COMMANDS:
        run(command)
        printed[command] = capsys.readouterr().out
    assert (place / "ComfyUI" / "custom_nodes" / "comfyui_cogvx" / "__init__.py").is_file()
    for command, out in printed.items():
        if "install" in command:
            assert out.startswith("ComfyUI/custom_nodes/comfyui_cogvx: copied")
        elif "--to" in command:
            found = json.loads(out)
            assert (found["prompt"], found["strength"]) == ("a bear runs", 0.7)
            assert found["video"].startswith("data:video/mp4;base64," if "request" in command else "bear.mp4")
        else:
            words = shlex.split(out)
            assert words[:4] == ["cogvx", "generate", "--model", "5b"] and words[-1] == "a bear runs"
            assert f"--video={'ComfyUI/input/' if '--comfyui' in command else ''}bear.mp4" in words


def test_the_page_names_every_node_and_output():
    assert f"*{CATEGORY}*" in PAGE
    rows = re.findall(r"^\| (CogVideoX [a-zA-Z ]+) \|", PAGE, flags=re.M)
    assert rows == [node.title for node in NODES]
    outputs = next(node.outputs for node in NODES if node.id == "CogvxTextToVideo")
    assert re.findall(r"^\| `(\w+)` \| ", PAGE, flags=re.M) == [one.name for one in outputs]
