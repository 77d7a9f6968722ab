"""Inpainting models from videos to a video, by the command line."""

import json
import sys

import numpy as np
import PIL.Image
import pytest

import cogvx_jax as cx
from cogvx_jax.cli import main as cli
from cogvx_jax.convert.runs import read_run_lora
from cogvx_jax.data.video import VideoWriter, read_video
from cogvx_jax.train.clips.cache import Shape, open_cache

TRAIN = ["--batch-size", "4", "--log-every", "1", "--warmup", "0", "--average", "0"]
LORA = ["--lora-rank", "2", *TRAIN]


@pytest.fixture
def run(monkeypatch):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, arguments)])
        cli.main()

    return call


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two videos of 17 frames in a list."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in "ab":
        with VideoWriter(folder / f"{name}.mp4", 8) as writer:
            writer.write(np.repeat(rng.integers(0, 255, (17, 4, 6, 3), np.uint8), 8, axis=1).repeat(8, axis=2))
    (folder / "clips.csv").write_text("video,prompt\na.mp4,one\nb.mp4,two\n")
    return folder


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.full
@pytest.mark.parametrize("kind", ["inpaint", "1.5-inpaint"])
def test_a_lora_learns_from_clips_and_their_pixels(kind, small, data, tmp_path, run):
    folder, model = small(kind)
    run("encode", "--model", folder, "--data", data / "clips.csv", "--out", tmp_path / "cache")
    cache = open_cache(tmp_path / "cache")
    batch, frames = cache.batch([0, 1]), model.spec.defaults.num_frames
    assert batch["pixels"].shape == (2, frames, 32, 48, 3) and batch["pixels"].dtype == np.uint8
    assert np.abs(batch["pixels"][0].astype(int) - read_video(data / "a.mp4")[0][:frames]).max() < 3
    np.testing.assert_allclose(batch["pixels"][:, 0] / 127.5 - 1, batch["image"], atol=1e-6)
    options = ["--model", folder, "--data", tmp_path / "cache", "--masks", "first-last", "all", *LORA]
    run("train", *options, "--out", tmp_path / "run", "--steps", "1")
    assert np.isfinite(losses(tmp_path / "run")).all()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["objective"]["masks"] == ["first-last", "all"]
    adapters = read_run_lora(tmp_path / "run", model.spec).adapters
    assert all(float(abs(pair["b"]).max()) > 0 for pair in adapters.values())


@pytest.mark.full
def test_clips_of_other_models_lack_pixels(small, random_cache, tmp_path, run, capsys):
    folder, model = small("inpaint")
    own = model.spec.defaults
    random_cache(tmp_path / "cache", model, Shape(own.height, own.width, own.num_frames, float(own.fps)), 4)
    with pytest.raises(SystemExit) as stopped:
        run("train", "--model", folder, "--data", tmp_path / "cache", "--out", tmp_path / "run", "--steps", "1", *LORA)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "holds no pixels, over which the masks of an inpainting model are laid" in said


@pytest.mark.full
@pytest.mark.parametrize("kind", ["inpaint", "1.5-inpaint"])
def test_the_whole_model_trains_the_same_on_a_mesh_and_makes_a_video(kind, small, data, tmp_path, run):
    """Masks are drawn for the global batch, and the VAE that encodes what is known lies on every device."""
    folder, model = small(kind)
    run("encode", "--model", folder, "--data", data / "clips.csv", "--out", tmp_path / "cache")
    for name, mesh in (("alone", []), ("mesh", ["--mesh", "data=2,fsdp=2,context=2"])):
        options = ["--data", tmp_path / "cache", "--out", tmp_path / name, "--steps", "3", "--train", "full", *TRAIN]
        run("train", "--model", folder, *options, "--learning-rate", "0.001", *mesh)
    np.testing.assert_allclose(losses(tmp_path / "mesh"), losses(tmp_path / "alone"), rtol=1e-5)
    run("export", tmp_path / "alone", "--out", tmp_path / "model")
    assert cx.load_spec(tmp_path / "model").kind == "inpaint"
    PIL.Image.fromarray(np.full((32, 48, 3), (250, 20, 120), np.uint8)).save(tmp_path / "first.png")
    made = ["--image", tmp_path / "first.png", "--steps", "2", "--no-progress", "--out", tmp_path / "made.mp4"]
    run("generate", "one", "--model", tmp_path / "model", *made)
    assert read_video(tmp_path / "made.mp4")[0].shape == (model.spec.defaults.num_frames, 32, 48, 3)
