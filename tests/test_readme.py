"""Every command and Python block of the README and of docs/training.md runs, but for those that need the hub."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cogvx_jax.data.video import VideoWriter
from cogvx_jax.scripts.controlnet_tiny import outlines
from cogvx_jax.tiny import shapes

README = Path(__file__).parents[1] / "README.md"
PAGES = (README, README.parent / "docs" / "training.md")  # in this order: the second uses what the first makes
BLOCKS = [block for page in PAGES for block in re.findall(r"```(\w+)\n(.*?)```", page.read_text(), flags=re.S)]
PYTHON = [code for language, code in BLOCKS if language == "python"]
STAGES = "".join(text for language, text in BLOCKS if language == "toml")
LINES = [line for language, code in BLOCKS if language == "bash" for line in code.splitlines()]
COMMANDS = [line for line in LINES if re.match(r"(\w+=\w+ )*cogvx ", line)]  # variables may come first


def test_the_two_lines_stand_in_the_readme_and_in_ci():
    ci = (README.parent / ".ci" / "run").read_text()
    text = README.read_text()
    assert 'pip install -e . && cogvx generate "a red circle moves right on a white background" --out out.mp4' in text
    assert "pip install -e '.[test]' && pytest" in text
    assert 'cogvx generate "a red circle moves right on a white background" --out out.mp4' in ci
    assert "install -e '.[test]' && pytest" in ci


@pytest.mark.full  # each is a process of its own
def test_the_commands_run(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red star grows on a white background\n")
    # Of a video that an earlier command makes.
    (tmp_path / "clips.jsonl").write_text('{"video": "square.mp4", "prompt": "a green square grows"}\n')
    row = {"video": "square.mp4", "control": "edges.mp4", "prompt": "a green square grows"}
    (tmp_path / "edges.jsonl").write_text(json.dumps(row) + "\n")
    with VideoWriter(tmp_path / "edges.mp4", 8) as writer:
        writer.write(outlines(shapes.draw(shapes.scenes()[0], np.random.default_rng(0))))
    (tmp_path / "stages.toml").write_text(re.sub(r"steps = \d+", "steps = 1", STAGES))
    assert COMMANDS
    for command in COMMANDS:
        if re.search(r"--topology v\d", command):  # minutes of libtpu's compiler: tests/test_tpu_cost.py has it small
            continue
        words = shlex.split(command)
        at = words.index("cogvx")
        arguments = [sys.executable, "-m", "cogvx_jax.cli", *words[at + 1 :]]
        if arguments[3] == "generate":
            arguments.append("--no-progress")
        if arguments[3] in ("train", "distill", "train-vae") and "--stages" not in arguments:  # the same, but short
            arguments += ["--steps", "1", "--frames", "9", "--size", "32x32"]
        variables = dict(word.split("=") for word in words[:at])
        done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, env=os.environ | variables)
        assert done.returncode == 0, f"{command}\n{done.stderr}"


@pytest.mark.full
def test_the_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = [code for code in PYTHON if "zai-org" not in code]
    assert len(here) >= 3
    _lora(tmp_path / "square_lora.safetensors")
    names: dict = {}
    for code in here:
        exec(compile(code, "README.md", "exec"), names)
    assert {"star.mp4", "green.mp4"} <= {p.name for p in tmp_path.iterdir()}


def _lora(path):
    """What the commands above this code have made."""
    import jax

    from cogvx_jax.convert import write_lora
    from cogvx_jax.models.lora import LoRA, LoRAConfig, init
    from cogvx_jax.pipelines.model import load

    model, cfg = load("tiny"), LoRAConfig(rank=2)
    adapters = init(jax.random.key(0), model.params["transformer"], cfg)
    write_lora(path, LoRA(adapters=adapters, rank=cfg.rank, alpha=cfg.alpha), model.spec)


@pytest.mark.skipif(shutil.which("cogvx") is None, reason="the package is not installed, only its checkout is used")
def test_the_command_is_installed():
    assert subprocess.run(["cogvx", "--version"], capture_output=True).returncode == 0
