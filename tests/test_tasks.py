"""Tasks beyond text: inpainting and control models, pictures at frames, masks; what is asked and what comes out."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_files import small_spec, weights, write_small

import cogvx_jax as cx
from cogvx_jax.cli.inputs import Inputs
from cogvx_jax.configs import TransformerConfig, VAEConfig
from cogvx_jax.pipelines import tasks
from cogvx_jax.pipelines.generate import sample, sampler_of
from cogvx_jax.pipelines.noise import SeededNoise
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.request import check_request

GOLDEN = Path(__file__).parent / "golden"


def last(x):
    """(B, C, F, H, W) to channels-last."""
    return np.moveaxis(x, 1, -1)


# The recorded runs of CogVideoX-Fun.


class Recorded:
    """A source of recorded noise; inpainting from noise asks for nothing else."""

    def __init__(self, latents):
        self._latents = latents

    def latents(self, shape):
        assert self._latents.shape == shape
        return self._latents


@pytest.fixture(scope="module")
def recorded_model(tmp_path_factory):
    spec = small_spec("5b")
    spec = dataclasses.replace(
        spec,
        transformer=TransformerConfig(
            layers=2, heads=2, head_dim=16, in_channels=33, text_dim=24, time_dim=16, position="rope"
        ),
        vae=VAEConfig(channels=(4, 4, 4, 4), layers=1, groups=2, scaling_factor=0.7),
        text_encoder=dataclasses.replace(spec.text_encoder, width=24),
    )
    folder = write_small(tmp_path_factory.mktemp("recorded") / "model", spec)
    for seed, part in ((500, "transformer"), (501, "vae")):
        (path,) = (folder / part).glob("*.safetensors")
        shapes = {key: array.shape for key, array in load_file(path).items()}
        assert len(shapes) == {"transformer": 64, "vae": 236}[part]
        save_file({key: np.ascontiguousarray(x) for key, x in weights(shapes, seed).items()}, path)
    return cx.load(folder, components=("transformer", "vae"), dtype="float32")


def test_inpainting_is_that_of_cogvideox_fun(recorded_model):
    golden = np.load(GOLDEN / "fun_inpaint.npz")
    options = Options(
        video=last(golden["video"])[0],
        mask=golden["mask"][0, 0].astype(bool),
        size=(32, 48),
        frames=9,
        steps=3,
        guidance_scale=6.0,
        sampler="ddim",
    )
    request = check_request(recorded_model.spec, "x", options)
    noise = Recorded(np.moveaxis(golden["noise"], 2, -1))
    inputs = tasks.sampling_inputs(recorded_model, request, noise, sampler_of(recorded_model, request))
    expected = np.moveaxis(golden["inpaint_latents"], 2, -1)
    np.testing.assert_allclose(inputs.condition.channels, expected[:1], atol=1e-4)
    text = golden["text"], golden["negative"]
    latents = sample(recorded_model, request, noise=noise, progress=False, text=text)
    result = np.moveaxis(golden["result"], 2, -1)
    assert np.linalg.norm(latents - result) <= 2e-4 * np.linalg.norm(result)


@pytest.mark.parametrize("case", ["first", "first_last", "first_four", "last_four", "box"])
def test_masks_are_resized_as_recorded(case):
    golden = np.load(GOLDEN / "fun_masks.npz")
    mask, expected = golden[f"{case}_mask"][0, 0], golden[f"{case}_latent"][0, 0]
    np.testing.assert_array_equal(tasks.resize_known(mask == 0, expected.shape), expected)
    if case == "first_last":
        assert not expected[-1].any()  # the model sees the last frame by its latents alone


# What a task gives to the loop.

NOISE = SeededNoise(0)
RNG = np.random.default_rng(0)
CLIP = RNG.integers(0, 256, (9, 32, 48, 3), np.uint8)
PICTURES = [np.full((8, 8, 3), grey, np.uint8) for grey in (30, 120, 220)]
LEFT = np.zeros((32, 48), bool)
LEFT[:, :16] = True  # columns 0 and 1 of 6


@pytest.fixture(scope="module")
def fun(small):
    """kind -> a random model of CogVideoX-Fun's kind: the small 5B or 1.5, with more channels."""

    def make(kind):
        _, base = small("1.5-5b" if kind.startswith("1.5") else "5b")
        channels = 8 if kind.endswith("control") else 9
        cfg = dataclasses.replace(base.spec.transformer, in_channels=channels, control=channels == 8)
        params = {name: base.params[name] for name in ("vae", "text_encoder")}
        params["transformer"] = dict(base.params["transformer"])
        patch = params["transformer"]["patch"]
        shape = patch["kernel"].shape[0] // base.spec.transformer.in_channels * channels, cfg.width
        kernel = np.random.default_rng(1).normal(size=shape).astype(np.float32) / np.sqrt(shape[0])
        params["transformer"]["patch"] = patch | {"kernel": jnp.asarray(kernel)}
        return dataclasses.replace(base, spec=dataclasses.replace(base.spec, transformer=cfg), params=params)

    return make


def inputs_of(model, options, prompts=("x",)):
    """What the task of these options gives, and the request."""
    request = check_request(model.spec, list(prompts), Options.from_keywords(**options))
    return tasks.sampling_inputs(model, request, NOISE, sampler_of(model, request)), request


def condition_of(model, **options):
    return np.asarray(inputs_of(model, options)[0].condition.channels)


def latents_of(model, **options):
    return cx.generate(model, "x", output="latents", progress=False, **{"num_inference_steps": 4} | options)


def test_an_inpainting_model_that_knows_nothing_sees_zeros(fun):
    model, white = fun("inpaint"), np.ones((9, 32, 48), bool)
    for options in ({}, dict(video=CLIP), dict(video=CLIP, mask=white), dict(video=CLIP, mask=white, strength=0.5)):
        inputs, request = inputs_of(model, options)
        assert inputs.condition.channels.shape == (1, 3, 4, 6, 5) and not np.any(inputs.condition.channels)
        assert request.strength == options.get("strength", 0.8 if options.keys() == {"video"} else 1.0)
        # From noise, where all of the clip is redrawn.
        from_noise = np.array_equal(inputs.latents, NOISE.latents((1, 3, 4, 6, 4)))
        assert from_noise == (request.strength == 1)


def test_the_mask_is_0_or_the_scale_of_latents(fun):
    model = fun("inpaint")
    first, white = condition_of(model, image=PICTURES[0]), condition_of(model)
    np.testing.assert_allclose(first[0, :, 0, 0, 0], [0.7, 0, 0])
    both = condition_of(model, image=PICTURES[0], last_image=PICTURES[1])
    np.testing.assert_array_equal(both[..., 0], first[..., 0])  # the last frame alone is invisible to the mask
    assert np.abs(both[:, -1, ..., 1:] - first[:, -1, ..., 1:]).max() > 1e-2  # not to the latents
    keys = condition_of(model, image=PICTURES[0], keyframes={8: PICTURES[1]})
    np.testing.assert_allclose(keys[0, :, 0, 0, 0], [0.7, 0, 0.7])
    part = condition_of(model, video=CLIP, mask=LEFT)
    np.testing.assert_allclose(part[0, :, 0, :, 0], [[0, 0, 0.7, 0.7, 0.7, 0.7]] * 3, rtol=1e-6)
    assert np.abs(part[..., 1:] - white[..., 1:]).max() > 1e-2
    grown = condition_of(model, video=CLIP, mask=LEFT, mask_dilation=8)
    np.testing.assert_allclose(grown[0, :, 0, :, 0], [[0, 0, 0, 0.7, 0.7, 0.7]] * 3, rtol=1e-6)


@pytest.mark.full
def test_a_model_of_patches_of_two_frames_gets_the_first_latent_twice(fun, small):
    clip = np.concatenate([CLIP, CLIP])[:17]
    channels = condition_of(fun("1.5-inpaint"), video=clip, mask=LEFT)
    assert channels.shape == (1, 6, 4, 6, 5)
    np.testing.assert_array_equal(channels[:, 0], channels[:, 1])
    images = condition_of(small("1.5-5b-i2v")[1], image=PICTURES[0], last_image=PICTURES[1], keyframes={8: PICTURES[2]})
    assert [bool(np.any(images[0, t])) for t in range(6)] == [True, False, False, True, False, True]


@pytest.mark.full
def test_pictures_are_encoded_alone_and_put_at_their_latents(small):
    _, model = small("5b-i2v")
    first = condition_of(model, image=PICTURES[0])
    both = condition_of(model, image=PICTURES[0], last_image=PICTURES[1])
    assert not first[:, 1:].any() and not both[:, 1].any() and both[:, 2].any()
    with pytest.warns(UserWarning, match="keyframe 3 lies between latents, which stand for 4 frames: it .* 1 to 4"):
        assert condition_of(model, image=PICTURES[0], keyframes={3: PICTURES[1]})[:, 1].any()
    per_video = inputs_of(model, dict(image=PICTURES[:2], last_image=PICTURES[2]), ("x", "y"))[0].condition.channels
    assert np.abs(per_video[0, 0] - per_video[1, 0]).max() > 1e-2
    noisy = condition_of(model, image=PICTURES[0], image_noise=0.5)
    assert np.abs(noisy - first).max() > 1e-2
    assert (
        np.abs(latents_of(model, image=PICTURES[0]) - latents_of(model, image=PICTURES[0], last_image=CLIP[0])).max()
        > 1e-3
    )


def test_noise_leaves_black_pixels_alone():
    request = dataclasses.replace(check_request(small_spec("5b"), "x"), image_noise=0.5)
    pixels = np.array([-1, 0, 1], np.float32).reshape(1, 1, 1, 1, 3)
    noised = tasks._noised(pixels, request, NOISE)
    assert noised[..., 0] == -1 and np.all(noised[..., 1:] != pixels[..., 1:])


def test_control_has_a_strength_and_a_part_of_the_steps(fun):
    model = fun("control")
    full = latents_of(model, control=CLIP)
    assert np.abs(full - latents_of(model, control=255 - CLIP)).max() > 1e-3
    one, none = condition_of(model, control=CLIP), condition_of(model, control=CLIP, control_strength=0)
    np.testing.assert_allclose(condition_of(model, control=CLIP, control_strength=0.5), one / 2, rtol=1e-6)
    assert one.any() and not none.any()
    early = inputs_of(model, dict(control=CLIP, control_end=0.5, num_inference_steps=4))[0].condition
    assert list(early.shown) == [1, 1, 1, 0]  # 0, 1/4 and 2/4, the end included
    assert early.at(1).any() and not early.at(3).any()
    part = latents_of(model, control=CLIP, control_end=0.5)
    assert np.abs(part - full).max() > 1e-4


@pytest.mark.full
@pytest.mark.parametrize("guidance", [None, "delta:2"])
def test_all_steps_as_one_program_give_the_same(fun, small, guidance):
    for model, options in (
        (fun("control"), dict(control=CLIP, control_end=0.5)),
        (fun("inpaint"), dict(video=CLIP, mask=LEFT, strength=0.5, num_inference_steps=8)),
        (small("5b")[1], dict(video=CLIP, mask=LEFT, strength=0.5, num_inference_steps=8)),
    ):
        both = [latents_of(model, guidance=guidance, one_program=one, **options) for one in (False, True)]
        np.testing.assert_allclose(both[1], both[0], atol=1e-5, rtol=1e-5)


def test_a_short_control_video_runs_forth_and_back(fun):
    model = fun("control")
    with pytest.warns(UserWarning, match="the control video has 3 of 9 frames; it runs forth and back"):
        _, request = inputs_of(model, dict(control=CLIP[:3], num_frames=9))
    np.testing.assert_array_equal(request.control, CLIP[[0, 1, 2, 2, 1, 0, 0, 1, 2]])


LONG = pytest.param("1.5-5b", np.concatenate([CLIP, CLIP])[:17], id="1.5-5b", marks=pytest.mark.full)


@pytest.mark.parametrize("kind, clip", [pytest.param("5b", CLIP, id="5b"), LONG])
def test_what_a_mask_keeps_comes_out_as_it_went_in(small, kind, clip):
    _, model = small(kind)
    options = dict(video=clip, strength=0.5, seed=0)
    plain = latents_of(model, **options)
    np.testing.assert_array_equal(latents_of(model, mask=np.ones((32, 48), bool), **options), plain)
    part, clean = latents_of(model, mask=LEFT, **options), inputs_of(model, options | dict(mask=LEFT))[0].known.clean
    np.testing.assert_allclose(part[..., 2:, :], clean[..., 2:, :], atol=1e-6)
    assert np.abs(part[..., :2, :] - clean[..., :2, :]).max() > 0.1
    assert np.abs(part[..., :2, :] - plain[..., :2, :]).max() > 1e-3  # it sees what is kept


def test_a_latent_is_made_where_any_of_its_pixels_is():
    made = np.zeros((9, 16, 16), bool)
    made[6, 3, 12] = True
    found = tasks.latent_mask(made, (3, 2, 2))
    assert np.argwhere(found).tolist() == [[2, 0, 1]]
    grown = tasks.dilate(made, 5)
    assert np.argwhere(grown)[[0, -1]].tolist() == [[6, 0, 7], [6, 8, 15]] and grown.sum() == 9 * 9


def test_inputs_of_many_requests_are_held_once():
    held, spec = Inputs(), spec_of("inpaint")
    asked = [dict(video=CLIP, mask=LEFT), dict(image=PICTURES[0], last_image=PICTURES[0].copy())]
    for options in asked:
        request = check_request(spec, "x", Options.from_keywords(**options))
        again = held.hold(request)
        assert again.digest() == request.digest()
        if again.stills is not None:
            assert again.stills[0].pictures[0] is again.stills[1].pictures[0]
    assert len(held._held) == 3


# What is refused before any work.

REFUSED = [
    (
        "5b",
        dict(last_image=PICTURES[0]),
        "small-5b is text-to-video and takes no last image; use one of the I2V",
    ),
    ("5b", dict(keyframes={0: PICTURES[0]}), "small-5b is text-to-video and takes no keyframes"),
    ("5b", dict(control=CLIP), "takes no control video; use a control model, such as CogVideoX-Fun's Control or Pose"),
    ("5b", dict(video=CLIP, mask_dilation=8), "mask_dilation needs mask=..., which is not given; leave it out"),
    ("inpaint", dict(control_end=0.5), "control_end needs control=..., which is not given"),
    ("5b", dict(video=CLIP, image_noise=0.1), "image_noise needs image=..., which is not given"),
    ("5b", dict(mask=LEFT), "a mask needs the video that it is of"),
    (
        "5b-i2v",
        dict(video=CLIP),
        "small-5b-i2v makes videos from an image and takes no video; use a text-",
    ),
    ("inpaint", dict(image=PICTURES[0], video=CLIP), "give an image or a video, not both"),
    ("inpaint", dict(video=CLIP, mask=LEFT[:16]), "the mask is 1 frame of 16x48, the video 9 frames of 32x48"),
    ("inpaint", dict(video=CLIP, mask=np.stack([LEFT] * 5)), r"the mask is 5 frames of 32x48, the video 9 frames"),
    (
        "inpaint",
        dict(video=CLIP, mask=np.stack([LEFT] * 10)),
        "the mask is more than 9 frames of .* the video 9 frames",
    ),
    ("5b", dict(video=CLIP, mask=np.stack([LEFT] * 12)), "the mask is more than 9 frames of .* the video 9 frames"),
    ("5b", dict(edit=CLIP, mask=np.stack([LEFT] * 12)), "the mask is more than 9 frames of .* the video 9 frames"),
    (
        "5b",
        dict(video=np.concatenate([CLIP, CLIP]), mask=np.stack([LEFT] * 8)),
        "the mask is 8 frames of .* the video more than 9 frames",
    ),
    ("inpaint", dict(keyframes={9: PICTURES[0]}), "keyframe 9 is outside the clip, whose frames are 0 to 8"),
    ("inpaint", dict(keyframes={-1: PICTURES[0]}), "keyframe -1 is outside the clip"),
    ("inpaint", dict(keyframes={8: PICTURES[0]}, last_image=PICTURES[1]), "two pictures for frame 8; give one"),
    ("inpaint", dict(image=PICTURES), "3 images for 1 prompts; give one, or one each"),
    ("control", {}, "small-control makes videos from a control video; give control=..., or use a text-to-video model"),
    ("control", dict(image=PICTURES[0]), "takes no image; use one of the I2V models, or an inpainting one"),
    (
        "control",
        dict(control=CLIP, control_start=0.5, control_end=0.2),
        "no step sees the control video from 0.5",
    ),
    ("control", dict(control=CLIP, num_frames=10), r"the number of frames must be 8N.1 for small-control, got 10"),
]


def spec_of(kind):
    spec = small_spec("5b-i2v" if kind == "5b-i2v" else "5b")
    channels = {"5b": 4, "5b-i2v": 8, "control": 8, "inpaint": 9}[kind]
    cfg = dataclasses.replace(spec.transformer, in_channels=channels, control=kind == "control")
    own = dataclasses.replace(spec.defaults, height=32, width=48, num_frames=9)
    return dataclasses.replace(spec, name=f"small-{kind}", transformer=cfg, defaults=own)


@pytest.mark.parametrize("kind", ["5b", "inpaint"])
@pytest.mark.parametrize("length", [9, 17, 1])
def test_of_a_longer_clip_the_first_frames_and_their_masks_are_used(kind, length):
    masks = np.random.default_rng(0).random((length, *CLIP.shape[1:3])) < 0.5
    request = check_request(spec_of(kind), "x", Options(video=np.concatenate([CLIP, CLIP[:8]]), mask=masks))
    np.testing.assert_array_equal(request.video, CLIP)
    np.testing.assert_array_equal(request.mask, np.broadcast_to(masks[:9], (9, *CLIP.shape[1:3])))


@pytest.mark.parametrize("kind, options, said", REFUSED)
def test_what_cannot_be_is_refused_before_any_work(kind, options, said):
    with pytest.raises(ValueError, match=said):
        check_request(spec_of(kind), "x", Options.from_keywords(**options))
