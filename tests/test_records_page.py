"""Every command and Python block of docs/records.md, with small random models and a stub of a language model."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tyro
from chat_server import chat_server
from PIL import Image
from safetensors.numpy import save_file
from small_files import small_spec, write_small

from cogvx_jax.cli.main import VERBS
from cogvx_jax.data.video import read_video
from cogvx_jax.pipelines.record import Record, read_record

PAGE = (Path(__file__).parents[1] / "docs" / "records.md").read_text()
COMMANDS = re.findall(r"^\|[^|]+\| `(cogvx [^`]+)` \|$", PAGE, flags=re.M)
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
JOBS = re.findall(r"```json\n(.*?)```", PAGE, flags=re.S)
SMALL = ["--steps", "2", "--size", "32x48", "--no-progress"]
ANSWER = "A panda walks through the rain."


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs.jsonl").write_text(JOBS[0])
    Image.new("RGB", (48, 32), "red").save("first.png")
    key = "transformer.transformer_blocks.29.attn1.to_q.lora_"
    pair = {f"{key}A.weight": np.ones((4, 1920), "f2"), f"{key}B.weight": np.ones((1920, 4), "f2")}
    save_file(pair, "panda.safetensors")
    write_small(tmp_path / "CogVideoX-5b", dataclasses.replace(small_spec("5b"), name="CogVideoX-5b"))
    return tmp_path


def run(command):
    words = shlex.split(command)[1:]
    more = {"generate": SMALL, "edit": SMALL, "batch": SMALL, "replay": ["--no-progress"]}.get(words[0], [])
    tyro.extras.subcommand_cli_from_dict({name: verb.run for name, verb in VERBS.items()}, args=[*words, *more])


@pytest.mark.full  # videos are compiled
def test_the_commands_run(files, monkeypatch, capsys):
    pytest.importorskip("openai", reason="of the extra `enhance`")
    assert len(COMMANDS) == 16
    with chat_server(lambda asked: ANSWER) as stub:
        monkeypatch.setenv("OPENAI_BASE_URL", stub.url)
        for command in COMMANDS:
            capsys.readouterr()
            run(command)
            if command.startswith("cogvx enhance"):
                assert capsys.readouterr().out == f"{ANSWER}\n", command
    assert (files / "again.mp4").read_bytes() == (files / "circle.mp4").read_bytes()
    for child in ("star.gif", "edit.mp4"):
        assert read_record(child).inputs[0]["record"] == read_record("circle.mp4").id
    assert read_record("rain.mp4").prompt == ANSWER
    with pytest.raises(ValueError, match="carries no record"):
        read_record("plain.mp4")
    videos = sorted(path.name for path in (files / "videos").iterdir() if path.suffix in (".mp4", ".gif"))
    assert len(videos) == 2 and "star.gif" in videos
    assert read_record("videos/star.gif").options["seed"] == 0  # as the newest command says
    assert len(read_video(files / "videos" / "star.gif")[0]) == 9


@pytest.mark.full  # the tiny model at its own size
def test_the_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for code in PYTHON:
        exec(compile(code, "docs/records.md", "exec"), {})


def test_the_page_names_every_key_of_a_record():
    names = [field.name for field in dataclasses.fields(Record)]
    assert all(f"`{name}`" in PAGE for name in names)
    assert [json.loads(line)["prompt"] for line in JOBS[0].splitlines()] == ["a red circle moves right", "a blue star"]
