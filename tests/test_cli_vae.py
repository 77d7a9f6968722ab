"""Training the VAE of a small random model from the command line: resumption, validation, export; what is refused."""

import dataclasses
import json
import sys
import tarfile

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import cogvx_jax as cx
from cogvx_jax.cli import main as cli
from cogvx_jax.data.clips import Source
from cogvx_jax.data.layouts import read_sources
from cogvx_jax.data.random_clips import RandomClips, random_clip
from cogvx_jax.data.tars import read_samples
from cogvx_jax.data.video import VideoWriter
from cogvx_jax.tiny import shapes
from cogvx_jax.train import run_folder
from cogvx_jax.train.vae import run as runs
from cogvx_jax.train.vae.record import describe, modern
from cogvx_jax.train.vae.run import split_videos
from cogvx_jax.train.vae.settings import VAERunConfig, VAEStageSettings
from cogvx_jax.train.vae.stages import vae_stage

TRAIN = ["--size", "16x24", "--frames", "9", "--log-every", "1", "--warmup", "0", "--learning-rate", "0.01"]
GAN = ["--discriminator-start", "1", "--discriminator-width", "4", "--discriminator-layers", "2"]


def run(*arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, arguments)])
    cli.main()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Four clips, a short one and a broken one, listed in clips.jsonl."""
    folder = tmp_path_factory.mktemp("videos")
    names = ["0", "1", "2", "3", "short", "broken"]
    for name, scene in zip(names, shapes.scenes(), strict=False):
        with VideoWriter(folder / f"{name}.mp4", 8) as writer:
            writer.write(shapes.draw(scene, np.random.default_rng(0), frames=3 if name == "short" else 12, size=32))
    (folder / "broken.mp4").write_bytes(b"not a video")
    rows = [{"video": f"{name}.mp4", "prompt": "x"} for name in names]
    (folder / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


@pytest.mark.full  # minutes of compiling
def test_train_resume_validate_and_export(tmp_path, videos, small, lpips_file, monkeypatch, capsys):
    folder, model = small("5b")
    out, whole = tmp_path / "run", tmp_path / "whole"
    base = ["train-vae", "--data", videos / "clips.jsonl", "--model", folder, "--lpips", lpips_file, *TRAIN, *GAN]
    base += ["--validation", "1", "--average", "0"]
    run(*base, "--out", out, "--steps", "2", "--validate-every", "2", monkeypatch=monkeypatch)
    said = capsys.readouterr()
    assert "psnr" in said.out and "ssim" in said.out and "makes a model of it" in said.out
    run(*base, "--out", out, "--steps", "3", "--validate-every", "2", monkeypatch=monkeypatch)
    run(*base, "--out", whole, "--steps", "3", "--validate-every", "2", monkeypatch=monkeypatch)

    def log(folder):
        rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        return [row for row in rows if "loss" in row], [row for row in rows if "validation" in row]

    (updates, scores), (expected, _) = log(out), log(whole)
    assert [row["step"] for row in updates] == [1, 2, 3] and [row["step"] for row in scores] == [2, 3]
    for one, two in zip(updates, expected, strict=True):  # as if it had not been stopped
        assert {n: v for n, v in one.items() if n != "seconds_per_step"} == {
            n: v for n, v in two.items() if n != "seconds_per_step"
        }
    assert {"l1", "lpips", "kl", "generator", "discriminator", "latent_scale"} <= updates[0].keys()
    # The adversary begins after one update, and counts from then on.
    assert updates[0]["adversarial_weight"] == 0 and min(row["adversarial_weight"] for row in updates[1:]) > 0
    assert {"loss", "l1", "lpips", "psnr", "ssim", "flicker"} <= scores[0]["validation"].keys()

    run("export", out, "--out", tmp_path / "model", "--scaling-factor", "0.5", monkeypatch=monkeypatch)
    after = cx.load(tmp_path / "model")
    assert after.spec.vae.scaling_factor == 0.5 and model.spec.vae.scaling_factor == 0.7
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()) > 0, after.params["vae"], model.params["vae"])
    assert all(jax.tree.leaves(moved["decoder"])) and all(jax.tree.leaves(moved["encoder"]))
    jax.tree.map(np.testing.assert_array_equal, after.params["transformer"], model.params["transformer"])

    monkeypatch.setattr(sys, "argv", [])
    with pytest.raises(SystemExit):
        run(*base, "--out", out, "--steps", "4", "--kl", "1", monkeypatch=monkeypatch)
    assert "objective.kl was 1e-06 and is now 1.0" in capsys.readouterr().err


@pytest.mark.full  # minutes of compiling
def test_a_decoder_is_trained_alone(tmp_path, videos, small, monkeypatch, capsys):
    folder, model = small("5b")
    arguments = ["train-vae", "--data", videos / "clips.jsonl", "--model", folder, "--out", tmp_path / "run", *TRAIN]
    run(*arguments, "--decoder-only", "--steps", "2", "--mesh", "data=8", "--batch-size", "8", monkeypatch=monkeypatch)
    run("export", tmp_path / "run", "--out", tmp_path / "model", monkeypatch=monkeypatch)
    after = cx.load(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, after.params["vae"]["encoder"], model.params["vae"]["encoder"])
    kernels = (m.params["vae"]["decoder"]["conv_out"]["kernel"] for m in (after, model))
    assert not np.array_equal(*kernels)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run("generate", "x", "--lora", tmp_path / "run", "--model", folder, monkeypatch=monkeypatch)
    assert "run.json" in capsys.readouterr().err


@pytest.mark.full  # minutes of compiling
def test_a_run_of_stages_is_stopped_repeated_and_told_to_tensorboard(tmp_path, videos, small, monkeypatch, capsys):
    folder, _ = small("5b")
    (tmp_path / "stages.toml").write_text("[[stage]]\nsteps = 2\n[[stage]]\nsteps = 2\nframes = 1\nbatch_size = 2\n")
    base = ["train-vae", "--data", videos / "clips.jsonl", "--model", folder, "--stages", tmp_path / "stages.toml"]
    base += [*TRAIN, "--decoder-only", "--average", "0"]
    run(*base, "--out", tmp_path / "whole", "--tensorboard", monkeypatch=monkeypatch)
    assert list((tmp_path / "whole" / "tensorboard").iterdir())
    one = ["[[stage]]\nsteps = 1\n", "[[stage]]\nsteps = 2\n[[stage]]\nsteps = 1\nframes = 1\nbatch_size = 2\n"]
    for text in one:  # stopped in each stage
        (tmp_path / "stages.toml").write_text(text)
        run(*base, "--out", tmp_path / "parts", monkeypatch=monkeypatch)
    run("train-vae", "--config", tmp_path / "whole", "--out", tmp_path / "parts", monkeypatch=monkeypatch)
    run("train-vae", "--config", tmp_path / "whole", "--out", tmp_path / "again", monkeypatch=monkeypatch)

    def log(name):
        rows = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        return [row["loss"] for row in rows]

    assert len(log("whole")) == 4 and log("whole") == log("parts") == log("again")
    (tmp_path / "stages.toml").write_text("[[stage]]\nsteps = 2\n[[stage]]\nsteps = 2\nframes = 9\n")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(*base, "--out", tmp_path / "parts", monkeypatch=monkeypatch)
    assert "stages.2.frames was 1 and is now 9" in capsys.readouterr().err


def test_records_of_runs_before_there_were_stages_are_read(tmp_path, videos, small):
    """As `cogvx train-vae` wrote run.json before."""
    config, (_, model) = VAERunConfig(), small("5b")
    stage = vae_stage(videos / "clips.jsonl", VAEStageSettings(height=16, width=24, frames=9))
    sources = [read_sources(videos / "clips.jsonl")]
    now = describe(model, config, (stage,), sources, "somewhere", None)
    old = {name: value for name, value in now.items() if name != "stages"} | now["stages"][0]
    del old["folder"]
    (tmp_path / "run.json").write_text(json.dumps(old))
    longer = dataclasses.replace(stage, steps=2000)
    run_folder.check_same(tmp_path, describe(model, config, (longer, stage), sources * 2, "elsewhere", None), modern)
    with pytest.raises(ValueError, match="stages.1.width was 24 and is now 16"):
        other = dataclasses.replace(stage, width=16)
        run_folder.check_same(tmp_path, describe(model, config, (other,), sources, "somewhere", None), modern)
    with pytest.raises(ValueError, match="holds a run of `cogvx train-vae`, not of `cogvx train`"):
        run_folder.check_folder(tmp_path, "transformer")


def test_weights_of_lpips_that_are_not_finite_are_named(tmp_path, small, lpips_file):
    tensors = load_file(lpips_file)
    name = min(key for key in tensors if key.endswith("weight"))
    save_file(tensors | {name: np.full_like(tensors[name], np.nan)}, tmp_path / "lpips.safetensors")
    with pytest.raises(ValueError, match="lpips.safetensors: .* holds numbers that are not finite"):
        runs._begin(small("5b")[1], VAERunConfig(), tmp_path / "lpips.safetensors", False)


def test_clips_are_cut_anywhere(tmp_path):
    """Of a video whose colours say where and when a pixel is."""
    row, column = np.mgrid[:32, :48]
    frames = np.stack([np.stack([4 * row, 4 * column, np.full_like(row, 10 * t)], axis=-1) for t in range(20)])
    with VideoWriter(tmp_path / "v.mp4", 8) as writer:
        writer.write(frames.astype(np.uint8))
    clips = [
        random_clip(tmp_path / "v.mp4", np.random.default_rng(i), frames=5, fps=4, size=(16, 16)).astype(int)
        for i in range(12)
    ]
    starts = [clip[0, :, :, 2].mean() / 10 for clip in clips]
    assert max(starts) - min(starts) > 4 and max(starts) < 11.5  # 20 frames, of which 9 are needed
    for clip in clips:
        np.testing.assert_allclose(np.diff(clip[..., 2].mean(axis=(1, 2))), 20, atol=7)  # every other frame
    heights = [clip[0, -1, :, 0].mean() - clip[0, 0, :, 0].mean() for clip in clips]
    assert min(heights) > 50 and max(heights) > 85  # from 16 rows of the 32 to nearly all
    same = random_clip(tmp_path / "v.mp4", np.random.default_rng(3), frames=5, fps=4, size=(16, 16))
    np.testing.assert_array_equal(same, clips[3])
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "v.mp4", "v.mp4")
    packed = read_samples(tmp_path / "a.tar")["v"]["mp4"]
    same = random_clip(packed, np.random.default_rng(3), frames=5, fps=4, size=(16, 16))
    np.testing.assert_array_equal(same, clips[3])
    with pytest.raises(ValueError, match="its 32x48 pixels are fewer than the clips' 40x40"):
        random_clip(tmp_path / "v.mp4", np.random.default_rng(0), frames=5, fps=4, size=(40, 40))


def test_videos_that_cannot_be_used_are_named_once(videos):
    said = []
    sources = [Source(videos / f"{name}.mp4", "x") for name in ("short", "broken", "0")]
    clips = RandomClips(sources, frames=9, fps=(8,), height=16, width=16, report=said.append)
    assert clips.batch(3, (0,)).shape == (3, 9, 16, 16, 3)
    for seed in range(8):
        clips.batch(1, (seed,))
    assert len(said) == 2 and "too short for 9" in "".join(said)
    np.testing.assert_array_equal(clips.batch(2, (5,)), clips.batch(2, (5,)))
    none = RandomClips(sources[:2], frames=9, fps=(8,), height=16, width=16, report=said.append)
    with pytest.raises(ValueError, match="none of the 2 videos"):
        none.batch(1, (0,))


def test_held_out_videos_do_not_depend_on_order(videos):
    sources = [Source(videos / f"{i}.mp4", "x") for i in range(4)]
    train, held = split_videos(sources, 0.3)
    assert len(held) == 2 and not set(train) & set(held)
    assert set(split_videos(sources[::-1], 0.3)[1]) == set(held) and split_videos(sources, 0)[1] == []
    for amount, words in ((4, "none is left"), (-1, "or their number"), (1.5, "or their number")):
        with pytest.raises(ValueError, match=words):
            split_videos(sources, amount)


def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, videos, small, monkeypatch, capsys):
    folder, _ = small("5b")

    def err(*arguments, data=videos / "clips.jsonl"):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            given = ["train-vae", "--data", data, "--out", tmp_path / "run", "--model", folder, *arguments]
            run(*given, monkeypatch=monkeypatch)
        assert stopped.value.code == 2
        said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("cogvx: skipped")]
        assert len(said) == 1
        return said[0]

    assert "8N+1 frames, got 12" in err("--frames", "12")
    assert "multiples of 8" in err("--size", "20x24")
    assert "cannot both be 0" in err("--l1", "0")
    assert "there is no file" in err("--lpips", tmp_path / "none", "--size", "16x16", "--frames", "9")
    assert "fewer than the clips'" not in err(
        "--size", "64x64", "--frames", "9"
    )  # said of each video, in lines of its own
    assert "none is left" in err("--validation", "6")
    assert "a batch of 1 clips cannot be split over data=8" in err("--mesh", "data=8")
    assert "there is no" in err(data=tmp_path / "none")
    assert not list(tmp_path.iterdir())
