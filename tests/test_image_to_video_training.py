"""Image-to-video models from videos to a video, by the command line; pictures as clips of one frame."""

import json
import sys

import jax
import numpy as np
import PIL.Image
import pytest

import cogvx_jax as cx
from cogvx_jax.cli import main as cli
from cogvx_jax.convert.runs import read_run_lora
from cogvx_jax.data.video import VideoWriter, read_video
from cogvx_jax.train.clips.cache import open_cache

TRAIN = ["--lora-rank", "2", "--batch-size", "2", "--log-every", "1", "--warmup", "0", "--average", "0"]


@pytest.fixture
def run(monkeypatch):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, arguments)])
        cli.main()

    return call


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two videos of 17 frames, wider than a model's, in the authors' layout, and a picture that is of neither."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in "ab":
        with VideoWriter(folder / f"{name}.mp4", 8) as writer:
            writer.write(np.repeat(rng.integers(0, 255, (17, 16, 32, 3), np.uint8), 4, axis=1).repeat(4, axis=2))
    PIL.Image.fromarray(np.full((40, 60, 3), (250, 20, 120), np.uint8)).save(folder / "given.png")
    (folder / "prompts.txt").write_text("one\ntwo\n")
    (folder / "videos.txt").write_text("a.mp4\nb.mp4\n")
    return folder


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.full
@pytest.mark.parametrize("kind", ["5b-i2v", "1.5-5b-i2v"])
def test_an_image_to_video_lora_from_videos_to_a_video(kind, small, data, tmp_path, run, capsys):
    folder, model = small(kind)
    options = ["--model", folder, "--data", data]
    run("encode", *options, "--out", tmp_path / "first")
    first = open_cache(tmp_path / "first")
    (data / "images.txt").write_text("given.png\ngiven.png\n")
    run("encode", *options, "--out", tmp_path / "given")
    (data / "images.txt").unlink()
    given = open_cache(tmp_path / "given")
    assert not {key for key, _ in first.clips} & {key for key, _ in given.clips}  # other images are other clips
    mine, theirs = first.batch([0, 1]), given.batch([0, 1])
    np.testing.assert_array_equal(mine["moments"], theirs["moments"])
    video, _ = read_video(data / "a.mp4")
    assert abs(mine["image"][0].mean() - (video[0, :, 16:112].mean() / 127.5 - 1)) < 0.02  # of 64x128, the middle 64x96
    np.testing.assert_allclose(theirs["image"], np.broadcast_to(np.float32([250, 20, 120]) / 127.5 - 1, (2, 32, 48, 3)))

    for name in ("first", "given"):
        out = tmp_path / f"run-{name}"
        run("train", "--model", folder, "--data", tmp_path / name, "--out", out, "--steps", "2", *TRAIN)
        assert np.isfinite(losses(out)).all()
    assert losses(tmp_path / "run-first")[0] != losses(tmp_path / "run-given")[0]  # the image is seen
    trained = read_run_lora(tmp_path / "run-given", model.spec)
    assert all(float(abs(pair["b"]).max()) > 0 for pair in trained.adapters.values())
    file = tmp_path / "lora.safetensors"
    run("export", tmp_path / "run-given", "--out", file)
    jax.tree.map(
        np.testing.assert_array_equal,
        cx.load_lora(model, file).params["transformer"],
        cx.load_lora(model, tmp_path / "run-given").params["transformer"],
    )
    small_video = ["--model", folder, "--image", data / "given.png", "--steps", "2", "--no-progress"]
    run("generate", "one", *small_video, "--out", tmp_path / "plain.mp4")
    run("generate", "one", *small_video, "--out", tmp_path / "tuned.mp4", "--lora", f"{file}:100")
    plain, tuned = (read_video(tmp_path / f"{name}.mp4")[0].astype(int) for name in ("plain", "tuned"))
    assert plain.shape == tuned.shape == (model.spec.defaults.num_frames, 32, 48, 3)
    assert np.abs(plain - tuned).max() > 8


@pytest.mark.parametrize("kind", ["5b", pytest.param("1.5-5b", marks=pytest.mark.full)])
def test_pictures_and_videos_are_clips_of_one_frame(kind, small, data, tmp_path, run, capsys):
    folder, _ = small(kind)
    (tmp_path / "l.csv").write_text(f"video,prompt\n{data}/given.png,pink\n{data}/a.mp4,one\n")
    options = ["--model", folder, "--data", tmp_path / "l.csv", "--out"]
    run("encode", *options, tmp_path / "cache", "--frames", "1")
    batch = open_cache(tmp_path / "cache").batch([0, 1])
    assert batch["moments"].shape == (2, 1, 4, 6, 8)
    run("train", "--model", folder, "--data", tmp_path / "cache", "--out", tmp_path / "run", "--steps", "1", *TRAIN)
    assert np.isfinite(losses(tmp_path / "run")).all()
    run("encode", *options, tmp_path / "videos")
    said = capsys.readouterr().err
    assert "a picture is one frame" in said and "1 of 2 videos skipped (1 too short)" in said


@pytest.mark.full
@pytest.mark.parametrize("kind", ["5b-i2v", "1.5-5b-i2v"])
def test_an_image_to_video_lora_trains_the_same_on_a_mesh(kind, small, data, tmp_path, run):
    """Image noise and dropout are drawn for the global batch, and the VAE that encodes images lies on every device."""
    folder, model = small(kind)
    run("encode", "--model", folder, "--data", data, "--out", tmp_path / "cache")
    for name, mesh in (("alone", []), ("mesh", ["--mesh", "data=2,fsdp=2,context=2"])):
        options = ["--data", tmp_path / "cache", "--out", tmp_path / name, "--steps", "3", *TRAIN, "--batch-size", "4"]
        run("train", "--model", folder, *options, "--learning-rate", "0.01", *mesh)
    np.testing.assert_allclose(losses(tmp_path / "mesh"), losses(tmp_path / "alone"), rtol=1e-5)
    alone, mesh = (read_run_lora(tmp_path / name, model.spec).adapters for name in ("alone", "mesh"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4), alone, mesh)
