"""The inpainting model of the package: what it is given comes back, and what was not trained is that of `tiny`."""

import numpy as np
from flax import traverse_util

import cogvx_jax as cx
from cogvx_jax.scripts.inpaint_tiny import NAME, PARTS
from cogvx_jax.tiny import shapes
from cogvx_jax.train import parts


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean(np.square(a / 255.0 - b / 255.0))))


def test_first_and_last_frames_come_back():
    scene = shapes.split()[1][3]
    clip = shapes.draw(scene, np.random.default_rng(0))
    given = {"image": clip[0], "last_image": clip[-1]}
    made = cx.generate(cx.load(NAME), str(scene), num_inference_steps=5, progress=False, **given).frames[0]
    assert psnr(made[[0, -1]], clip[[0, -1]]) > 24
    assert psnr(clip[0], clip[-1]) < 20  # so that one picture for both would fail


def test_what_was_not_trained_is_that_of_tiny():
    own, base = (cx.load(name).params for name in (NAME, "tiny"))
    assert all(np.array_equal(a, b) for a, b in zip(*(_leaves(p["vae"]) for p in (own, base)), strict=True))
    kept = [traverse_util.flatten_dict(parts.split(p["transformer"], PARTS)[1]) for p in (own, base)]
    assert kept[0].keys() == kept[1].keys() and len(kept[0]) > 5
    assert all(np.array_equal(kept[0][name], kept[1][name]) for name in kept[0])


def _leaves(params) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in traverse_util.flatten_dict(params).values()]
