"""Whole pipelines against diffusers': the same folder, the same request, the same noise; in float32.

The models are small and random, one of each kind that was released; see `tests/golden/record.py`.
"""

import importlib.util
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import numpy as np  # noqa: E402
import PIL.Image  # noqa: E402

import cogvx_jax  # noqa: E402
from cogvx_jax.pipelines.model import TINY  # noqa: E402

_spec = importlib.util.spec_from_file_location("record", Path(__file__).parents[1] / "golden" / "record.py")
record = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(record)

PROMPTS = record.PROMPTS
LATENTS = 2e-4  # largest difference, relative to the largest number
PIXELS = 0.999  # of all, within one step of 255
# Few sizes, as each is compiled anew. 1.0 centres the box of its positions in the native 4x6 patches.
NATIVE, SMALL = (64, 96), (32, 48)  # the whole box
TALL, WIDE = (64, 48), (32, 96)  # columns, rows of it


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """kind -> (pipeline of the reference, our model), made when first asked for."""
    made = {}

    def get(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp("models") / kind
            made[kind] = record.build(kind, folder), cogvx_jax.load(folder, dtype="float32")
        return made[kind]

    return get


def compare(pipe, model, prompt, size, *, sampler, make=None, theirs, ours, text_length=record.TEXT_LENGTH, **common):
    """Runs both with the same noise, compares latents and frames, and returns our frames (B, F, H, W, 3).

    Args:
      make: class of the reference's pipeline, where it is not `pipe`'s.
      theirs, ours, common: arguments of one of the two, and of both.
    """
    common |= dict(height=size[0], width=size[1], negative_prompt="")
    last = {}

    def keep(_, step, t, tensors):
        last.update(tensors)
        return {}

    prompts = prompt if isinstance(prompt, list) else [prompt]
    with record.recorded_noise() as noise:
        frames = record.switch(pipe, sampler, make)(
            prompt=prompt,
            generator=torch.Generator().manual_seed(1),
            max_sequence_length=text_length,
            callback_on_step_end=keep,
            output_type="np",
            **common | theirs | dict(negative_prompt=[""] * len(prompts)),
        ).frames
    latents = np.moveaxis(last["latents"].numpy(), 2, -1)
    common |= ours | dict(sampler=sampler, noise=noise, progress=False)
    our_latents = cogvx_jax.generate(model, prompt, output="latents", **common)
    assert noise.asked == list(noise.drawn)  # as much noise, in the order of the reference
    our_frames = cogvx_jax.generate(model, prompt, **common).frames

    assert our_latents.shape == latents.shape
    assert np.isfinite(our_latents).all()
    difference = np.abs(our_latents - latents).max() / np.abs(latents).max()
    frames = (frames * 255).round().astype(np.uint8)
    assert our_frames.shape == frames.shape
    within = np.mean(np.abs(our_frames.astype(int) - frames) <= 1)
    inside = np.mean((frames > 0) & (frames < 255))
    print(f"\nlatents {difference:.1e}, pixels {within:.5f}, of them not clipped {inside:.2f}, {frames.shape}")
    assert difference <= LATENTS, f"{difference:.2e}"
    assert within >= PIXELS, f"{within:.5f}"
    assert inside > 0.5  # else the comparison would be of black and white
    return our_frames


T2V = [  # kind, sampler, frames, pixels, steps, others
    ("2b", "ddim", 9, NATIVE, 5, {}),
    ("2b", "ddim", 9, SMALL, 4, dict(guidance_scale=1.0)),
    ("5b", "dpm", 9, NATIVE, 5, dict(use_dynamic_cfg=True)),
    ("1.5", "ddim", 17, SMALL, 5, {}),  # 5 latent frames and one of padding
]
MORE_T2V = [
    ("1.5", "dpm", 49, TALL, 4, dict(use_dynamic_cfg=True)),  # 13 and one
    ("2b", "dpm", 17, TALL, 4, {}),
    ("2b", "dpm", 49, SMALL, 5, dict(use_dynamic_cfg=True)),
    ("5b", "ddim", 17, TALL, 5, dict(use_dynamic_cfg=True)),
    ("5b", "ddim", 49, WIDE, 4, {}),
    ("5b", "dpm", 17, SMALL, 4, {}),
]


@pytest.mark.parametrize(
    "kind, sampler, frames, size, steps, others",
    [*T2V, *(pytest.param(*row, marks=pytest.mark.full) for row in MORE_T2V)],
)
def test_text_to_video(models, kind, sampler, frames, size, steps, others):
    both = dict(num_frames=frames, num_inference_steps=steps, guidance_scale=6.0) | others
    video = compare(*models(kind), PROMPTS[0], size, sampler=sampler, theirs={}, ours={}, **both)
    assert video.shape == (1, frames, *size, 3)


@pytest.mark.parametrize("kind, sampler, frames", [("5b", "dpm", 9), ("1.5", "ddim", 17)])
def test_two_prompts(models, kind, sampler, frames):
    both = dict(num_frames=frames, num_inference_steps=4, guidance_scale=6.0)
    video = compare(*models(kind), PROMPTS, SMALL, sampler=sampler, theirs={}, ours={}, **both)
    assert np.abs(video[0].astype(int) - video[1]).mean() > 2


def picture(seed, height, width):
    """Smooth colours, so that resizing it is no lottery."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return PIL.Image.fromarray(small).resize((width, height), PIL.Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "kind, sampler, frames, size",
    [
        ("5b-i2v", "ddim", 9, NATIVE),  # the one size its learned positions are for
        ("5b-i2v", "dpm", 9, NATIVE),
        ("1.5-i2v", "ddim", 17, SMALL),
        pytest.param("1.5-i2v", "dpm", 33, TALL, marks=pytest.mark.full),
    ],
)
def test_image_to_video(models, kind, sampler, frames, size):
    image = picture(0, 70, 90)
    both = dict(num_frames=frames, num_inference_steps=5, guidance_scale=6.0, image=image)
    video = compare(*models(kind), PROMPTS[0], size, sampler=sampler, theirs={}, ours={}, **both)
    assert video.shape == (1, frames, *size, 3)


def test_two_images(models):
    images = [picture(i, *NATIVE) for i in range(2)]
    both = dict(num_frames=9, num_inference_steps=4, guidance_scale=6.0, image=images)
    compare(*models("5b-i2v"), PROMPTS, NATIVE, sampler="dpm", theirs={}, ours={}, **both)


@pytest.mark.parametrize(
    "kind, sampler, frames, made, size, steps, strength, dynamic",
    [
        ("2b", "ddim", 9, 9, NATIVE, 5, 0.8, False),
        pytest.param("2b", "dpm", 17, 17, SMALL, 10, 0.5, False, marks=pytest.mark.full),
        pytest.param("5b", "dpm", 9, 9, TALL, 5, 0.8, True, marks=pytest.mark.full),
        pytest.param("5b", "ddim", 17, 17, SMALL, 4, 1.0, False, marks=pytest.mark.full),
        # 4 latent frames need no padding, and an even number of them makes four pixel frames each.
        ("1.5", "dpm", 13, 16, SMALL, 5, 0.8, False),
        pytest.param("1.5", "ddim", 16, 16, SMALL, 5, 0.6, True, marks=pytest.mark.full),
    ],
)
def test_video_to_video(models, kind, sampler, frames, made, size, steps, strength, dynamic):
    first, last = (np.asarray(picture(i, 70, 90), np.float32) for i in (2, 3))
    clip = np.stack([first + (last - first) * x for x in np.linspace(0, 1, frames)]).astype(np.uint8)
    both = dict(num_inference_steps=steps, guidance_scale=6.0, strength=strength, use_dynamic_cfg=dynamic)
    video = compare(
        *models(kind),
        PROMPTS[0],
        size,
        sampler=sampler,
        make=diffusers.CogVideoXVideoToVideoPipeline,
        theirs=dict(video=[PIL.Image.fromarray(frame) for frame in clip]),
        ours=dict(video=clip, num_frames=frames),
        **both,
    )
    assert video.shape == (1, made, *size, 3)


@pytest.mark.parametrize(
    "kind, frames, made, size, steps, dynamic",
    [
        ("2b-control", 9, 9, NATIVE, 4, False),  # at other sizes ours resizes the positions, as CogVideoX-Fun does
        ("5b-control", 17, 17, TALL, 5, True),
        ("1.5-control", 13, 16, SMALL, 4, False),  # 4 latent frames, as the reference takes no padding
    ],
)
def test_control(models, kind, frames, made, size, steps, dynamic):
    first, last = (np.asarray(picture(i, 70, 90), np.float32) for i in (4, 5))
    clip = np.stack([first + (last - first) * x for x in np.linspace(0, 1, frames)]).astype(np.uint8)
    video = compare(
        *models(kind),
        PROMPTS[0],
        size,
        sampler="ddim",
        theirs=dict(control_video=[PIL.Image.fromarray(frame) for frame in clip]),
        ours=dict(control=clip, num_frames=frames),
        num_inference_steps=steps,
        guidance_scale=6.0,
        use_dynamic_cfg=dynamic,
    )
    assert video.shape == (1, made, *size, 3)


@pytest.mark.skipif(not (TINY / "model_index.json").exists(), reason="the tiny model is not in this tree")
def test_tiny_is_the_same_in_diffusers():
    pipe, model = diffusers.CogVideoXPipeline.from_pretrained(TINY), cogvx_jax.load("tiny", dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    own = model.spec.defaults
    both = dict(
        num_frames=own.num_frames, num_inference_steps=own.num_inference_steps, guidance_scale=own.guidance_scale
    )
    size = (own.height, own.width)
    # 226 is the reference's default text length.
    compare(pipe, model, PROMPTS[0], size, sampler=own.sampler, theirs={}, ours={}, text_length=226, **both)
