"""Videos longer than trained: RIFLEx, windows, FreeNoise, continuation."""

import dataclasses
import json
import re
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from closeness import close
from small_files import small_spec

import cogvx_jax as cx
from cogvx_jax.cli import main as cli
from cogvx_jax.cli import plan as plan_command
from cogvx_jax.cli.main import VERBS
from cogvx_jax.data.video import to_model_pixels
from cogvx_jax.diffusion.windows import POLICIES, Laid, Windows, lay_out, shuffled
from cogvx_jax.models.transformer import check_packs
from cogvx_jax.nn.embeddings import rope_tables, time_frequencies
from cogvx_jax.pipelines.continuation import joined
from cogvx_jax.pipelines.duration import sampling_flops
from cogvx_jax.pipelines.generate import sample, sampler_of
from cogvx_jax.pipelines.inputs import carried_frames
from cogvx_jax.pipelines.latents import clip_modes
from cogvx_jax.pipelines.noise import SeededNoise
from cogvx_jax.pipelines.options import Options, none_beside
from cogvx_jax.pipelines.request import check_request
from cogvx_jax.pipelines.short_schedule import check_stored
from cogvx_jax.pipelines.tasks import sampling_inputs
from cogvx_jax.pipelines.windowed import over_windows
from cogvx_jax.planning.compile import compile_programs
from cogvx_jax.planning.plan import plan
from cogvx_jax.presets import PRESETS

GOLDEN = Path(__file__).parent / "golden"


def latents_of(model, **options):
    return cx.generate(model, "x", output="latents", progress=False, **{"num_inference_steps": 2} | options)


# RIFLEx.


def stretched(preset):
    return dataclasses.replace(PRESETS[preset].transformer, riflex=True)


def test_riflex_is_as_recorded():
    golden = np.load(GOLDEN / "riflex.npz")
    for table, name in zip(rope_tables(stretched("5b"), 25, 2, 3), ("cos", "sin"), strict=True):
        np.testing.assert_allclose(table[::5], golden[f"{name}_97_2x3_k2"], rtol=0, atol=2e-6)
        np.testing.assert_allclose(table[::6, :16], golden[f"time_{name}_25_k2"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("preset", ["5b", "1.5-5b"])
def test_riflex_changes_one_frequency_of_clips_beyond_its_period(preset):
    """Its count is of temporal tokens: those of 1.5 are of two latents."""
    own = time_frequencies(PRESETS[preset].transformer, 33)
    np.testing.assert_array_equal(time_frequencies(stretched(preset), 20), own)
    for tokens in (21, 33):
        found = time_frequencies(stretched(preset), tokens)
        assert found[1] == pytest.approx(0.9 * 2 * np.pi / tokens) and found[1] < own[1]
        np.testing.assert_array_equal(np.delete(found, 1), np.delete(own, 1))


def test_riflex_is_asked_for_by_a_word(small):
    _, model = small("5b")
    plain, riflex = (latents_of(model, num_frames=33, positions=one) for one in (None, "riflex"))
    assert plain.shape == riflex.shape == (1, 9, 4, 6, 4)
    assert np.abs(plain - riflex).max() > 1e-3
    with pytest.warns(UserWarning, match="positions riflex change nothing here: they are for more than 6 temporal tok"):
        short = latents_of(model, positions="riflex")
    np.testing.assert_array_equal(short, latents_of(model))


def test_riflex_depends_on_a_length_that_packed_rows_have_not():
    cfg = dataclasses.replace(small_spec("5b").transformer, riflex=True)
    with pytest.raises(ValueError, match="RIFLEx's positions depend on a clip's length"):
        check_packs(cfg)


@pytest.mark.parametrize("kind, said", [("2b", "its are sincos"), ("5b-i2v", r"its are rope\+learned")])
def test_riflex_needs_rotary_positions(kind, said):
    image = np.zeros((8, 8, 3), np.uint8) if kind == "5b-i2v" else None
    with pytest.raises(ValueError, match=f"positions riflex need rotary positions, which .* has not: {said}"):
        check_request(small_spec(kind), "x", Options(positions="riflex", image=image))


def test_what_is_asked_of_positions_is_checked():
    with pytest.raises(ValueError, match="unknown positions 'ntk'; the known ones are riflex"):
        Options(positions="ntk")
    with pytest.raises(ValueError, match="stored programs have the positions of training; leave out"):
        check_stored(check_request(small_spec("5b"), "x", Options(frames=33, positions="riflex")))


# Windows.

RECORDED = {"static_standard": "static", "uniform_standard": "uniform", "uniform_looped": "looped"}


@pytest.mark.parametrize("case", json.loads((GOLDEN / "context_windows.json").read_text()), ids=lambda c: c["policy"])
def test_windows_are_those_recorded(case):
    policy, sizes = POLICIES[RECORDED[case["policy"]]], (case["latent_frames"], case["size"], case["overlap"])
    assert [policy(step, *sizes, case["stride"]) for step in range(len(case["steps"]))] == case["steps"]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_latent_is_in_a_window_of_the_clip(policy):
    for latents in range(2, 26):
        for size in range(1, latents):
            for overlap, strides in ((0, 1), (size - 1, 1), (size // 3, 3)):
                for step in range(4):
                    found = POLICIES[policy](step, latents, size, overlap, strides)
                    assert {len(window) for window in found} == {size}
                    assert set(sum(found, [])) == set(range(latents)), (latents, size, overlap, strides)


def test_windows_are_laid_out_for_programs_that_all_steps_share():
    laid = lay_out(Windows(16, overlap=8), 9, 5, size=4, overlap=2)
    assert laid.latents.shape == (5, laid.count.max(), 4) and len(set(laid.count)) > 1
    for windows, count, times in zip(laid.latents, laid.count, laid.times, strict=True):
        np.testing.assert_array_equal(np.bincount(windows[:count].ravel(), minlength=9), times)


def test_noise_is_shuffled_behind_the_first_window():
    which = shuffled(np.random.default_rng(0).normal(size=(3, 11)), 4, 1)
    np.testing.assert_array_equal(which[:, :4], [[0, 1, 2, 3]] * 3)
    np.testing.assert_array_equal(np.sort(which[:, 4:7], axis=1), [[0, 1, 2]] * 3)
    # The next are a shuffle of latents 3 to 5, whose noise was itself moved; then the clip ends.
    assert all(set(row[7:10]) == set(row[3:6]) and row[10] in row[6:9] for row in which)
    assert len({tuple(row) for row in which}) > 1  # videos differ
    np.testing.assert_array_equal(shuffled(np.zeros((1, 4)), 4, 1), [[0, 1, 2, 3]])


@pytest.mark.parametrize("first", [False, True])
def test_v_is_the_mean_of_the_windows_of_a_latent(first):
    """The condition goes with its latents; but that of the first latent begins all windows where it is a picture's."""
    x = np.random.default_rng(0).normal(size=(2, 5, 1, 1, 3)).astype(np.float32)  # 2 channels and a condition's
    windows = Laid(jnp.array([[0, 1, 2], [2, 3, 4], [9, 9, 9]]), 2, np.float32([1, 1, 2, 1, 1]), np.bool_(first))

    def velocity(weights, x, text, t):
        assert x.shape == (2, 3, 1, 1, 3)
        return weights * x[..., :2] + x[..., 2:]

    v = over_windows(velocity, windows, 2, None)(10.0, jnp.asarray(x), None, None)
    second = x[:, [2, 3, 4], ..., 2:].copy()
    second[:, 0] = x[:, 0 if first else 2, ..., 2:]
    condition = np.concatenate([x[:, :2, ..., 2:], (x[:, 2:3, ..., 2:] + second[:, :1]) / 2, second[:, 1:]], axis=1)
    np.testing.assert_allclose(v, 10 * x[..., :2] + condition, rtol=1e-5, atol=1e-6)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:windows of .* change nothing here")
def test_windows_as_long_as_the_clip_give_the_plain_video(small):
    _, model = small("5b")
    plain = latents_of(model)
    for frames in (12, 9):  # 3 latents each
        close(latents_of(model, windows=Windows(frames, overlap=4)), plain)


def test_windows_are_seen_as_clips(small):
    """Of one step from given noise, each window is what the model makes of it alone."""
    _, model = small("5b")
    noise = np.random.default_rng(0).normal(size=(1, 5, 4, 6, 4)).astype(np.float32)
    one = dict(num_inference_steps=1)
    whole = latents_of(model, num_frames=17, latents=noise, windows=Windows(12, overlap=4, policy="static"), **one)
    first, second = (latents_of(model, num_frames=9, latents=noise[:, at : at + 3], **one) for at in (0, 2))
    close(whole[:, :2], first[:, :2])
    close(whole[:, 2], (first[:, 2] + second[:, 0]) / 2)
    close(whole[:, 3:], second[:, 1:])


@pytest.mark.full
def test_noise_of_a_clip_is_that_of_its_first_window(small):
    """A clip of two windows without overlap, of a model that sees both alike: the noise of one is the other's."""
    _, model = small("5b")
    asked = dict(num_frames=17, num_inference_steps=1)
    asked["windows"] = windows = Windows(12, overlap=0, policy="static")
    free = latents_of(model, **asked)
    plain = latents_of(model, **asked | dict(windows=dataclasses.replace(windows, noise="plain")))
    close(free[:, :2], plain[:, :2])
    assert np.abs(free[:, 3:] - plain[:, 3:]).max() > 0.1


@pytest.mark.full
@pytest.mark.parametrize("kind", ["2b", "5b-i2v", "1.5-5b", "1.5-5b-i2v"])
@pytest.mark.parametrize("sampler, guider", [("dpm", None), ("unipc", "stg:layers=0"), ("heun", "apg")])
def test_windows_go_with_all_else(small, kind, sampler, guider):
    _, model = small(kind)
    frames = 33 if kind.startswith("1.5") else 17
    asked = dict(num_frames=frames, windows="16:8" if frames == 33 else "9:4", sampler=sampler, guider=guider)
    if kind.endswith("i2v"):
        asked["image"] = np.full((8, 8, 3), 120, np.uint8)
    each = [latents_of(model, **asked, one_program=one, num_inference_steps=3) for one in (False, True)]
    close(each[1], each[0])


@pytest.mark.full
@pytest.mark.parametrize("memory", ["rows", "chunks", "offload"])
def test_memory_modes_have_windows_too(small, memory):
    folder, model = small("5b")
    asked = dict(num_frames=17, windows="9:4")
    close(latents_of(cx.load(folder, memory=memory), **asked), latents_of(model, **asked))


@pytest.mark.full
def test_exact_results_of_windows_are_the_same_bits(small):
    folder, model = small("5b")
    mesh = cx.make_mesh(cfg=2, devices=jax.devices()[:2])
    each = [latents_of(one, num_frames=17, windows="9:4", exact=True) for one in (model, cx.load(folder, mesh=mesh))]
    np.testing.assert_array_equal(*each)


def test_the_work_of_windows_is_counted():
    def flops(**options):
        spec = PRESETS["5b"]
        return sampling_flops(spec, check_request(spec, "x", Options(size=(480, 720), **options)), 1)

    assert flops(frames=97, windows=Windows(49, overlap=0, policy="static")) == 2 * flops(frames=49)
    assert flops(frames=385, windows=Windows(49)) < flops(frames=385) / 3


@pytest.mark.full
def test_a_plan_counts_a_window_at_a_time(small, monkeypatch, tmp_path):
    """Its step takes less memory than that of the whole clip, and its work is that of all windows."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder, model = small("5b")
    about = dict(num_frames=65, mesh=cx.make_mesh(devices=jax.devices()[:1]), memory="resident")
    asked = dict(windows="12:4,policy=static")
    whole, seen = (plan(str(folder), **about, **more) for more in ({}, asked))
    assert seen.windows_a_step == 8 and seen.windows.startswith("12:4,policy=static") and whole.windows == ""
    assert seen.chosen.step < whole.chosen.step
    request = check_request(model.spec, "x", Options(frames=65, **asked))
    assert seen.flops == sampling_flops(model.spec, request, 1)
    lines = plan_command.table(seen).splitlines()
    assert any(line.startswith("A step sees 8.0 windows, one after the other, in the mean: 12:4") for line in lines)


@pytest.mark.full
@pytest.mark.parametrize("how", [dict(), dict(one_program=True)])
def test_stored_programs_know_windows(small, tmp_path, how):
    """Nothing is compiled, and the latents are those of programs that are."""
    folder, model = small("5b")
    asked = dict(num_frames=17, num_inference_steps=3, windows="12:4")
    compile_programs(str(folder), tmp_path / "programs", **asked, **how)
    stored = cx.load(folder, programs=tmp_path / "programs")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = latents_of(stored, **asked, **how)
    np.testing.assert_array_equal(made, latents_of(model, **asked, **how))


def test_windows_that_hold_the_whole_clip_are_told_of():
    for frames in (48, 49):
        with pytest.warns(
            UserWarning, match=f"windows of {frames} frames change nothing here: one holds the 41 frames"
        ):
            check_request(PRESETS["5b"], "x", Options(frames=41, windows=Windows(frames)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_request(PRESETS["5b"], "x", Options(frames=57, windows=Windows(49)))


def test_help_of_extend_and_loop_has_no_option_that_they_refuse(monkeypatch, capsys):
    shown, flags = {}, {}
    monkeypatch.setenv("COLUMNS", "80")
    for verb in ("extend", "loop"):
        monkeypatch.setattr(sys, "argv", ["cogvx", verb, "--help"])
        with pytest.raises(SystemExit):
            cli.main()
        said = capsys.readouterr().out
        flags[verb] = set(re.findall(r"^\W{0,3}(--[a-z-]+)", said, re.MULTILINE))
        shown[verb] = " ".join(re.sub("[│|]", " ", said).split())
    refused = {f"--{name.replace('_', '-')}" for name in none_beside("extend")}
    assert {"--image", "--controlnet", "--strength", "--mask-dilation"} <= refused <= flags["loop"]
    assert not flags["extend"] & {*refused, "--extend", "--prompts-file"} and "--extend" not in flags["loop"]
    assert "8N+1" in shown["loop"] and "8N+1" not in shown["extend"]
    assert "any number above that of VIDEO" in shown["extend"]


WRONG = {
    "windows of 8 frames are not larger than their overlap of 8; lower the overlap": "8:8",
    "windows: frames must be a whole number, such as 48:8, got 'x'": "x",
    "windows: frames must be a whole number from 1 to 16384, got 0": "0",
    "windows: policy must be one of static, uniform, looped, got best": "48:8,policy=best",
    "windows: 'size' is no option, or stands twice; the known ones are overlap, policy": "48:size=3",
    "windows: 'overlap' is no option, or stands twice": "48:8,8",
    "windows: strides are of the policies uniform and looped": "48:8,policy=static,strides=2",
    "windows must be text such as 48:8, got 48": 48,
    "windows must be of 4N or 4N+1 frames, their overlap of 4N, got 47 and 8": "47",
    "windows overlap, so one has no use for what another left to reuse every:2; give one": dict(reuse="every:2"),
}


@pytest.mark.parametrize("said", WRONG)
def test_wrong_windows_are_one_sentence(said):
    asked = WRONG[said] if isinstance(WRONG[said], dict) else dict(windows=WRONG[said])
    with pytest.raises(ValueError) as refused:
        check_request(PRESETS["5b"], "x", Options(**dict(frames=97, windows="48") | asked))
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_windows_are_of_whole_tokens_and_of_learned_lengths():
    with pytest.raises(
        ValueError, match="windows of 12 frames are 3 latents, and this model's tokens are of 2; use win"
    ):
        check_request(small_spec("1.5-5b"), "x", Options(frames=33, windows=Windows(12)))
    picture = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="has learned positions for 9 frames only, got windows of 16"):
        check_request(small_spec("5b-i2v"), "x", Options(frames=33, windows=Windows(16), image=picture))


# Continuation.

CLIP = np.random.default_rng(0).integers(0, 256, (13, 32, 48, 3), np.uint8)


@pytest.fixture(scope="module")
def inpainting(small):
    """A random model of CogVideoX-Fun's kind: the small 5B with more channels."""
    _, base = small("5b")
    cfg = dataclasses.replace(base.spec.transformer, in_channels=9)
    patch = base.params["transformer"]["patch"]
    shape = patch["kernel"].shape[0] // 4 * 9, cfg.width
    kernel = np.random.default_rng(1).normal(size=shape).astype(np.float32) / np.sqrt(shape[0])
    transformer = dict(base.params["transformer"]) | {"patch": patch | {"kernel": jnp.asarray(kernel)}}
    params = {**{name: base.params[name] for name in ("vae", "text_encoder")}, "transformer": transformer}
    return dataclasses.replace(base, spec=dataclasses.replace(base.spec, transformer=cfg), params=params)


def frames_of(model, **options):
    return cx.generate(model, "x", progress=False, num_inference_steps=2, **options).frames[0]


def test_a_text_model_begins_with_the_latents_of_a_clips_end(small):
    _, model = small("5b")
    request = check_request(model.spec, "x", Options(extend=CLIP, steps=2))
    assert (request.task, request.frames, request.segments, request.finished) == ("extend", 9, 1, 13 + 9 - 1)
    np.testing.assert_array_equal(request.prefix, CLIP[-1:])  # half of 3 latents
    request = dataclasses.replace(request, prefix=CLIP[-5:])
    inputs = sampling_inputs(model, request, SeededNoise(0), sampler_of(model, request))
    np.testing.assert_array_equal(np.asarray(inputs.known.kept)[0, :, 0, 0, 0], [1, 1, 0])
    latents = np.asarray(sample(model, request, progress=False))
    alone = clip_modes(model, to_model_pixels(CLIP[-5:], 32, 48)[None], 2)
    np.testing.assert_allclose(latents[:, :2], alone, atol=1e-6)
    assert np.abs(latents[:, 2] - latents_of(model)[:, 2]).max() > 1e-3  # it sees what is known


def test_clips_are_carried_by_what_a_model_can_take():
    """Latents of published models; VideoX-Fun's scripts carry 4 frames, image-to-video models one."""
    inpaints = dataclasses.replace(PRESETS["5b"].transformer, in_channels=33)
    fun = dataclasses.replace(PRESETS["5b"], transformer=inpaints)
    found = [carried_frames(spec, 49) for spec in (PRESETS["5b"], PRESETS["1.5-5b"], PRESETS["5b-i2v"], fun)]
    assert found == [9, 9, 1, 4]
    assert [carried_frames(PRESETS["5b"], count) for count in (1, 4, 5, 8, 9)] == [1, 1, 5, 5, 9]
    assert carried_frames(fun, 2) == 2


@pytest.mark.full
def test_segments_follow_each_other(small):
    """The whole begins with the clip, has the frames that are asked for, and each segment has noise of its own."""
    _, model = small("5b")
    whole = frames_of(model, extend=CLIP, num_frames=26)
    assert whole.shape == (26, 32, 48, 3)
    np.testing.assert_array_equal(whole[:13], CLIP)
    first = frames_of(model, extend=CLIP)
    np.testing.assert_array_equal(whole[:21], first)
    np.testing.assert_array_equal(whole[21:], frames_of(model, extend=first, seed=1)[21:26])


@pytest.mark.full
def test_an_image_model_goes_on_from_the_last_frame(small):
    _, model = small("5b-i2v")
    whole = frames_of(model, extend=CLIP, num_frames=20)
    np.testing.assert_array_equal(whole[:13], CLIP)
    np.testing.assert_array_equal(whole[13:], frames_of(model, image=CLIP[-1])[1:8])


def test_an_inpainting_model_fades_over(inpainting):
    request = check_request(inpainting.spec, "x", Options(extend=CLIP, steps=2))
    condition = sampling_inputs(inpainting, request, SeededNoise(0), sampler_of(inpainting, request)).condition
    known = condition.channels[0, :, 0, 0, 0]
    np.testing.assert_allclose(known, [0.7, 0.7, 0], rtol=1e-6)  # frames 2 and 3, which the mask looks at, are known
    whole = frames_of(inpainting, extend=CLIP)
    assert whole.shape == (13 + 9 - 4, 32, 48, 3)
    np.testing.assert_array_equal(whole[:10], CLIP[:10])  # the first that fades is still the old one
    old, new = np.full((4, 1, 1, 3), 100, np.uint8), np.full((4, 1, 1, 3), 200, np.uint8)
    assert list(joined("inpaint", old, new)[:, 0, 0, 0]) == [100, 125, 150, 175]
    np.testing.assert_array_equal(joined("t2v", old, new), old)


IN_ONE = dict(extend=CLIP, num_frames=28, windows=Windows(12, overlap=4, policy="static"))


def test_windows_go_on_in_one_segment(small):
    request = check_request(small("5b")[1].spec, "x", Options.from_keywords(**IN_ONE))
    assert (request.frames, request.segments) == (17, 1)


@pytest.mark.full
def test_windows_of_one_segment_make_all_frames(small):
    _, model = small("5b")
    assert frames_of(model, **IN_ONE).shape == (28, 32, 48, 3)


@pytest.mark.full
def test_a_model_of_patches_of_two_frames_goes_on_behind_its_padding(small):
    _, model = small("1.5-5b")
    request = check_request(model.spec, "x", Options(extend=CLIP, steps=2))
    assert request.padding == 1 and request.carried == 5
    latents = np.asarray(sample(model, request, progress=False))
    alone = np.asarray(clip_modes(model, to_model_pixels(CLIP[-5:], 32, 48)[None], 3))
    np.testing.assert_allclose(latents[:, :3], alone, atol=1e-6)
    np.testing.assert_array_equal(alone[:, 0], alone[:, 1])
    np.testing.assert_array_equal(frames_of(model, extend=CLIP)[:13], CLIP)


UNFIT = {
    "give a video to extend or an image, not both": ("5b", dict(image=CLIP[0])),
    "give a video to extend or a mask, not both": ("5b", dict(mask=CLIP)),
    "frames counts the whole video: .* extend, which has at least 13, and at most 16384, got 13": (
        "5b",
        dict(frames=13),
    ),
    "a video is extended by one prompt, and from noise of its own; give one prompt": (
        "5b",
        dict(latents=np.zeros((1, 3, 4, 6, 4))),
    ),
    "takes no video to extend; use a text-to-video, image-to-video or inpainting model": ("control", {}),
}


@pytest.mark.parametrize("said", UNFIT)
def test_what_cannot_be_extended_is_refused(said):
    kind, options = UNFIT[said]
    spec = small_spec("5b")
    if kind == "control":
        cfg = dataclasses.replace(spec.transformer, in_channels=2 * spec.transformer.out_channels, control=True)
        spec = dataclasses.replace(spec, transformer=cfg)
    with pytest.raises(ValueError, match=said):
        check_request(spec, "x", Options(**dict(size=(32, 48), extend=CLIP) | options))


# Loops, and the verbs.


def test_a_ring_needs_all_latents(small):
    with pytest.raises(ValueError, match="drops 1 latent where 17 frames would close to a ring; use another policy"):
        check_request(small_spec("1.5-5b"), "x", Options(size=(32, 48), frames=17, windows="16:8,policy=looped"))
    assert latents_of(small("5b")[1], num_frames=17, windows="9:4,policy=looped").shape == (1, 5, 4, 6, 4)


def test_a_loop_is_one():
    verbs, options = {name: one.run for name, one in VERBS.items()}, ["--windows", "12:4,policy=static"]
    with pytest.raises(ValueError, match="a loop is made by windows with policy=looped, not static"):
        tyro.extras.subcommand_cli_from_dict(verbs, args=["loop", "x", *options])


@pytest.mark.parametrize(
    "verb, wanted",
    [
        (["extend", "in.mp4", "x", "--frames", "97", "--out", "y.mp4"], dict(extend="in.mp4", frames=97)),
        (["loop", "x", "--out", "y.mp4"], dict(windows=Windows(16, overlap=8, policy="looped"))),
        (["loop", "x", "--windows", "12:4", "--out", "y.mp4"], dict(windows=Windows(12, overlap=4, policy="looped"))),
        (
            ["loop", "x", "--flow", "f.npy", "--out", "y.mp4"],
            dict(windows=Windows(16, overlap=8, policy="looped", noise="plain"), flow="f.npy"),
        ),
    ],
    ids=" ".join,
)
def test_verbs_are_short_for_generate(monkeypatch, verb, wanted):
    made = []

    def generate(prompt, *, run, video, given):
        made.append((prompt, run.out, video.checked()))

    monkeypatch.setattr("cogvx_jax.cli.extend.generate", generate)
    monkeypatch.setattr("cogvx_jax.cli.loop.generate", generate)
    tyro.extras.subcommand_cli_from_dict({name: one.run for name, one in VERBS.items()}, args=verb)
    assert made == [("x", Path("y.mp4"), Options(**wanted))]
