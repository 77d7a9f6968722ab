"""Prompts that follow each other, over windows and over steps."""

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
from cogvx_jax.cli.prompts_file import read_jobs
from cogvx_jax.data.video import read_video
from cogvx_jax.diffusion.travel import Travel, lay_out, parse_travel
from cogvx_jax.diffusion.windows import Windows
from cogvx_jax.diffusion.windows import lay_out as lay_out_windows
from cogvx_jax.pipelines.generate import encode_texts, sample, windows_of
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.request import check_request
from cogvx_jax.pipelines.short_schedule import check_stored

WINDOWS = Windows(12, overlap=4, policy="static")  # of 17 frames, latents 0 to 2 and 2 to 4


def latents_of(model, prompt="a red circle", **options):
    return cx.generate(model, prompt, output="latents", progress=False, **{"num_inference_steps": 2} | options)


# How much of each prompt.


def test_windows_have_the_prompts_of_their_middle():
    laid = lay_out_windows(WINDOWS, 5, 3, size=3, overlap=1)  # middles at latents 1 and 3, frames 4 and 12
    shares = lay_out(Travel("frames", (8.0, 16.0), ("b", "c")), laid, per_latent=4)
    assert shares.shape == (3, 2, 3)
    np.testing.assert_allclose(shares, [[[0.5, 0.5, 0], [0, 0.5, 0.5]]] * 3)
    after = lay_out(Travel("frames", (2.0,), ("b",)), laid, per_latent=4)
    np.testing.assert_array_equal(after, [[[0, 1], [0, 1]]] * 3)
    padded = lay_out(Travel("frames", (8.0,), ("b",)), laid, per_latent=4, padding=1)
    np.testing.assert_allclose(padded[0], [[1, 0], [0, 1]])
    ring = lay_out_windows(Windows(8, overlap=0, policy="looped"), 5, 2, size=2, overlap=0)
    assert [4, 0] in ring.latents[0].tolist()  # its middle is the beginning
    shares = lay_out(Travel("frames", (16.0,), ("b",)), ring, per_latent=4)
    assert shares[0, ring.latents[0].tolist().index([4, 0]), 0] == 1


def test_steps_have_the_prompts_of_their_place():
    whole = lay_out_windows(WINDOWS, 3, 5, size=3, overlap=1)
    shares = lay_out(Travel("steps", (0.5, 1.0), ("b", "c")), whole, per_latent=4)[:, 0]
    np.testing.assert_allclose(shares, [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]])
    one = lay_out_windows(WINDOWS, 3, 1, size=3, overlap=1)
    np.testing.assert_array_equal(lay_out(Travel("steps", (1.0,), ("b",)), one, per_latent=4), [[[1, 0]]])


# Whole runs.


def test_the_same_prompt_all_the_way_is_the_plain_video(small):
    _, model = small("5b")
    close(latents_of(model, travel={"50%": "a red circle"}), latents_of(model))
    asked = dict(num_frames=17, windows=WINDOWS)
    close(latents_of(model, travel={8: "a red circle"}, **asked), latents_of(model, **asked))


def test_each_window_has_the_states_of_its_prompt(small):
    """Of one step from given noise, the windows are clips of their prompts' states, mixed half and half."""
    _, model = small("5b")
    noise = np.random.default_rng(0).normal(size=(1, 5, 4, 6, 4)).astype(np.float32)
    one = dict(num_inference_steps=1, latents=noise, num_frames=17, windows=WINDOWS)
    found = latents_of(model, travel={8: "a blue star", 12: "a green square"}, **one)

    def clip(at, text):
        options = Options(steps=1, latents=noise[:, at : at + 3], frames=9)
        request = check_request(model.spec, "a red circle", options)
        return np.asarray(sample(model, request, progress=False, text=text))

    states = {
        p: encode_texts(model, check_request(model.spec, p)) for p in ("a red circle", "a blue star", "a green square")
    }
    red, blue, green = ((np.float32(text), np.float32(negative)) for text, negative, _ in states.values())
    close(found[:, :2], clip(0, ((red[0] + blue[0]) / 2, red[1]))[:, :2])
    close(found[:, 3:], clip(2, green)[:, 1:])
    assert np.abs(clip(2, green) - clip(2, red)).max() > 0.02


def test_steps_begin_with_the_prompt_and_end_with_the_last(small):
    _, model = small("5b")
    red, blue = latents_of(model, num_inference_steps=4), latents_of(model, "a blue star", num_inference_steps=4)
    late, early = (latents_of(model, travel={place: "a blue star"}, num_inference_steps=4) for place in ("100%", "1%"))
    assert np.abs(late - red).max() > 1e-3 and np.abs(late - blue).max() > 1e-3
    assert np.linalg.norm(early - blue) < np.linalg.norm(late - blue)


@pytest.mark.full
def test_every_video_travels_by_itself(small):
    _, model = small("5b")
    options = dict(travel={"50%": "a green square"})
    both = latents_of(model, ["a red circle", "a blue star"], **options)
    close(both[:1], latents_of(model, **options))


@pytest.mark.full
@pytest.mark.parametrize("kind", ["2b", "5b", "1.5-5b", "5b-i2v"])
@pytest.mark.parametrize("over", ["24", "50%"])
def test_everywhere_the_same(small, kind, over):
    folder, model = small(kind)
    asked = dict(travel={over: "a blue star"}, negative_prompt=None, guider="stg:layers=0")
    if kind == "5b-i2v":
        asked["image"] = np.full((8, 8, 3), 120, np.uint8)
    if over == "24":
        asked |= dict(num_frames=33, windows="9:4" if kind == "5b-i2v" else "16:8")
    plain = latents_of(model, **asked)
    close(latents_of(model, one_program=True, **asked), plain)
    close(latents_of(cx.load(folder, memory="rows"), **asked), plain)
    there = cx.load(folder, mesh=cx.make_mesh(cfg=2, sp=2, devices=jax.devices()[:4]))
    close(latents_of(there, **asked), plain, 3e-5)
    if kind == "5b-i2v" and over == "24":  # its windows alone differ by a rounding there, with or without travel
        return
    meshes = None, cx.make_mesh(cfg=2, devices=jax.devices()[:2])
    asked["guider"] = None
    exact = [latents_of(cx.load(folder, mesh=mesh), exact=True, **asked) for mesh in meshes]
    np.testing.assert_array_equal(*exact)


@pytest.mark.full
def test_a_guidance_of_one_and_a_clip_to_extend(small):
    _, model = small("5b")
    clip = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), np.uint8)
    for options in (dict(guidance_scale=1.0), dict(video=clip, strength=0.5)):
        found = latents_of(model, travel={"50%": "a blue star"}, num_inference_steps=4, **options)
        assert np.abs(found - latents_of(model, num_inference_steps=4, **options)).max() > 1e-4
    whole = cx.generate(model, "x", extend=clip, travel={"50%": "a star"}, num_inference_steps=2, progress=False)
    np.testing.assert_array_equal(whole.frames[0, :9], clip)


# What is asked for.


def test_text_and_mappings_say_the_same():
    wanted = Travel("frames", (24.0, 48.0), ("a blue star", "x=y"))
    for said in ({48: "x=y", "24": "a blue star"}, ["24=a blue star", "48=x=y"], wanted):
        assert Options(travel=said).travel == wanted
    assert (
        Options(travel="50%=a star").travel == parse_travel([("50%", "a star")]) == Travel("steps", (0.5,), ("a star",))
    )
    assert Options().travel == Options(travel=[]).travel == Options(travel=None).travel == ()


WRONG = {
    "travel must be places and their prompts, such as 24=a blue star, got 'a star'": dict(travel="a star"),
    "travel must be places and their prompts, such as 24=a blue star, got 3": dict(travel=3),
    "a place of travel is a frame, such as 24, or a share of the steps, such as 50%, got 'x'": dict(travel="x=a star"),
    "such as 50%, got '-3'": dict(travel={-3: "a star"}),
    "a frame of travel must be a whole number, got '0.5'; a share of the steps ends": dict(travel={0.5: "a star"}),
    "travel is over frames, such as 24, or over steps": dict(travel={24: "a star", "50%": "a circle"}),
    "places of travel are frames or shares of the steps after the first": dict(travel={0: "a star"}),
    "of the steps after the first: the prompt is at 0": dict(travel={"101%": "a star"}),
    "travel has two prompts for one place; give one": dict(travel=["24=a star", "24=a circle"]),
    "the prompts of travel must be text": dict(travel={24: 3}),
    "travel over frames needs windows shorter than the clip of 33 frames": dict(travel={24: "a star"}),
    "frame 33 of travel is outside the clip, whose frames are 0 to 32": dict(travel={33: "x"}, windows="16:8"),
    "and reuse every:2 goes on with an old one; give one": dict(travel={"50%": "x"}, reuse="every:2"),
    "and guidance delta:2 goes on with an old one; give one": dict(travel={"50%": "x"}, guidance="delta:2"),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_cannot_be_is_one_sentence(said):
    with pytest.raises(ValueError) as error:
        check_request(small_spec("5b"), "x", Options.from_keywords(num_frames=33, **WRONG[said]))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_requests_know_their_travel():
    spec = small_spec("5b")
    asked = [(), {"50%": "a"}, {"50%": "b"}, {"40%": "a"}]
    requests = [check_request(spec, "x", Options(travel=one)) for one in asked]
    assert len({request.digest() for request in requests}) == len(asked)
    with pytest.raises(ValueError, match="stored programs know one prompt for windows and steps; leave out travel"):
        check_stored(requests[1])


def test_the_plain_step_has_no_windows(small):
    _, model = small("5b")
    assert windows_of(model, check_request(model.spec, "x"), 4) is None


def test_the_command_and_a_prompts_file(small, tmp_path, monkeypatch):
    folder, _ = small("5b")
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text(json.dumps({"prompt": "x", "travel": {"24": "a blue star"}}))
    (job,) = read_jobs(None, Path("prompts.jsonl"), Path("out.mp4"), Options())
    assert job.options.travel == Travel("frames", (24.0,), ("a blue star",))
    words = ["--travel", "50%=a blue star", "--steps", "2"]
    words += ["--model", str(folder), "--out", "out.mp4", "--no-progress"]
    monkeypatch.setattr(sys, "argv", ["cogvx", "generate", "x", *words])
    cli.main()
    assert read_video("out.mp4")[0].shape == (9, 32, 48, 3)
