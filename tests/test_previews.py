"""Previews: small frames of what is being sampled."""

import base64
import dataclasses
import io
import json
import re
import sys
import types

import numpy as np
import PIL.Image
import pytest
from packings import write_taehv

import cogvx_jax as cx
from cogvx_jax.cli import main as cli
from cogvx_jax.data.video import read_video
from cogvx_jax.pipelines import previews
from cogvx_jax.pipelines.latents import decode_frames, encode_moments
from cogvx_jax.tiny import shapes


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def short_clips(monkeypatch):
    """Fewer and smaller clips to fit to, of the shape that other tests encode."""
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 256, (3, 9, 32, 48, 3), dtype=np.uint8)
    monkeypatch.setattr(previews, "fitting_clips", lambda model: clips)
    return clips


def steps_of(model, **options):
    found = []
    preview = cx.Preview(model)
    look = lambda step: found.append((preview(step), np.asarray(step.x0), step.padding))  # noqa: E731
    cx.generate(model, "a red circle", output="latents", progress=False, on_step=look, num_inference_steps=2, **options)
    return found


def test_colours_are_the_means_of_what_a_latent_stands_for():
    pixels = np.zeros((1, 9, 16, 8, 3), np.float32)
    pixels[0, 0, 8:] = 1
    pixels[0, 1, :8, :4, 0] = 1
    pixels[0, 8, :, :, 2] = -1
    found = previews.latent_colours(pixels, (3, 2, 1))
    assert found.shape == (1, 3, 2, 1, 3)
    np.testing.assert_allclose(
        found[0, :, :, 0], [[[0, 0, 0], [1, 1, 1]], [[1 / 8, 0, 0], [0] * 3], [[0, 0, -1 / 4]] * 2]
    )


def test_the_map_is_the_least_squares_solution(small, short_clips):
    model = small("5b")[1]
    found = previews.fit_colours(model, short_clips)
    pixels = short_clips.astype(np.float32) / 127.5 - 1
    latents = np.asarray(encode_moments(model, pixels))[..., :4]
    x = np.append(latents, np.ones_like(latents[..., :1]), axis=-1).reshape(-1, 5).astype(np.float64)
    y = previews.latent_colours(pixels, latents.shape[1:4]).reshape(-1, 3)
    assert found.shape == (5, 3)
    np.testing.assert_allclose(x.T @ (y - x @ found), previews.RIDGE * found, atol=1e-3)


def test_it_is_kept_under_the_hash_of_the_vae(small, short_clips, tmp_path, monkeypatch):
    model = small("5b")[1]
    found = previews.colour_map(model)
    file = next((tmp_path / "cogvx_jax" / "previews").iterdir())
    with monkeypatch.context() as kept:
        kept.setattr(previews, "fit_colours", lambda *_: pytest.fail("it is kept"))
        np.testing.assert_array_equal(previews.colour_map(model), found)
        vae = dataclasses.replace(model.spec.vae, scaling_factor=2 * model.spec.vae.scaling_factor)
        scaled = dataclasses.replace(model, spec=dataclasses.replace(model.spec, vae=vae))
        np.testing.assert_allclose(previews.colour_map(scaled), [*found[:-1] / 2, found[-1]], rtol=1e-6)
    for text in ("{", json.dumps({"format": previews.FORMAT, "map": [[1, 2, 3]]})):
        file.write_text(text)
        np.testing.assert_array_equal(previews.colour_map(model), found)
        assert json.loads(file.read_text())["format"] == previews.FORMAT
    vae = dict(model.params["vae"])
    name = sorted(vae)[0]
    other = {name: _scaled(vae[name])} | {key: value for key, value in vae.items() if key != name}
    previews.colour_map(dataclasses.replace(model, params=model.params | {"vae": other}))
    assert len(list(file.parent.iterdir())) == 2


def _scaled(tree):
    return {key: _scaled(value) if isinstance(value, dict) else value * 1.5 for key, value in tree.items()}


@pytest.mark.full
def test_frames_are_the_map_of_x0_without_padding(small, short_clips):
    model = small("1.5-5b")[1]
    steps, colours = steps_of(model), previews.colour_map(model)
    assert len(steps) == 2
    for frames, x0, padding in steps:
        assert padding == 1 and frames.dtype == np.uint8 and frames.shape == (1, x0.shape[1] - 1, 4, 6, 3)
        wanted = np.clip(x0[:, 1:] @ colours[:-1] + colours[-1], -1, 1) * 127.5 + 127.5
        np.testing.assert_allclose(frames, wanted, atol=0.51)


def test_a_decoder_makes_frames_of_the_videos_size(small):
    model, found = small("5b")[1], []
    preview = cx.Preview(model, decoder=model)
    look = lambda step: found.append((preview(step), step.x0))  # noqa: E731
    cx.generate(model, "a red circle", output="latents", progress=False, on_step=look, num_inference_steps=1)
    ((frames, x0),) = found
    np.testing.assert_array_equal(frames[0], np.concatenate(list(decode_frames(model, x0))))
    vae = dataclasses.replace(model.spec.vae, latent_channels=16)
    other = dataclasses.replace(model, spec=dataclasses.replace(model.spec, vae=vae))
    with pytest.raises(ValueError, match="must take latents of 4 channels, it takes 16"):
        cx.Preview(model, decoder=other)
    with pytest.raises(ValueError, match="the model must be what `load` gives"):
        cx.Preview("tiny")


def test_clips_to_fit_to_are_of_the_shape_that_is_said():
    clips = previews.fitting_clips("CogVideoX-5b")
    assert clips.shape == (16, 17, 64, 64, 3) and clips.dtype == np.uint8
    assert 40 < clips[8:].std() < 80 and len(previews.fitting_clips("tiny")) == 8


def test_a_notebook_shows_them_in_one_place(small, short_clips, monkeypatch):
    model, pages = small("5b")[1], []

    class Shown:
        def update(self, page):
            pages[-1].append(page)

    def display(page, display_id):
        assert display_id
        pages.append([page])
        return Shown()

    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(HTML=str, display=display))
    monkeypatch.setattr(previews, "SHARE", 1)
    preview = cx.Preview(model)
    for _ in range(2):
        cx.generate(model, ["a red circle"] * 2, progress=False, output="latents", on_step=preview.show)
    assert [len(shown) for shown in pages] == [4, 4]
    first, *_ = re.findall('src="data:image/webp;base64,([^"]+)"', pages[0][0])
    picture = PIL.Image.open(io.BytesIO(base64.b64decode(first)))
    assert picture.size == (6, 4) and picture.n_frames == 3
    assert "step 4 of 4" in pages[1][-1] and pages[1][-1].count("<img") == 2
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    with pytest.raises(ValueError, match="`show` is for notebooks"):
        cx.generate(model, "a red circle", progress=False, output="latents", on_step=preview.show)


@pytest.mark.full
def test_held_out_clips_of_tiny_are_shown_well():
    model, rng = cx.load("tiny", components=("vae",)), np.random.default_rng(3)
    _, held_out = shapes.split()
    clips = np.stack([shapes.draw(scene, rng) for scene in held_out[::28]])
    pixels = clips.astype(np.float32) / 127.5 - 1
    latents = np.asarray(encode_moments(model, pixels))[..., :16] * model.spec.vae.scaling_factor
    colours = previews.colour_map(model)
    shown = np.clip(latents @ colours[:-1] + colours[-1], -1, 1)
    error = np.mean((shown - previews.latent_colours(pixels, latents.shape[1:4])) ** 2)
    assert 10 * np.log10(4 / error) > 26


def test_the_command_writes_them(small, short_clips, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        arguments = ["generate", "a red circle", "--model", small("5b")[0], "--no-progress", *arguments]
        monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as ended:
            return capsys.readouterr().err, ended.code
        return "", 0

    file = tmp_path / "preview.gif"
    assert run("--preview", file, "--out", tmp_path / "out.gif")[1] == 0
    frames, fps = read_video(file)
    assert frames.shape == (3, 4, 6, 3) and fps == 2
    said, status = run("--preview", tmp_path / "preview.mp4")
    assert status == 2 and "a preview is a small animation, .webp or .gif" in said
    said, status = run("--preview", file, "--out", file)
    assert status == 2 and "the preview and the video are both" in said
    said, status = run("--preview-decoder", "taecvx.safetensors", "--out", tmp_path / "other.gif")
    assert status == 2 and "give --preview, a file for them, too" in said
    said, status = run("--preview", file, "--preview-decoder", tmp_path / "none", "--out", tmp_path / "other.gif")
    assert status == 2 and "none" in said
    said, status = run("--preview", file, "--one-program")
    assert status == 2 and "steps are not looked at with --one-program" in said


@pytest.mark.full
def test_taecvx_decodes_previews_of_the_command(tmp_path, monkeypatch):
    decoder, file = write_taehv(tmp_path / "taecvx.safetensors"), tmp_path / "preview.gif"
    arguments = [
        "generate",
        "a red circle",
        "--steps",
        2,
        "--frames",
        9,
        "--no-progress",
        "--out",
        tmp_path / "out.gif",
    ]
    arguments += ["--preview", file, "--preview-decoder", decoder]
    monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, arguments)])
    cli.main()
    frames, fps = read_video(file)
    assert frames.shape == (9, 64, 64, 3) and fps == 8
    assert (read_video(tmp_path / "out.gif")[0] != frames).any()
