"""Fine-tuning `tiny` from the command line: data, cache, run, resumption, export; and what is refused."""

import dataclasses
import json
import sys
import tempfile

import jax
import numpy as np
import pytest

import cogvx_jax as cx
from cogvx_jax.cli import main as cli
from cogvx_jax.cli.options import parse_lora
from cogvx_jax.configs import ATTENTION
from cogvx_jax.convert.runs import KEYS, read_run_lora
from cogvx_jax.data.clips import Source, crop, read_clip
from cogvx_jax.data.layouts import read_sources
from cogvx_jax.data.video import VideoWriter
from cogvx_jax.scripts import finetune_tiny
from cogvx_jax.tiny import shapes
from cogvx_jax.tiny.judge import score
from cogvx_jax.train.clips.cache import Shape, open_cache, write_cache
from cogvx_jax.train.clips.encode import encode
from cogvx_jax.train.transformer import run as runs
from cogvx_jax.train.transformer.stages import Stage

SHORT = ["--frames", "9", "--size", "32x32"]  # less to encode than tiny's own 17 frames of 64x64
TRAIN = ["--lora-rank", "2", "--lora-targets", "to_q", "ff", "--batch-size", "2", "--log-every", "1"]


def run(*arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, arguments)])
    cli.main()


def fails(*arguments, monkeypatch, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(*arguments, monkeypatch=monkeypatch)
    assert stopped.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("cogvx: skipped")]
    assert len(said) == 1 and said[0].startswith("cogvx: ")
    return said[0]


def write_clip(path, scene, frames=17, fps=8, size=64):
    with VideoWriter(path, fps) as writer:
        writer.write(shapes.draw(scene, np.random.default_rng(0), frames=frames, size=size))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder of three good clips, a short one and a broken one, listed in clips.jsonl."""
    folder = tmp_path_factory.mktemp("videos")
    scenes = shapes.scenes()[:3]
    rows = []
    for i, scene in enumerate(scenes):
        write_clip(folder / f"{i}.mp4", scene)
        rows.append({"video": f"{i}.mp4", "prompt": str(scene)})
    write_clip(folder / "short.mp4", scenes[0], frames=3)
    (folder / "broken.mp4").write_bytes(b"not a video")
    rows += [{"video": f"{name}.mp4", "prompt": "x"} for name in ("short", "broken")]
    (folder / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


@pytest.fixture(scope="module")
def model():
    return cx.load("tiny")


@pytest.mark.full
def test_encode_train_resume_export_and_generate(tmp_path, videos, model, monkeypatch, capsys):
    cache, out = tmp_path / "cache", tmp_path / "run"
    run("encode", "--data", videos / "clips.jsonl", "--out", cache, *SHORT, monkeypatch=monkeypatch)
    said = capsys.readouterr().err
    assert "skipped" in said and "3 frames at 8 fps are too short for 9" in said
    assert "3 clips" in said and "3 of them encoded now; 2 of 5 videos skipped (1 too short, 1 unreadable)" in said
    run("encode", "--data", videos / "clips.jsonl", "--out", cache, *SHORT, monkeypatch=monkeypatch)
    assert "0 of them encoded now" in capsys.readouterr().err

    run("train", "--data", cache, "--out", out, "--steps", "2", *TRAIN, monkeypatch=monkeypatch)
    run("train", "--data", cache, "--out", out, "--steps", "3", *TRAIN, monkeypatch=monkeypatch)
    log = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert log == [1, 2, 3]
    whole = tmp_path / "whole"  # a run that was not stopped, whose batches processes read, ends at the same numbers
    arguments = ["--data", cache, "--out", whole, "--steps", "3", "--workers", "2"]
    run("train", *arguments, *TRAIN, monkeypatch=monkeypatch)
    trained = read_run_lora(out, model.spec)
    jax.tree.map(np.testing.assert_array_equal, trained.adapters, read_run_lora(whole, model.spec).adapters)
    assert float(abs(trained.adapters["blocks/mlp/up/kernel"]["b"]).max()) > 0

    def err(*arguments):
        return fails("train", "--data", cache, *arguments, monkeypatch=monkeypatch, capsys=capsys)

    refused = err("--out", out, "--steps", "4", *TRAIN, "--learning-rate", "0.01", "--lora-alpha", "1")
    assert "learning_rate was 0.0005 and is now 0.01" in refused and "lora.alpha was 2.0 and is now 1.0" in refused
    assert "encoded already" in err("--out", tmp_path / "x", "--frames", "9")

    file = tmp_path / "lora.safetensors"
    run("export", out, "--out", file, monkeypatch=monkeypatch)
    one, two = cx.load_lora(model, out, 50), cx.load_lora(model, file, 50)
    jax.tree.map(np.testing.assert_array_equal, one.params["transformer"], two.params["transformer"])
    assert one.params["vae"] is model.params["vae"]

    small = ["--steps", "2", "--no-progress", *SHORT]
    arguments = ["generate", "a star", "--out", tmp_path / "v.mp4", *small, "--lora", f"{file}:0.5", "--lora", out]
    run(*arguments, monkeypatch=monkeypatch)
    assert (tmp_path / "v.mp4").exists()


def test_clips_are_taken_at_the_models_pace_and_cropped(tmp_path):
    numbered = np.broadcast_to((np.arange(40, dtype=np.uint8) * 6)[:, None, None, None], (40, 32, 48, 3)).copy()
    with VideoWriter(tmp_path / "24.mp4", 24) as writer:
        writer.write(numbered)
    clip = read_clip(tmp_path / "24.mp4", frames=9, fps=8, height=32, width=32)
    assert clip.shape == (9, 32, 32, 3)
    np.testing.assert_allclose(clip.mean(axis=(1, 2, 3)), np.arange(9) * 18, atol=3)
    with pytest.raises(ValueError, match="too short for 17"):
        read_clip(tmp_path / "24.mp4", frames=17, fps=8, height=32, width=32)
    wide = np.zeros((1, 10, 40, 3), np.uint8)
    wide[:, :, 15:25] = 200
    assert crop(wide, 10, 10).min() == 200
    assert crop(wide, 20, 20)[0, :, 2:-2].min() > 190


def test_a_cache_knows_what_it_is_of(tmp_path, videos, model, monkeypatch, capsys):
    sources = [Source(videos / f"{i}.mp4", "x") for i in range(2)]
    shape, lines = Shape(32, 32, 9, 8.0), []
    cache = encode(model, sources, tmp_path, shape, lines.append)
    batch = open_cache(tmp_path).batch([1, 0, 1])
    assert batch["moments"].shape == (3, 3, 4, 4, 32) and batch["image"].shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(batch["moments"][0], batch["moments"][2])
    assert cache.clips[0] != cache.clips[1] and cache.digest == open_cache(tmp_path).digest
    # The same name with another video, or another length, is another clip.
    assert encode(model, sources[::-1], tmp_path, shape, lines.append).clips == cache.clips[::-1]
    assert "0 of them encoded now" in lines[-1]
    changed = jax.tree.map(np.array, model.params["vae"])
    changed["encoder"]["conv_in"]["bias"] += 1
    other = cx.Model(spec=model.spec, params=model.params | {"vae": changed}, tokenizer=model.tokenizer)
    with pytest.raises(ValueError, match="encoded by the vae of tiny, whose weights are not those"):
        stage = Stage(data=((cache.folder, 1),), steps=1)
        runs.train(other, (stage,), runs.RunConfig(), tmp_path / "run", source="tiny")
    assert not (tmp_path / "run").exists()
    gone = dataclasses.replace(cache, clips=(*cache.clips, ("gone", cache.clips[0][1])))
    write_cache(gone)
    with pytest.raises(ValueError, match="lacks 1 entries, such as clip/gone"):
        open_cache(tmp_path)


def test_encoders_that_make_numbers_that_are_not_finite_are_named(tmp_path, videos, model):
    sources, shape, lines = [Source(videos / f"{i}.mp4", "x") for i in range(2)], Shape(32, 32, 9, 8.0), []

    def broken(part, *path):
        params = jax.tree.map(np.array, model.params[part])
        leaf = params
        for name in path:
            leaf = leaf[name]
        leaf[...] = np.nan
        return cx.Model(spec=model.spec, params=model.params | {part: params}, tokenizer=model.tokenizer)

    with pytest.raises(ValueError, match="none of the 2 videos can be used: 2 not finite"):
        encode(broken("vae", "encoder", "conv_in", "bias"), sources, tmp_path / "vae", shape, lines.append)
    assert lines[0] == f"skipped {sources[0].video}: the VAE of tiny gives numbers that are not finite"
    with pytest.raises(ValueError, match="the text_encoder of tiny holds some in norm/scale"):
        encode(broken("text_encoder", "norm", "scale"), sources, tmp_path / "text", shape, lines.append)


def test_encode_finds_a_folder_that_cannot_be_written_before_all_else(tmp_path, videos, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    (tmp_path / "file").write_text("x")
    for name in ("load", "load_spec"):  # no weights are read
        monkeypatch.setattr(f"cogvx_jax.pipelines.model.{name}", full)
    data = ["encode", "--data", videos / "clips.jsonl"]
    said = fails(*data, "--out", tmp_path / "file" / "cache", monkeypatch=monkeypatch, capsys=capsys)
    assert said == f"cogvx: cannot write to {tmp_path / 'file' / 'cache'}: Not a directory"
    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    said = fails(*data, "--out", tmp_path / "cache", monkeypatch=monkeypatch, capsys=capsys)
    assert said == f"cogvx: cannot write to {tmp_path / 'cache'}: No space left on device"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, videos, monkeypatch, capsys):
    def err(*arguments):
        return fails(*arguments, monkeypatch=monkeypatch, capsys=capsys)

    data, out = videos / "clips.jsonl", tmp_path / "run"
    train = ["train", "--data", data, "--out", out]
    assert "known ones are to_q" in err(*train, "--lora-targets", "to_x")
    assert "rank of a LoRA must be at least 1" in err(*train, "--lora-rank", "0")
    assert "steps must be at least 1" in err(*train, "--steps", "0")
    assert "text_dropout" in err(*train, "--text-dropout", "2")
    assert "batch size" in err(*train, "--batch-size", "0")
    assert "nearest: 9 or 17" in err(*train, "--frames", "10")
    assert "nearest: 32 or 48" in err(*train, "--size", "40x64")
    assert "there is no" in err("train", "--data", tmp_path / "none", "--out", out)
    assert "known are tiny" in err(*train, "--model", "nothing")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"video": "0.mp4", "prompt": "x"}\n{"video": "1.mp4"}\n')
    assert "1 of 2 lines have no prompt, the first is line 2" in err("encode", "--data", bad, "--out", out)
    bad.write_text("")
    assert "lists no videos" in err("encode", "--data", bad, "--out", out)
    assert "holds no run" in err("export", tmp_path, "--out", tmp_path / "x.safetensors")
    assert "there is no LoRA" in err("generate", "x", "--out", tmp_path / "v.mp4", "--lora", tmp_path / "no:0.5")
    bad.write_text(json.dumps({"video": str(videos / "broken.mp4"), "prompt": "x"}) + "\n")
    assert "none of the 1 videos" in err("train", "--data", bad, "--out", out, *SHORT)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("x")
    assert "holds no run; give another folder" in err("train", "--data", data, "--out", taken)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.jsonl", "taken"]


def test_a_run_of_another_model_is_named(tmp_path, model):
    made = dict.fromkeys(KEYS) | {"name": "CogVideoX-5b", "width": 3072, "layers": 42}
    (tmp_path / "run.json").write_text(json.dumps(made))
    with pytest.raises(ValueError, match="made for CogVideoX-5b .width 3072, 42 layers"):
        cx.load_lora(model, tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="has not all of"):
        cx.load_lora(model, tmp_path)


def test_the_recipe_for_rings_holds_scenes_out(tmp_path):
    train, held_out = finetune_tiny.split(0)
    assert len(held_out) == 39 and not set(train) & set(held_out)
    assert {scene.shape for scene in train + held_out} == {shapes.RING}
    listed = finetune_tiny.draw_clips(tmp_path / "clips", train[:2])
    assert [source.video.name for source in read_sources(listed)] == ["0000.mp4", "0001.mp4"]
    clip = read_clip(tmp_path / "clips" / "0001.mp4", frames=17, fps=8, height=64, width=64)
    assert all(score(clip, train[1]).values())


def test_the_weight_of_a_lora_on_the_command_line():
    assert parse_lora("a/b.safetensors:0.8") == ("a/b.safetensors", 0.8)
    assert parse_lora("a:b") == ("a:b", 1.0) and parse_lora("run") == ("run", 1.0)
    assert ATTENTION == runs.RunConfig().lora.targets
