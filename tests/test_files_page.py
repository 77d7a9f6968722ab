"""Every command and Python block of docs/files.md, on small files of the same names."""

import re
import shlex
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tyro
from gguf_file import gguf_bytes
from packings import nf4, q4_0, q8_0, save, spec_of_16, t5_of_llama_cpp, write_taehv
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
    of_comfyui(folder, published, weights)
    return folder


def of_comfyui(folder, published, weights):
    """Single files, and what is quantised; `weights` are the transformer's."""
    fp8 = {key: array.astype(ml_dtypes.float8_e4m3fn) for key, array in weights.items()}
    save(folder / "cogvideox_5b_fp8.safetensors", {f"model.diffusion_model.{key}": array for key, array in fp8.items()})
    wide = "transformer_blocks.0.ff.net.2"
    blocks = {f"{wide}.Q4_0_qweight": q4_0(np.float32(weights[f"{wide}.weight"]))[0]}
    q4 = {key: array for key, array in weights.items() if key != f"{wide}.weight"} | blocks
    save(folder / "CogVideoX_5b_GGUF_Q4_0.safetensors", q4)
    for name in ("cogvideox_5b_fp8", "CogVideoX_5b_GGUF_Q4_0"):
        shutil.copy(published / "transformer" / "config.json", folder / f"{name}.json")
    shutil.copy(published / "vae" / "diffusion_pytorch_model.safetensors", folder / "cogvideox_vae.safetensors")
    shutil.copy(published / "vae" / "config.json", folder / "cogvideox_vae.json")
    source = open_source(published)
    text = {t.key: t.make() for t in published_tensors(source, source.spec(), "text_encoder")}
    text = {key: np.float32(array) for key, array in text.items()}
    e4m3 = {key: array.astype(ml_dtypes.float8_e4m3fn) for key, array in text.items()}
    save(folder / "t5xxl_fp8_e4m3fn.safetensors", e4m3)
    gguf, _ = t5_of_llama_cpp(text, ("Q8_0", q8_0))
    (folder / "t5-v1_1-xxl-encoder-Q8_0.gguf").write_bytes(gguf_bytes(gguf))
    shutil.copytree(published, folder / "model_nf4")
    parts, _ = nf4(np.float32(weights[f"{wide}.weight"]))
    nf4s = {key: array for key, array in weights.items() if key != f"{wide}.weight"}
    nf4s |= {f"{wide}{end}": part for end, part in parts.items()}
    save(folder / "model_nf4" / "transformer" / "diffusion_pytorch_model.safetensors", nf4s)


def run(command):
    words = shlex.split(command)[1:]
    if words[0] == "generate":
        words += ["--no-progress", "--steps", "2", "--size", "32x48", "--frames", "9"]
    tyro.extras.subcommand_cli_from_dict({name: verb.run for name, verb in VERBS.items()}, args=words)


@pytest.mark.full
def test_the_commands_run(files, monkeypatch, capsys):
    """In the order of the page, as some use what others made; videos are made by the test below."""
    monkeypatch.chdir(files)
    assert len(COMMANDS) >= 12
    for command in COMMANDS:
        if not command.startswith("cogvx generate"):
            run(command)
    printed = capsys.readouterr().out
    assert "width 48, rope" in printed
    for name in (
        "model",
        "whole",
        "tuned",
        "average",
        "trained",
        "sat",
        "single",
        "orbax",
        "mixed",
        "from_fp8",
        "from_gguf",
        "from_nf4",
    ):
        assert read_spec(files / name).transformer == small_spec("5b").transformer, name
    assert not (files / "part" / "vae" / "diffusion_pytorch_model.safetensors").exists()
    merged, base = (open_source(files / name).tensors("transformer") for name in ("merged", "model"))
    changed = [key for key in base if (merged.read(key) != base.read(key)).any()]
    assert changed == [f"transformer_blocks.0.attn1.{name}.weight" for name in ("to_k", "to_out.0", "to_q", "to_v")]


@pytest.mark.full  # a video is compiled
def test_videos_are_made(files, monkeypatch):
    write_small(files / "CogVideoX-5b", spec_of_16())
    write_taehv(files / "taecvx.safetensors")
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
