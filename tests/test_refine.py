"""Refining: windows of a picture, segments of a clip, what the least strength gives, seams, and the command."""

import functools
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from test_cli import fails, run
from test_mesh import MESHES, mesh_of, name

import cogvx_jax as cx
from cogvx_jax.data.video import read_video, to_model_pixels
from cogvx_jax.diffusion.places import PictureWindows, lay_out_places
from cogvx_jax.finishing.refine import faded, prompt_of, refined_frames, request_of, segments, windows_of
from cogvx_jax.finishing.refining import Refining
from cogvx_jax.pipelines.latents import decode_frames, video_latents
from cogvx_jax.pipelines.noise import SeededNoise
from cogvx_jax.pipelines.record import read_record
from cogvx_jax.pipelines.windowed import over_places
from cogvx_jax.presets import PRESETS

FRAMES = 9


@pytest.mark.parametrize(
    "size, window, overlap, patch",
    [((12, 20), (6, 8), (2, 2), 2), ((7, 9), (4, 9), (1, 3), 1), ((5, 5), (8, 8), (2, 2), 2)],
)
def test_windows_lie_over_all_of_a_picture(size, window, overlap, patch):
    places = lay_out_places(size, window, overlap, patch)
    h, w = places.ramp.shape
    assert (h, w) == tuple(map(min, window, size)) and places.ramp.min() > 0 and places.ramp.max() == 1 or h * w < 16
    seen = np.zeros(size, int)
    for top, left in places.corners:
        assert 0 <= top <= size[0] - h and 0 <= left <= size[1] - w
        seen[top : top + h, left : left + w] += 1
    assert seen.min() >= 1 and places.total.min() > 0
    rows = sorted({int(top) for top, _ in places.corners})
    assert all(b - a <= max(h - overlap[0], patch) for a, b in zip(rows, rows[1:], strict=False))


def test_windows_need_an_overlap_below_them():
    with pytest.raises(ValueError, match="windows of 6 latents are not larger than their overlap of 6"):
        lay_out_places((12, 12), (6, 6), (6, 2))


def test_what_windows_predict_alike_has_no_seam():
    """Of a denoiser that knows no place, the mean of all windows is what the whole picture gives."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 12, 20, 5)), jnp.float32)
    beside = x[..., :2] + 1

    def velocity(weights, x, text, t, beside):
        return weights * x[..., :4] + beside.mean(-1, keepdims=True)

    whole = velocity(2.0, x, None, None, beside)
    places = lay_out_places((12, 20), (6, 8), (2, 2), 2)
    np.testing.assert_allclose(over_places(velocity, places, 4, None)(2.0, x, None, None, beside), whole, atol=1e-5)
    assert over_places(velocity, None, 4, None) is velocity


def test_a_window_is_turned_as_the_picture_is():
    asked = Refining(refine="5b")
    assert windows_of(PRESETS["5b"], 960, 1440, asked) == PictureWindows(480, 720, (128, 176))
    assert windows_of(PRESETS["5b"], 1440, 960, asked) == PictureWindows(720, 480, (176, 128))


def frames_of(*numbers):
    return np.uint8(np.asarray(numbers))[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)


@pytest.mark.parametrize("count", [1, 5, 9, 10, 17, 26])
def test_segments_are_the_clip(count):
    clip = frames_of(*range(count))
    found = list(segments([clip[:3], clip[3:]], 9, 2, 8))
    seen = []
    for one in found:
        assert len(one.frames) % 8 == 1 and len(one.frames) <= 9 and one.kept <= len(one.frames)
        seen = seen[: len(seen) - one.faded] + [int(frame[0, 0, 0]) for frame in one.frames[: one.kept]]
    assert seen == list(range(count)) and [one.faded for one in found] == [0] + [2] * (len(found) - 1)


def test_segments_fade():
    between = faded(frames_of(0, 0, 0), frames_of(100, 100, 100))[:, 0, 0, 0]
    assert list(between) == [25, 50, 75]


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(refine="5b", strength=0), "strength must be above 0 and at most 1, got 0"),
        (dict(refine="5b", overlap=0.9), "overlap must be from 0 to 0.75 of a window"),
        (dict(steps=4), "steps is of refining; name the model with refine"),
    ],
)
def test_what_cannot_be_asked(options, said):
    with pytest.raises(ValueError, match=said):
        Refining(**options)


def test_what_cannot_be_refined():
    clip = np.zeros((9, 64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="does not redraw videos; refine by a text-to-video model"):
        request_of(PRESETS["5b-i2v"], clip, Refining(refine="5b-i2v"), "a star")
    with pytest.raises(ValueError, match="a.mp4 carries no record that tells its prompt"):
        prompt_of(None, "no record", "a.mp4")


@pytest.fixture(scope="module")
def tiny():
    return cx.load("tiny")


def rings(size, frames=FRAMES):
    """A clip of slow colours, which the model's VAE keeps well."""
    y, x = np.mgrid[: size[0], : size[1]] / 24
    clip = [np.stack([np.sin(x + i / 4), np.cos(y - i / 5), np.sin(x + y)], -1) for i in range(frames)]
    return np.uint8(np.round(np.stack(clip) * 80 + 128))


@pytest.mark.full
def test_the_least_strength_leaves_the_clip_as_the_vae_does(tiny):
    """One of a thousand steps: the schedule's lowest noise, 5 % of the latents' deviation, on what tiny never saw."""
    clip = rings((96, 128))
    options = Refining(refine="tiny", strength=0.001, steps=1000, frames=FRAMES, guidance_scale=1.0)
    made = np.concatenate(list(refined_frames(tiny, [clip], options, "a red circle", progress=False)))
    latents = video_latents(tiny, to_model_pixels(clip, 96, 128)[None], 3, SeededNoise(0))
    plain = np.concatenate(list(decode_frames(tiny, latents)))
    assert made.shape == clip.shape
    assert np.abs(np.float32(made) - plain).mean() < 8  # 4.4 of 255 were measured; the clip's own deviation is 57


@pytest.mark.full
def test_seams_do_not_show(tiny):
    """Steps of colour across the borders of windows are no larger than elsewhere."""
    clip = rings((96, 160))
    options = Refining(refine="tiny", strength=0.3, steps=20, frames=FRAMES, overlap=0.25)
    made = np.float32(np.concatenate(list(refined_frames(tiny, [clip], options, "a red circle", progress=False))))
    across = np.abs(np.diff(made, axis=2)).mean(axis=(0, 1, 3))  # of each column to the next
    request = request_of(tiny.spec, clip, options, "")
    places = request.picture_windows.lay_out((12, 20), 8, 2)
    edges = {8 * int(left) for _, left in places.corners} | {8 * (int(left) + 8) for _, left in places.corners}
    edges = [edge - 1 for edge in edges if 0 < edge < 160]
    # The VAE's own cells show steps, too: the borders are compared with the other borders of cells.
    others = [i for i in range(7, 159, 8) if i not in edges]
    assert edges and across[edges].max() < 1.5 * across[others].max()


@pytest.mark.full
def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short = ["--steps", "1", "--size", "32x48", "--frames", "9", "--no-progress"]
    run("generate", "a star", "--out", "a.mp4", *short, monkeypatch=monkeypatch)
    refine = ["--refine", "tiny", "--steps", "2", "--strength", "0.5", "--frames", "9", "--no-progress"]
    run("finish", "a.mp4", "--out", "b.mp4", "--size", "64x96", *refine, monkeypatch=monkeypatch)
    assert read_video("b.mp4")[0].shape == (9, 64, 96, 3)
    refined, finished = read_record("b.mp4").finished
    assert refined["refined"]["prompt"] == "a star" and refined["refined"]["strength"] == 0.5
    assert refined["weights"] and finished["options"] == {"size": "64x96"}
    run("show", "b.mp4", monkeypatch=monkeypatch)
    assert '"model": "tiny"' in capsys.readouterr().out
    Path("a.mp4").unlink()
    cx.Video(np.zeros((1, 9, 32, 48, 3), np.uint8), 8).save("c.mp4")
    said = fails("finish", "c.mp4", *refine, monkeypatch=monkeypatch, capsys=capsys)
    assert "c.mp4 carries no record that tells its prompt" in said
    whole = cx.refine(cx.load("tiny"), "c.mp4", "a star", scale=1, steps=2, strength=0.5, frames=9, progress=False)
    assert whole.frames.shape == (1, 9, 32, 48, 3)


@functools.cache
def redrawn(folder, mesh):
    """Nine frames in four windows, guided."""
    options = Refining(refine="5b", strength=0.5, steps=4, frames=FRAMES, guidance_scale=3.0)
    model = cx.load(folder, mesh=mesh)
    return np.concatenate(list(refined_frames(model, [rings((48, 80))], options, "a red circle", progress=False)))


@pytest.mark.full
@pytest.mark.parametrize("sizes", MESHES, ids=name)
def test_every_mesh_redraws_the_same(small, sizes):
    folder, model = small("5b")
    assert (model.spec.defaults.height, model.spec.defaults.width) < (48, 80)
    alone, spread = redrawn(folder, None), redrawn(folder, mesh_of(sizes))
    assert alone.std() > 10 and np.abs(np.int16(spread) - alone).max() <= 1
