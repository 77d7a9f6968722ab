"""The judge of drawn clips reads what shapes.draw drew, also after what a small model does to it."""

import dataclasses

import numpy as np
import pytest

from cogvx_jax.tiny.judge import judge, score
from cogvx_jax.tiny.shapes import RING, Scene, draw, scenes

ALL = {"colour": True, "shape": True, "motion": True, "background": True}


def accuracy(cases, change=lambda clip, rng: clip):
    """The share of scenes read wholly right, each drawn once."""
    right = 0
    for i, scene in enumerate(cases):
        rng = np.random.default_rng((7, i))
        right += judge(change(draw(scene, rng), rng)) == scene
    return right / len(cases)


def subset(count):
    everything = scenes()
    return [everything[i] for i in np.random.default_rng(0).permutation(len(everything))[:count]]


def blurred(clip, sigma):
    """A Gaussian blur of each frame, as float32."""
    kernel = np.exp(-0.5 * (np.arange(-4, 5) / sigma) ** 2)
    kernel /= kernel.sum()
    clip = clip.astype(np.float32)
    for axis in (1, 2):
        pad = [(4, 4) if a == axis else (0, 0) for a in range(4)]
        wide, n = np.pad(clip, pad, mode="edge"), clip.shape[axis]
        clip = sum(k * np.take(wide, range(i, i + n), axis=axis) for i, k in enumerate(kernel))
    return clip


def degraded(clip, rng):
    """Blurred, noisy and its colours shifted."""
    clip = blurred(clip, rng.uniform(1, 1.5)) + rng.uniform(-15, 15, 3) + rng.normal(0, 8, clip.shape)
    return np.clip(np.round(clip), 0, 255).astype(np.uint8)


def clip_of(scene, seed=0):
    return draw(scene, np.random.default_rng(seed))


EVERYTHING = pytest.param(len(scenes()), marks=pytest.mark.full)  # the quick tests draw a part of the scenes


@pytest.mark.parametrize("count", [100, EVERYTHING])
def test_reads_drawn_clips(count):
    assert accuracy(subset(count)) >= 0.99


@pytest.mark.parametrize("count", [pytest.param(n, marks=pytest.mark.full) for n in (60, 300)])
def test_reads_degraded_clips(count):
    assert accuracy(subset(count), degraded) >= 0.97


@pytest.mark.parametrize("frames, size", [(9, 64), (17, 32), pytest.param(33, 96, marks=pytest.mark.full)])
def test_reads_other_sizes(frames, size):
    cases = subset(34)
    right = [judge(draw(s, np.random.default_rng(i), size=size, frames=frames)) == s for i, s in enumerate(cases)]
    assert np.mean(right) >= 0.97


@pytest.mark.parametrize(
    "motion, reverse",
    [
        ("moves left", "moves right"),
        ("moves up", "moves down"),
        ("grows", "shrinks"),
        ("spins", "spins"),
        ("stays still", "stays still"),
    ],
)
def test_reversed_clip(motion, reverse):
    scene = Scene("red", "square", motion, "white")
    clip = clip_of(scene)
    assert score(clip, scene) == ALL
    assert judge(clip[::-1]) == dataclasses.replace(scene, motion=reverse)
    assert score(clip[::-1], scene) == ALL | {"motion": motion == reverse}


@pytest.mark.parametrize(
    "name, value", [("colour", "blue"), ("shape", "circle"), ("motion", "grows"), ("background", "black")]
)
def test_one_wrong_property(name, value):
    scene = Scene("orange", "star", "moves up", "purple")
    other = dataclasses.replace(scene, **{name: value})
    assert score(clip_of(other), scene) == ALL | {name: False}


def test_slight_motion_is_still():
    """A fifth of a drawn turn, drift or growth is no motion; the threshold is half of the least one."""
    scene = Scene("green", "triangle", "spins", "black")
    for motion in ("spins", "moves left", "grows"):
        clip = clip_of(dataclasses.replace(scene, motion=motion))
        some = clip[np.linspace(6, 9, 17).round().astype(int)]  # 3 of the 16 steps, slowed down
        assert judge(some).motion == "stays still"


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("noise", [0, 8])
def test_blank_clip_shows_nothing(value, noise):
    clip = value + np.random.default_rng(0).normal(0, noise, (17, 64, 64, 3))
    clip = np.clip(clip, 0, 255).astype(np.uint8)
    scene = judge(clip)
    assert isinstance(scene, Scene)
    assert score(clip, scene) == {"colour": False, "shape": False, "motion": False, "background": True}


def test_noise_does_not_raise():
    clip = np.random.default_rng(0).integers(0, 256, (17, 64, 64, 3), dtype=np.uint8)
    assert isinstance(judge(clip), Scene)


def test_shape_that_vanishes_scores_only_the_background():
    scene = Scene("yellow", "circle", "stays still", "blue")
    clip = clip_of(scene)
    clip[8:] = clip[0, 0, 0]
    assert score(clip, scene) == {"colour": False, "shape": False, "motion": False, "background": True}


@pytest.mark.full
def test_reads_rings_which_no_scene_of_the_grammar_shows():
    rings = scenes([RING])
    assert len(rings) == 8 * 7 * 7 and not set(rings) & set(scenes())
    assert accuracy(rings) >= 0.99 and accuracy(rings[::4], degraded) >= 0.97
    for motion in {scene.motion for scene in rings}:
        scene = Scene("red", RING, motion, "white")
        assert score(clip_of(dataclasses.replace(scene, shape="circle")), scene) == ALL | {"shape": False}
