"""Every command and Python block of docs/files.md, on small files of the same names."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import tyro
from small_files import STATES, deepspeed, fine_tuned_file, read_all, small_spec, with_lora, write_small

from cogvx_jax.cli.main import VERBS
from cogvx_jax.convert.checkpoint import published_tensors
from cogvx_jax.convert.containers import open_tensors
from cogvx_jax.convert.safetensors import Tensor
from cogvx_jax.convert.sources import open_source, read_spec
from cogvx_jax.convert.targets import write_model
from cogvx_jax.convert.torch_writer import write_torch

PAGE = (Path(__file__).parents[1] / "docs" / "files.md").read_text()
PAGE = re.sub(r"## LoRA files\n.*?(?=\n## )", "", PAGE, flags=re.S)  # tests/test_cli_lora.py runs that section
COMMANDS = [words for words in re.findall(r"`(cogvx [^`]+)`", PAGE) if len(words.split()) > 2]
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a small file for each name of the page."""
    folder = tmp_path_factory.mktemp("files")
    published = write_small(folder / "start", small_spec("5b"))
    sat = folder / "CogVideoX-5b-sat"
    write_model(open_source(published), sat, "sat")
    shutil.copytree(sat / "t5-v1_1-xxl", folder / "t5-v1_1-xxl")
    shutil.copy(sat / "vae" / "3d-vae.pt", folder)
    shutil.copy(sat / "vae" / "config.json", folder / "3d-vae.json")
    shutil.copytree(sat / "transformer" / "1", folder / "1")
    fine_tuned_file(published, sat, folder / "run")
    shutil.copytree(folder / "run" / "500", folder / "run" / "500-ema")
    arrays = with_lora(read_all(open_tensors(folder / "run" / "500" / STATES)))
    (folder / "lora-run" / "1000").mkdir(parents=True)
    (folder / "lora-run" / "latest").write_text("1000")
    write_torch(folder / "lora-run" / "1000" / STATES, [Tensor.of(k, a) for k, a in arrays.items()], "module")
    spec = read_spec(published)
    weights = {t.key: t.make() for t in published_tensors(open_source(published), spec, "transformer")}
    deepspeed(folder / "checkpoint-1000" / "pytorch_model", weights, 2, [list(weights)])
    (folder / "checkpoint-1000" / "latest").write_text("pytorch_model")
    # The published models' widths tell what these small ones do not: their configurations lie beside them.
    for name in ("1", "run/500", "run/500-ema", "lora-run/1000", "checkpoint-1000/pytorch_model"):
        shutil.copy(published / "transformer" / "config.json", folder / name / "config.json")
    for name in ("run", "run/500-ema", "lora-run"):
        (folder / name / "vae").mkdir()
        shutil.copy(published / "vae" / "config.json", folder / name / "vae" / "config.json")
    return folder


def run(command):
    words = shlex.split(command)[1:]
    if words[0] == "generate":
        words += ["--no-progress", "--steps", "2", "--size", "32x48", "--frames", "9"]
    tyro.extras.subcommand_cli_from_dict({name: verb.run for name, verb in VERBS.items()}, args=words)


def test_the_commands_run(files, monkeypatch, capsys):
    """In the order of the page, as some use what others made; videos are made by the test below."""
    monkeypatch.chdir(files)
    assert len(COMMANDS) >= 12
    for command in COMMANDS:
        if not command.startswith("cogvx generate"):
            run(command)
    printed = capsys.readouterr().out
    assert "width 48, rope" in printed
    for name in ("model", "whole", "tuned", "average", "trained", "sat", "single", "orbax", "mixed"):
        assert read_spec(files / name).transformer == small_spec("5b").transformer, name
    assert not (files / "part" / "vae" / "diffusion_pytorch_model.safetensors").exists()
    merged, base = (open_source(files / name).tensors("transformer") for name in ("merged", "model"))
    changed = [key for key in base if (merged.read(key) != base.read(key)).any()]
    assert changed == [f"transformer_blocks.0.attn1.{name}.weight" for name in ("to_k", "to_out.0", "to_q", "to_v")]


@pytest.mark.full  # a video is compiled
def test_videos_are_made(files, monkeypatch):
    monkeypatch.chdir(files)
    for command in COMMANDS:
        if command.startswith("cogvx generate"):
            run(command)
    assert (files / "panda.mp4").stat().st_size > 0


def test_the_python_runs(files, monkeypatch):
    monkeypatch.chdir(files)
    for code in PYTHON:
        names = {}
        exec(compile(code, "docs/files.md", "exec"), names)
        assert names["model"].spec.transformer.text_length == 224
