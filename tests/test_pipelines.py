"""Whole generations with small random models of all five kinds: what comes out, and what is refused."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cogvx_jax as cx
from cogvx_jax.configs import Compute
from cogvx_jax.convert import read_spec, write_configs
from cogvx_jax.diffusion.samplers import SAMPLERS
from cogvx_jax.pipelines.latents import decode_frames
from cogvx_jax.pipelines.model import load_spec
from cogvx_jax.pipelines.noise import SeededNoise
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.request import check_request
from cogvx_jax.planning import lower


@pytest.fixture(scope="module")
def model(small):
    return small("5b")[1]


IMAGE = np.tile(np.arange(48, dtype=np.uint8)[None, :, None] * 5, (32, 1, 3))


@pytest.mark.parametrize(
    "kind", ["5b", *(pytest.param(k, marks=pytest.mark.full) for k in ("2b", "5b-i2v", "1.5-5b", "1.5-5b-i2v"))]
)
def test_every_kind_generates(small, kind):
    _, model = small(kind)
    image = IMAGE if model.spec.kind == "i2v" else None
    video = cx.generate(model, "a red circle", image=image, progress=False)
    frames = model.spec.defaults.num_frames
    assert video.frames.shape == (1, frames, 32, 48, 3) and video.frames.dtype == np.uint8
    assert video.fps == model.spec.defaults.fps
    latents = cx.generate(model, "a red circle", image=image, output="latents", progress=False)
    # With the padding frame that 1.5 needs.
    assert latents.shape == (1, {9: 3, 17: 6}[frames], 4, 6, 4) and latents.dtype == np.float32
    assert np.isfinite(latents).all()


def test_the_image_changes_the_video(small):
    _, model = small("1.5-5b-i2v")
    one = cx.generate(model, "x", image=IMAGE, output="latents", progress=False)
    other = cx.generate(model, "x", image=255 - IMAGE, output="latents", progress=False)
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize(
    "sampler", [pytest.param(name, marks=() if name == "dpm" else pytest.mark.full) for name in SAMPLERS]
)
def test_noise_is_a_function_of_seed_and_video_alone(model, sampler):
    def run(prompts, seed, **options):
        return cx.generate(model, prompts, seed=seed, sampler=sampler, output="latents", progress=False, **options)

    both = run(["a red circle", "a blue star"], 3)
    np.testing.assert_allclose(both[:1], run("a red circle", 3), atol=2e-5)
    assert np.array_equal(run("a red circle", 3), run("a red circle", 3))
    assert np.abs(run("a red circle", 4) - both[:1]).max() > 0.1
    given = run("a red circle", 3, latents=np.asarray(SeededNoise(3).latents(both[:1].shape)))
    np.testing.assert_allclose(given, both[:1], atol=2e-5)


def test_guidance_and_both_unconditional_variants(model):
    def run(**options):
        return cx.generate(model, "a red circle", output="latents", progress=False, **options)

    plain, zeros, off = run(), run(negative_prompt=None), run(guidance_scale=1.0)
    assert np.abs(plain - zeros).max() > 1e-4
    assert np.abs(plain - off).max() > 1e-4
    # A guidance of 1 is the conditional prediction alone.
    almost = run(guidance_scale=1.0 + 1e-6)
    np.testing.assert_allclose(off, almost, atol=1e-3)


@pytest.mark.parametrize(
    "kind, frames", [("5b", 9), *(pytest.param("1.5-5b", n, marks=pytest.mark.full) for n in (17, 16))]
)
def test_video_to_video(small, kind, frames):
    _, model = small(kind)
    clip = np.random.default_rng(0).integers(0, 256, (20, 32, 48, 3), np.uint8)
    weak = cx.generate(model, "x", video=clip, strength=0.25, num_frames=frames, progress=False)
    assert weak.frames.shape == (1, frames, 32, 48, 3)
    with pytest.raises(ValueError, match="strength"):
        cx.generate(model, "x", video=clip, strength=0.1, progress=False)


def test_streaming_gives_the_frames_of_the_whole(model):
    latents = cx.generate(model, "x", seed=1, output="latents", progress=False)
    video = cx.generate(model, "x", seed=1, progress=False)
    parts = list(decode_frames(model, latents))
    assert [len(p) for p in parts] == [9]
    assert np.array_equal(np.concatenate(parts), video.frames[0])


def test_dtype(small):
    folder, model = small("5b")
    assert model.compute.dtype == "float32"
    half = cx.load(folder, dtype="bfloat16")
    assert half.spec == model.spec == read_spec(folder) and half.compute.dtype == "bfloat16"
    assert half.params["transformer"]["patch"]["kernel"].dtype == jnp.bfloat16
    assert half.params["vae"]["decoder"]["conv_in"]["kernel"].dtype == jnp.float32
    full = cx.generate(model, "x", output="latents", progress=False)
    near = cx.generate(half, "x", output="latents", progress=False)
    assert 0 < np.abs(full - near).max() < 0.5
    with pytest.raises(ValueError, match="trained in bfloat16 .* use bfloat16 or float32"):
        cx.load(folder, dtype="float16")
    with pytest.raises(ValueError, match="unknown dtype 'int8'"):
        cx.load(folder, dtype="int8")


def test_a_new_sampler_is_a_row_of_the_table(monkeypatch, tmp_path):
    """A checkpoint's defaults, requests and programs know it, and whether it draws noise."""
    monkeypatch.setitem(SAMPLERS, "new", dataclasses.replace(SAMPLERS["dpm"]))
    spec = dataclasses.replace(SPEC_2B, defaults=dataclasses.replace(SPEC_2B.defaults, sampler="new"))
    write_configs(spec, tmp_path)
    assert read_spec(tmp_path).defaults.sampler == check_request(spec, "x").sampler == "new"
    assert lower._method(spec, None).stochastic and not lower._method(spec, "ddim").stochastic


def test_the_text_encoder_and_the_weights_of_the_vae_keep_float32_where_they_need_it():
    compute = Compute(dtype="float16", remat="block", logit_bound=9.0)
    types = {c: (compute.of(c).dtype, compute.parameter_dtype(c)) for c in ("transformer", "vae", "text_encoder")}
    assert types == {
        "transformer": ("float16", "float16"),
        "vae": ("float16", "float32"),
        "text_encoder": ("float32", "float32"),  # T5 overflows in float16
    }
    assert compute.of("transformer") == compute and compute.of("vae") == Compute(dtype="float16")


def test_a_decode_that_cannot_fit_is_refused_before_sampling(model, monkeypatch):
    from cogvx_jax.pipelines import generate, memory

    needed = memory.decode_bytes(model, (1, 3, 4, 6, 4))
    pixels = 9 * 32 * 48 * 3 * 4
    assert pixels < needed < 100 * pixels
    monkeypatch.setattr(generate, "denoise", None)  # not reached
    model = dataclasses.replace(model, memory=dataclasses.replace(model.memory, strips=(1,)))
    monkeypatch.setattr(memory, "free_bytes", lambda: needed - 1)
    with pytest.raises(ValueError, match="decoding 32x48 takes .* beside the weights, the device has .* --tiling"):
        cx.generate(model, "x", progress=False)
    monkeypatch.setattr(memory, "free_bytes", lambda: needed)
    memory.check_decode(model, (1, 3, 4, 6, 4))


def test_strips_are_taken_where_whole_frames_do_not_fit(model, monkeypatch):
    from cogvx_jax.pipelines import memory

    needs, tried = {1: 100, 16: 60, 32: 30, 64: 20}, []

    def decode_bytes(model, shape, padding):
        tried.append(model.compute.strips)
        if model.compute.strips == 1:
            raise MemoryError("Ran out of memory")
        return needs[model.compute.strips]

    monkeypatch.setattr(memory, "decode_bytes", decode_bytes)
    shape = (1, 3, 4, 6, 4)
    assert memory.check_decode(model, shape).compute.strips == 1 and not tried  # a CPU does not say
    assert memory.check_decode(model, shape, strips=7).vae.compute.strips == 7
    monkeypatch.setattr(memory, "free_bytes", lambda: 40)
    assert memory.check_decode(model, shape).compute.strips == 32 and tried == [1, 16, 32]
    monkeypatch.setattr(memory, "free_bytes", lambda: 10)
    with pytest.raises(ValueError, match="decoding 32x48 takes .* beside the weights in 64 strips of rows, the device"):
        memory.check_decode(model, shape)
    with pytest.raises(ValueError, match="does not fit the device: Ran out of memory; use more --strips, or "):
        memory.check_decode(model, shape, strips=1)


def test_a_long_prompt_warns_of_what_is_cut(model):
    with pytest.warns(UserWarning, match="purple background"):
        cx.generate(model, "a red circle " * 11 + "on a purple background", output="latents", progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        cx.generate(model, "a red circle", output="latents", progress=False)


SPEC_2B, SPEC_15 = load_spec("2b"), load_spec("1.5-5b")
REFUSED = {
    "height must be a positive multiple of 16, got 100; nearest: 96 or 112": dict(height=100),
    "width must be a positive multiple of 16, got 0; nearest: 16": dict(width=0),
    "the number of frames must be 8N.1 for CogVideoX-2b, got 50; nearest: 49 or 57": dict(num_frames=50),
    "the number of frames must be 8N.1 for CogVideoX-2b, got 0; nearest: 1 or 9": dict(num_frames=0),
    "takes no image": dict(image=IMAGE),
    "unknown sampler 'pndm'; the known ones are ddim, dpm, euler, ": dict(sampler="pndm"),
    "the number of steps must be 1 to 1000, got 0": dict(num_inference_steps=0),
    "guidance_scale must be a finite number": dict(guidance_scale=float("nan")),
    r"latents must be \(B, T, h, w, C\) = \(1, 13, 60, 90, 16\)": dict(latents=np.zeros((1, 16, 13, 60, 90))),
    "2 negative prompts for 1 prompts": dict(negative_prompt=["a", "b"]),
    "an image or a video, not both": dict(image=IMAGE, video=np.zeros((9, 32, 48, 3), np.uint8)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_requests_are_refused_before_any_work(message):
    with pytest.raises(ValueError, match=message):
        check_request(SPEC_2B, "a panda", Options.from_keywords(**REFUSED[message]))


def test_a_checked_request_is_made_as_it_is(model):
    request = check_request(model.spec, "x", Options(seed=1))
    latents = cx.generate(model, request, output="latents", progress=False)
    assert np.array_equal(latents, cx.generate(model, "x", seed=1, output="latents", progress=False))
    with pytest.raises(TypeError, match="a request has its options already; got seed, too"):
        cx.generate(model, request, seed=1)
    with pytest.raises(ValueError, match="was checked for CogVideoX-2b, whose videos are not like those of small-5b"):
        cx.generate(model, check_request(SPEC_2B, "x"))
    with pytest.raises(TypeError, match="unknown option 'colour'"):
        cx.generate(model, "x", colour=1)
    with pytest.raises(ValueError, match="output must be 'video' or 'latents', got 'gif'"):
        cx.generate(model, "x", output="gif")


def test_refusals_of_the_other_models():
    with pytest.raises(ValueError, match="16N.1 .* got 49..*nearest: 33 or 49|16N.1.*got 57; nearest: 49 or 65"):
        check_request(SPEC_15, "a panda", Options(frames=57))
    with pytest.raises(ValueError, match="makes videos from an image"):
        check_request(load_spec("5b-i2v"), "a panda")
    with pytest.raises(ValueError, match="480x720 only"):
        check_request(load_spec("5b-i2v"), "a panda", Options(image=IMAGE, size=(None, 480)))
    with pytest.raises(ValueError, match="49 frames only"):
        check_request(load_spec("5b-i2v"), "a panda", Options(image=IMAGE, frames=41))
    with pytest.raises(ValueError, match="at least one string"):
        check_request(SPEC_2B, [])


def test_what_is_omitted_is_the_models_own():
    request = check_request(SPEC_15, "a panda")
    assert (request.height, request.width, request.frames) == (768, 1360, 81)
    assert (request.steps, request.guidance, request.sampler) == (50, 6.0, "dpm")
    assert request.batch_shape == (1, 22, 96, 170, 16) and request.padding == 1
    request = check_request(SPEC_2B, ["a panda", "a cat"])
    assert request.batch_shape == (2, 13, 60, 90, 16) and request.sampler == "ddim"
    any_aspect = check_request(load_spec("1.5-5b-i2v"), "a panda", Options(image=IMAGE, size="1024x768"))
    assert any_aspect.shape[1:3] == (128, 96)


def test_unknown_models_are_named():
    with pytest.raises(ValueError, match="unknown model '3b'; known are tiny, tiny-inp, 2b, 5b, 5b-i2v, 1.5-5b"):
        cx.load("3b")
    with pytest.raises(FileNotFoundError, match="no folder ./nowhere"):
        cx.load("./nowhere")


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model_index.json"):
        cx.load(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(small, tmp_path):
    import json
    import shutil

    folder, _ = small("5b")
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"vocab_size": 8}))
    with pytest.raises(ValueError):
        cx.load(tmp_path / "model")


def test_hub_ids_resolve_through_the_hub_client(small, monkeypatch):
    import huggingface_hub

    folder, _ = small("5b")
    asked = {}

    def snapshot(repo, *, allow_patterns):
        asked.update(repo=repo, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert cx.load("zai-org/CogVideoX-5b").spec == cx.load(folder).spec
    assert asked["repo"] == "zai-org/CogVideoX-5b" and "vae/*.safetensors" in asked["patterns"]

    def offline(repo, *, allow_patterns):
        raise OSError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(OSError, match="could not get zai-org/CogVideoX-5b from the hub .*give a folder"):
        cx.load("5b")


@pytest.mark.full
def test_the_transformer_is_differentiable_from_outside(model):
    def energy(latents):
        v = model.transformer.apply(
            {"params": model.params["transformer"]}, latents, jnp.ones((1, 24, 16)), jnp.array([500])
        )
        return jnp.sum(jnp.square(v))

    gradient = jax.grad(energy)(jnp.ones((1, 3, 4, 6, 4)))
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_spec_fields_are_frozen(model):
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.spec.name = "other"
