"""Noise that moves: the warp against recorded numbers, its files, and in whole runs."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from closeness import close
from small_files import small_spec

import cogvx_jax as cx
from cogvx_jax.cli import main as cli
from cogvx_jax.cli.inputs import Inputs
from cogvx_jax.cli.prompts_file import read_jobs
from cogvx_jax.data.arrays import open_array
from cogvx_jax.data.video import read_video
from cogvx_jax.diffusion.noise_warp import Grid, area_mean, degraded, to_latents, warp
from cogvx_jax.diffusion.warped import WarpedNoise, parse_warped
from cogvx_jax.pipelines.generate import sampler_of
from cogvx_jax.pipelines.noise import SeededNoise
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.request import check_request
from cogvx_jax.pipelines.tasks import sampling_inputs

GOLDEN = Path(__file__).parent / "golden"
RNG = np.random.default_rng(0)


def last(x):
    """(C, h, w) to channels-last."""
    return np.moveaxis(x, 0, -1)


def latents_of(model, **options):
    return cx.generate(model, "x", output="latents", progress=False, **{"num_inference_steps": 2} | options)


# The warp.


def test_noise_moves_as_recorded():
    golden = np.load(GOLDEN / "noise_warp.npz")
    grid = Grid.of(last(golden["noise"]))
    for flow, drawn, state in zip(golden["flows"], golden["draws"], golden["states"], strict=True):
        grid = warp(grid, last(flow), last(drawn))
        np.testing.assert_allclose(grid.noise, last(state[3:]), rtol=0, atol=1e-5)
        np.testing.assert_allclose(grid.weight, state[2], rtol=0, atol=1e-5)


def drawn(height, width, channels=4):
    return RNG.standard_normal((height, width, channels), np.float32)


def test_a_flow_of_zero_changes_nothing():
    noise = drawn(12, 16)
    found = warp(Grid.of(noise), np.zeros((12, 16, 2), np.float32), drawn(12, 32))
    np.testing.assert_array_equal(found.noise, noise)


@pytest.mark.parametrize("dx, dy", [(3, 0), (-2, 0), (0, 1), (0, -5), (1e30, 0)])
def test_whole_steps_move_all_and_fill_what_is_left(dx, dy):
    noise, flow = drawn(12, 16), np.zeros((12, 16, 2), np.float32)
    flow[:] = dx, dy
    found = warp(Grid.of(noise), flow, drawn(12, 32)).noise
    if dx > 16:
        assert not np.isin(found, noise).any()
        return
    # What leaves is renewed in its place, where it meets what lands there.
    inside = np.s_[abs(dy) : 12 - abs(dy), abs(dx) : 16 - abs(dx)]
    np.testing.assert_array_equal(found[inside], np.roll(noise, (dy, dx), (0, 1))[inside])
    assert np.isin(found, noise).sum() == found[inside].size  # the rest is new, or mixed with it


@pytest.mark.parametrize("zoom", [-0.3, 0.4])
def test_it_stays_noise_of_variance_1(zoom):
    y, x = np.mgrid[:96, :128].astype(np.float32)
    flow = zoom * np.stack([x - 64, y - 48], axis=-1)
    grid = Grid.of(drawn(96, 128))
    for _ in range(4):
        grid = warp(grid, flow, drawn(96, 256))
    assert abs(grid.noise.mean()) < 0.03 and abs(grid.noise.std() - 1) < 0.03
    neighbours = (grid.noise[:, 1:] * grid.noise[:, :-1]).mean()
    assert abs(neighbours) < 0.03  # and knows nothing of its neighbours
    assert abs(area_mean(grid.noise, 8).std() - 1) < 0.15


def test_noise_of_frames_becomes_that_of_latents():
    frames = drawn(49, 8 * 6, 4).reshape(49, 8, 6, 4)
    np.testing.assert_array_equal(to_latents(frames, 13, "nearest"), frames[::4])
    blend = to_latents(frames, 13, "blend")
    np.testing.assert_allclose(blend[[0, 3, 12]], [frames[:3].mean(0), frames[11:15].mean(0), frames[45:].mean(0)])
    assert blend.shape == (13, 8, 6, 4) and 0.4 < blend.std() < 0.6
    np.testing.assert_allclose(to_latents(frames, 13, "blend_norm").std(axis=1, ddof=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(to_latents(frames[:13], 13, "blend"), frames[:13])  # of latents already
    a, b = drawn(99, 99), drawn(99, 99)
    for share in (0, 0.3, 1):
        assert abs(degraded(a, b, share).std() - 1) < 0.02
    np.testing.assert_array_equal(degraded(a, b, 0), a)
    np.testing.assert_array_equal(degraded(a, b, 1), b)


# What is asked for.

NOISES = RNG.standard_normal((9, 4, 6, 4), np.float32)  # of the small models' 9 frames
FLOW = np.full((8, 16, 24, 2), 0.5, np.float32)  # of half the video's size: a pixel of the video a frame


def noise_of(model, prompts=("x",), **options):
    request = check_request(model.spec, list(prompts), Options.from_keywords(**options))
    sampler = sampler_of(model, request)
    return np.asarray(sampling_inputs(model, request, SeededNoise(request.seed), sampler).latents)


def test_given_noise_is_what_sampling_starts_from(small):
    _, model = small("5b")
    alone = WarpedNoise(NOISES, degradation=0.0)
    np.testing.assert_array_equal(noise_of(model, noises=alone)[0], NOISES[::4])
    np.testing.assert_array_equal(noise_of(model, noises=WarpedNoise(NOISES[:3], 0.0))[0], NOISES[:3])
    half, own = noise_of(model, noises=NOISES), noise_of(model)
    np.testing.assert_allclose(half[0], (own[0] + NOISES[::4]) / np.sqrt(2), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(noise_of(model, noises=WarpedNoise(NOISES, 1.0)), own)
    plain = latents_of(model, latents=NOISES[None, ::4])
    np.testing.assert_array_equal(latents_of(model, noises=alone), plain)


def test_a_flow_makes_noise_that_moves(small):
    _, model = small("5b")
    how = dict(degradation=0.0, cell=8)
    still = noise_of(model, flow=WarpedNoise(np.zeros_like(FLOW), **how))
    np.testing.assert_array_equal(still[0, 1:], still[0, :-1])
    assert abs(still.std() - 1) < 0.2
    # 8 pixels, a latent, in every 8 frames: the last latent is the first one moved by one.
    flow = FLOW.copy()
    flow[..., 1] = 0
    moved = noise_of(model, flow=WarpedNoise(flow, **how))[0]
    np.testing.assert_allclose(moved[2, :, 1:5], moved[0, :, :4], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(moved[0], still[0, 0])
    both = noise_of(model, ("x", "y"), flow=WarpedNoise(flow, **how))
    np.testing.assert_array_equal(both[0], moved)
    assert np.abs(both[1] - moved).max() > 0.5  # a flow for all, noise for each
    assert np.abs(noise_of(model, flow=WarpedNoise(flow, **how), seed=1) - moved).max() > 0.5


@pytest.mark.full
def test_padding_keeps_its_own_noise(small):
    _, model = small("1.5-5b")
    noises = RNG.standard_normal((17, 4, 6, 4), np.float32)
    found, own = noise_of(model, noises=WarpedNoise(noises, 0.0)), noise_of(model)
    np.testing.assert_array_equal(found[0, 1:], noises[::4])
    np.testing.assert_array_equal(found[:, 0], own[:, 0])


@pytest.mark.full
@pytest.mark.parametrize("options", [dict(one_program=True), dict(exact=True), dict(mesh=2)], ids=str)
def test_it_starts_alike_everywhere(small, options):
    folder, model = small("5b")
    plain = latents_of(model, flow=FLOW, exact="exact" in options)
    if options.pop("mesh", None):
        model = cx.load(folder, mesh=cx.make_mesh(cfg=2, sp=2, devices=jax.devices()[:4]))
    found = latents_of(model, flow=FLOW, **options)
    close(found, plain)


def test_text_says_how(tmp_path):
    assert parse_warped("a.npy") == WarpedNoise("a.npy")
    assert parse_warped("a:b.npy:degradation=0.25,frames=blend,cell=16") == WarpedNoise("a:b.npy", 0.25, "blend", 16)
    assert parse_warped("C:x.npy") == WarpedNoise("C:x.npy")


WRONG = {
    "degradation must be from 0 to 1, got 2": dict(flow="x.npy:degradation=2"),
    "degradation must be a number, got 'x'": dict(flow="x.npy:degradation=x"),
    "frames of noise must be one of nearest, blend, blend_norm, got 'mean'": dict(noises="x.npy:frames=mean"),
    "cell must be a whole number from 1 to 64, got 65": dict(flow="x.npy:cell=65"),
    "cell must be a whole number from 1 to 64, got 1.5": dict(flow="x.npy:cell=1.5"),
    "noise: 'speed' is no option, or stands twice; the known ones are degradation": dict(flow="x.npy:speed=3"),
    "cell is of the noise that a flow moves, and noises are there already; leave out cell": dict(noises="x.npy:cell=8"),
    "the array moves pixels by 1e+30, and a picture of 16x24 by at most 96; give pixels from": dict(
        flow=np.where(FLOW == FLOW.min(), -1e30, FLOW)
    ),
    "the array moves pixels by 96.5, and": dict(flow=np.full_like(FLOW, 96.5)),
    "there is no file 'nowhere.npy'": dict(noises="nowhere.npy"),
    "noises must be a path, got 3": dict(noises=3),
    "the array is noise of (8, 4, 6, 4), and a video of 9 frames needs (frames, height, width, channels) = (9, 4, 6, 4"
    "), or (3, 4, 6, 4) of its latents": dict(noises=NOISES[:8]),
    "the array is a flow of (7, 16, 24, 2), and a video of 9 frames needs (frames - 1": dict(flow=FLOW[:7]),
    "the array is a flow of 16x24, finer than the noise of 4x6; give a coarser one": dict(
        flow=WarpedNoise(FLOW, cell=1)
    ),
    "the array must hold numbers of float16, float32, float64, got int64": dict(flow=FLOW.astype(int)),
    "the array has 3072 numbers that are not finite": dict(flow=FLOW * [1, np.inf]),
    "the noise of 8192x16384 points would take more than can be held; lower cell=64": dict(
        flow=WarpedNoise(FLOW, cell=64), height=1024, width=2048
    ),
    "give noises or flow, not both": dict(noises=NOISES, flow=FLOW),
    "give noises or latents, not both": dict(noises=NOISES, latents=np.zeros((1, 3, 4, 6, 4))),
    "give flow or a video to extend, not both": dict(flow=FLOW, extend=np.zeros((8, 32, 48, 3), np.uint8)),
    "flow would be shuffled by windows with noise=free; give windows with noise=plain": dict(flow=FLOW, windows="8:4"),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_cannot_be_is_one_sentence(said):
    spec = small_spec("5b")
    with pytest.raises((ValueError, OSError)) as error:
        options = dict(height=32, width=48, num_frames=9) | WRONG[said]
        check_request(spec, "x", Options.from_keywords(**options))
    assert said in str(error.value) and "\n" not in str(error.value)


def spoiled(tmp_path, name):
    file = tmp_path / f"{name}.npy"
    np.save(file, FLOW)
    data = file.read_bytes()
    if name == "objects":
        np.save(file, np.array([print], object), allow_pickle=True)
    else:
        written = {
            "short": data[:-1],
            "text": b"(1, 2) of numbers",
            "empty": b"",
            "huge": data.replace(b"(8, 16, 24, 2)", b"(8, 9**99, 2) "),
            "vast": data.replace(b"(8, 16, 24, 2), ", b"(8, 16, 2400000,"),
            "none": data.replace(b"(8, 16, 24, 2)", b"(0, 16, 24, 2)"),
        }
        file.write_bytes(written[name])
    return file


@pytest.mark.parametrize(
    "name, said",
    [
        ("objects", "holds Python objects, which are never read"),
        ("short", "is cut short: it has 24575 bytes for float32"),
        ("text", "is no .npy file"),
        ("empty", "is no .npy file"),
        ("huge", "is no .npy file"),
        ("vast", "is no .npy file|is cut short"),
        ("none", "holds no numbers: its shape is"),
    ],
)
def test_files_of_strangers_are_not_believed(tmp_path, name, said):
    with pytest.raises(ValueError, match=said) as error:
        open_array(spoiled(tmp_path, name))
    assert "\n" not in str(error.value)


def test_files_are_read_as_they_were(tmp_path):
    np.save(tmp_path / "flow.npy", np.float16(FLOW))
    request = check_request(small_spec("5b"), "x", Options(flow=tmp_path / "flow.npy", size=(32, 48), frames=9))
    (tmp_path / "flow.npy").write_bytes(b"")
    np.testing.assert_array_equal(request.warped.flow, np.float32(FLOW))
    held = Inputs().hold(request)
    assert held.digest() == request.digest()
    others = [WarpedNoise(FLOW, 0.1), WarpedNoise(FLOW, cell=16), WarpedNoise(2 * FLOW), None]
    spec = small_spec("5b")
    digests = {check_request(spec, "x", Options(flow=one, size=(32, 48), frames=9)).digest() for one in others}
    assert len(digests | {request.digest()}) == 5


@pytest.mark.full
def test_the_command_and_a_prompts_file(small, tmp_path, monkeypatch):
    folder, model = small("5b")
    monkeypatch.chdir(tmp_path)
    np.save("noises.npy", NOISES)
    line = {"prompt": "x", "noises": "noises.npy:degradation=0.2"}
    Path("prompts.jsonl").write_text(json.dumps(line))
    (job,) = read_jobs(None, Path("prompts.jsonl"), Path("out.mp4"), Options())
    assert check_request(model.spec, job.prompt, job.options).warped.degradation == 0.2
    words = ["--noises", "noises.npy:degradation=0", "--model", str(folder), "--out", "out.mp4", "--no-progress"]
    monkeypatch.setattr(sys, "argv", ["cogvx", "generate", "x", *words])
    cli.main()
    assert read_video("out.mp4")[0].shape == (9, 32, 48, 3)
