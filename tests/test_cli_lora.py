"""`cogvx lora`: info, convert, merge; and how a LoRA of a maker comes to a video."""

import dataclasses
import json
import re
import shlex
import shutil
import sys
import typing
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

import cogvx_jax as cx
from cogvx_jax.cli import lora
from cogvx_jax.cli import main as cli
from cogvx_jax.configs import LoRAConfig
from cogvx_jax.convert import open_lora, read_lora, write_lora
from cogvx_jax.convert.lora_formats import WRITTEN
from cogvx_jax.convert.runs import transformer_shapes
from cogvx_jax.models import lora as loras
from cogvx_jax.pipelines.model import TINY

DATA = Path(__file__).parent / "data" / "lora_formats"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command; gives what it prints, or the sentence of its error."""

    def run(*arguments, status=0):
        monkeypatch.setattr(sys, "argv", ["cogvx", "lora", *map(str, arguments)])
        if status:
            with pytest.raises(SystemExit) as stopped:
                cli.main()
            assert stopped.value.code == status
            said = capsys.readouterr()
            assert not said.out and all(line.startswith("cogvx: ") for line in said.err.splitlines())
            return said.err.splitlines()[-1]
        cli.main()
        return capsys.readouterr()

    return run


def kohya(path, spec, blocks=None, rank=2, alpha=1.0):
    """A file for a model: queries of its blocks."""
    rng, width, tensors = np.random.default_rng(0), spec.transformer.width, {}
    for i in range(blocks or spec.transformer.layers):
        key = f"lora_unet_transformer_blocks_{i}_attn1_to_q"
        tensors[f"{key}.lora_down.weight"] = rng.normal(size=(rank, width)).astype(np.float32)
        tensors[f"{key}.lora_up.weight"] = rng.normal(size=(width, rank)).astype(np.float32)
        tensors[f"{key}.alpha"] = np.array(alpha, np.float32)
    save_file(tensors, path)
    return path


def a_run(folder, spec):
    """What `cogvx train` leaves of a LoRA of queries."""
    lora = LoRAConfig(rank=2, targets=("to_q",))
    adapters = loras.init(jax.random.key(0), transformer_shapes(spec), lora)
    with ocp.CheckpointManager(folder / "checkpoints", item_handlers=ocp.PyTreeCheckpointHandler()) as manager:
        manager.save(1, args=ocp.args.PyTreeSave({"params": adapters, "average": None}))
    said = {"source": "tiny", "name": spec.name, "width": spec.transformer.width, "layers": spec.transformer.layers}
    (folder / "run.json").write_text(json.dumps(said | {"lora": dataclasses.asdict(lora)}))


def test_info_needs_no_model(run):
    said = run("info", DATA / "videox_fun.safetensors").out
    for words in (
        "VideoX-Fun",
        "1 (tensors of the file)",
        "0.5",
        "6 in 1 block",
        "transformer_blocks.*.attn1.to_q, 16",
    ):
        assert words in said
    facts = json.loads(run("info", DATA / "peft_folded.safetensors", "--alpha", "1", "--json").out)
    assert (facts["dialect"], facts["alpha"], facts["scale"]) == ("diffusers and PEFT", "1 (given)", "0.5")
    assert facts["fits"] == "no published model" and facts["made for"] == "a model of width 16 and 1 layer"


def test_info_of_a_file_that_may_be_of_sat(run, tmp_path):
    key = "transformer.transformer_blocks.29.attn1.to_q.lora_"
    file = tmp_path / "lora.safetensors"
    save_file({f"{key}A.weight": np.ones((128, 1920), "f2"), f"{key}B.weight": np.ones((1920, 128), "f2")}, file)
    said = run("info", file).out
    assert "CogVideoX-2b (width 1920 and 30 layers)" in said and "one of SAT's exporter needs alpha=1" in said
    assert "fits      CogVideoX-2b, CogVideoX-Fun-2b-InP, CogVideoX-Fun-V1.1-2b-Control" in said
    run("convert", file, tmp_path / "fixed.safetensors", "--alpha", 1)
    said = run("info", tmp_path / "fixed.safetensors").out
    assert "SAT" not in said and "1 (the file's metadata)" in said and "0.0078125" in said


def test_convert_and_merge_files(run, tmp_path):
    one, two = DATA / "kohya.safetensors", DATA / "peft_folded.safetensors"
    said = run("convert", one, tmp_path / "fun.safetensors", "--to", "fun")
    assert "kohya, 6 modules, rank 2, alpha 1 (tensors of the file), scale 0.5" in said.err
    assert "VideoX-Fun, 6 modules, rank 2" in said.out
    assert all(key.startswith("lora_unet__") for key in load_file(tmp_path / "fun.safetensors"))
    run("merge", f"{one}:0.5", two, "--out", tmp_path / "both.safetensors")
    both = open_lora(tmp_path / "both.safetensors")
    for name, delta in np.load(DATA / "delta.npz").items():
        a, b = both.read(name)
        np.testing.assert_allclose(both.modules[name].alpha.scale * (a @ b).T, 1.5 * delta, atol=1e-6)
    run("merge", f"{one}:-1", f"{one}:3", "--out", tmp_path / "two.safetensors", "--to", "kohya")
    assert open_lora(tmp_path / "two.safetensors").told() == (
        "kohya, 6 modules, rank 4, alpha 4 (tensors of the file), scale 1"
    )
    run("merge", one, "--out", tmp_path / "one.safetensors", "--dtype", "bfloat16")
    assert {str(x.dtype) for x in load_file(tmp_path / "one.safetensors").values()} == {"bfloat16"}


def test_merge_into_a_model(run, small, tmp_path, monkeypatch, capsys):
    folder, model = small("5b")
    file = kohya(tmp_path / "x.safetensors", model.spec)
    run("merge", f"{file}:0.5", f"{file}:2", "--model", folder, "--out", tmp_path / "merged")
    merged, lora = cx.load(tmp_path / "merged"), read_lora(file, model.spec)
    expected = loras.merge(model.params["transformer"], lora.adapters, 2.5 * lora.scale)
    q = merged.params["transformer"]["blocks"]["attention"]["q"]["kernel"]
    np.testing.assert_allclose(q, expected["blocks"]["attention"]["q"]["kernel"], atol=1e-5)
    np.testing.assert_array_equal(
        merged.params["transformer"]["blocks"]["attention"]["k"]["kernel"],
        model.params["transformer"]["blocks"]["attention"]["k"]["kernel"],
    )
    stored = load_file(tmp_path / "merged" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {str(x.dtype) for x in stored.values()} == {"float32"}  # as in the model
    cx.load_lora(model, file, 3, alpha=4)
    assert f"cogvx: {file}: kohya, 1 module, rank 2, alpha 4 (given), scale 2, weight 3\n" == capsys.readouterr().err
    arguments = ["generate", "a star", "--out", tmp_path / "v.mp4", "--model", folder, "--lora", f"{file}:0.5"]
    monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, arguments), "--size", "33x33"])  # found after the LoRA
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().err
    assert f"{file}: kohya, 1 module, rank 2, alpha 1 (tensors of the file), scale 0.5, weight 0.5\n" in said


def test_a_guessed_alpha_is_doubted_before_it_is_written(run, tmp_path):
    key = "transformer.transformer_blocks.0.attn1.to_q.lora_"
    file = tmp_path / "x.safetensors"
    save_file({f"{key}A.weight": np.ones((128, 1920), "f4"), f"{key}B.weight": np.ones((1920, 128), "f4")}, file)
    assert "warning: " in run("convert", file, tmp_path / "o.safetensors").err
    assert "warning: " in run("merge", file, "--out", tmp_path / "m.safetensors").err


def test_numbers_that_are_not_finite_are_not_written(run, small, tmp_path):
    folder, model = small("5b")
    file, out = kohya(tmp_path / "x.safetensors", model.spec), tmp_path / "out.safetensors"
    assert "cannot hold" in run("merge", f"{file}:1e39", "--out", out, status=2)
    assert "not finite in transformer/" in run(
        "merge", f"{file}:3e38", "--model", folder, "--out", tmp_path / "m", status=2
    )
    assert sorted(tmp_path.iterdir()) == [file]


def test_errors_come_before_all_else_and_leave_nothing(run, small, tmp_path):
    file, out = DATA / "kohya.safetensors", tmp_path / "x.safetensors"
    assert "there is no LoRA" in run("info", tmp_path / "none", status=2)
    assert "holds no LoRA: no pytorch_lora_weights" in run("info", tmp_path, status=2)
    assert "alpha must be a positive number" in run("info", file, "--alpha", "0", status=2)
    assert "a LoRA is written as a .safetensors file, got 'x.bin'" in run("convert", file, tmp_path / "x.bin", status=2)
    assert "does not exist; create it first" in run("convert", file, tmp_path / "no" / "x.safetensors", status=2)
    assert "there is nothing to merge" in run("merge", "--out", out, status=2)
    assert "one LoRA of several is made without --model" in run(
        "merge", file, "--out", out, "--model", "tiny", status=2
    )
    assert "does not fit tiny" in run("merge", file, "--out", tmp_path / "m", "--model", "tiny", status=2)
    other = kohya(tmp_path / "other.safetensors", small("5b")[1].spec)
    assert "of different models: A of transformer_blocks.0.attn1.to_q is (2, 16) and (2, 48)" in run(
        "merge", file, other, "--out", out, status=2
    )
    name = "lora_unet_down_blocks_0_resnets_0.lora_"
    stranger = {f"{name}{side}.weight": np.ones((2, 2), np.float32) for side in ("down", "up")}
    save_file(stranger, tmp_path / "sdxl.safetensors")
    assert "sdxl.safetensors adapts down_blocks_0_resnets_0, which no CogVideoX model has" in run(
        "convert", tmp_path / "sdxl.safetensors", out, status=2
    )
    large = {key: np.asarray(1e9 * array) for key, array in load_file(file).items()}
    save_file(large, tmp_path / "large.safetensors")
    assert "would have numbers that float16 cannot hold" in run(
        "convert", tmp_path / "large.safetensors", out, "--alpha", 1, "--dtype", "float16", status=2
    )
    shutil.copy(file, out)
    assert "exists; nothing was written" in run("convert", file, out, status=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "large.safetensors",
        "other.safetensors",
        "sdxl.safetensors",
        "x.safetensors",
    ]


PAGE = (Path(__file__).parents[1] / "docs" / "files.md").read_text()
SECTION = PAGE.partition("## LoRA files")[2].partition("\n## ")[0]
COMMANDS = re.findall(r"\| `cogvx ([^`]+)` \|$", SECTION, re.M)


def tiny_as_single_files(folder):
    """Of the names that the page has, a configuration beside each."""
    names = ("transformer", "cogvideox_5b_fp8"), ("vae", "cogvideox_vae"), ("text_encoder", "t5xxl_fp8_e4m3fn")
    for part, name in names:
        (weights,) = (TINY / part).glob("*.safetensors")
        shutil.copy(weights, folder / f"{name}.safetensors")
        shutil.copy(TINY / part / "config.json", folder / f"{name}.json")
    shutil.copytree(TINY / "tokenizer", folder / "t5-v1_1-xxl")


@pytest.mark.full
def test_every_command_of_the_docs_runs(tmp_path, monkeypatch, capsys):
    """But for the video, of which the same flags run above."""
    spec = cx.load_spec("tiny")
    monkeypatch.chdir(tmp_path)
    kohya("panda.safetensors", spec)
    write_lora("export.safetensors", read_lora("panda.safetensors", spec), spec)
    a_run(tmp_path / "runs" / "panda", spec)
    tiny_as_single_files(tmp_path)
    assert len(COMMANDS) == 13
    for command in COMMANDS:
        if not command.startswith("generate"):
            monkeypatch.setattr(sys, "argv", ["cogvx", *shlex.split(command)])
            cli.main()
    said = capsys.readouterr()
    assert "alpha 1 (given), scale 0.5" in said.err and "tiny with 1 LoRA" in said.out
    names: dict = {"cx": cx}
    (code,) = re.findall(r"```python\n(.*?)```", SECTION, re.S)
    exec(compile(code, "files.md", "exec"), names)
    q = [names[name].params["transformer"]["blocks"]["attention"]["q"]["kernel"] for name in ("base", "tuned", "fixed")]
    merged = cx.load("tiny_panda").params["transformer"]["blocks"]["attention"]["q"]["kernel"]
    np.testing.assert_allclose(merged, q[1], atol=1e-2)  # tiny is stored in bfloat16
    np.testing.assert_allclose((q[1] - q[0]) / 0.8, q[2] - q[0], atol=1e-5)
    of_files = cx.load("of_files").params["transformer"]["blocks"]["attention"]["q"]["kernel"]
    np.testing.assert_array_equal(of_files, merged)
    for name in ("panda_peft", "panda_kohya", "panda_fun", "panda_comfyui", "panda_from_sat"):
        tuned = cx.load_lora(names["base"], f"{name}.safetensors", 0.8).params["transformer"]["blocks"]["attention"]
        np.testing.assert_allclose(tuned["q"]["kernel"], q[1], atol=1e-5, err_msg=name)


@pytest.mark.full  # a video is compiled
def test_the_video_of_the_docs_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kohya("panda.safetensors", cx.load_spec("tiny"))
    (command,) = (command for command in COMMANDS if command.startswith("generate"))
    monkeypatch.setattr(sys, "argv", ["cogvx", *shlex.split(command), "--steps", "2", "--frames", "9"])
    cli.main()
    assert Path("out.mp4").stat().st_size > 0


def test_the_kinds_of_the_flag_are_those_of_the_table():
    assert sorted(typing.get_args(lora.To)) == sorted(WRITTEN)
