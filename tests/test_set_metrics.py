"""Measures of features and of sets: flickering, consistency, CLIPScore, the Fréchet distance, MMD and the bootstrap."""

import numpy as np
import pytest

from cogvx_jax.metrics import (
    bootstrap_mean,
    clip_score,
    consistency,
    frechet_distance,
    squared_mmd,
    temporal_flickering,
)
from cogvx_jax.metrics.motion import is_dynamic, is_static, top_radius


def test_flickering_is_that_of_the_package():
    """The number that `vbench/temporal_flickering.py` of version 0.1.5 gives of these frames."""
    frames = np.random.default_rng(0).integers(0, 256, (9, 40, 56, 3), np.uint8)
    assert (
        abs(temporal_flickering(frames) - 0.6642841114717372) < 1e-7
    )  # sums of float32 differ from machine to machine
    assert temporal_flickering(frames[[0, 0, 0]]) == 1
    steps = (np.full((4, 4, 3), value, np.uint8) for value in (10, 61, 10))
    assert temporal_flickering(steps) == (255 - 51) / 255


@pytest.mark.parametrize("frames", [[], [np.zeros((4, 4, 3), np.uint8)]])
def test_flickering_needs_two_frames(frames):
    with pytest.raises(ValueError, match="two frames or more"):
        temporal_flickering(frames)


def test_frames_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match="one size"):
        temporal_flickering([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)])


def covariances(x, y):
    return (np.cov(v, rowvar=False) for v in (x, y))


def features(n, d, seed):
    random = np.random.default_rng(seed)
    return random.normal(size=(n, d)) @ random.normal(size=(d, d)) + random.normal(size=d)


@pytest.mark.parametrize("n, m, d", [(200, 150, 12), (9, 7, 40), (2, 2, 5), (60, 5, 20)])
def test_the_frechet_distance_is_that_of_float64_linear_algebra(n, m, d):
    """The trace of the root is the nuclear norm of the centred features' product: no root of a matrix is in that."""
    x, y = features(n, d, 1), features(m, d, 2)
    s1, s2 = covariances(x, y)
    centred = [v - v.mean(axis=0) for v in (x, y)]
    cross = np.linalg.norm(centred[0] @ centred[1].T, "nuc") / np.sqrt((n - 1) * (m - 1))
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(s1) + np.trace(s2) - 2 * cross
    np.testing.assert_allclose(frechet_distance(x, y), expected, rtol=1e-9)
    np.testing.assert_allclose(frechet_distance(y, x), expected, rtol=1e-9)
    if min(n, m) > d:  # the eigenvalues of S1 S2 itself, which is not symmetric
        roots = np.sqrt(np.linalg.eigvals(s1 @ s2).astype(complex)).real.sum()
        np.testing.assert_allclose(roots, cross, rtol=1e-9)


def test_the_frechet_distance_of_sets_that_differ_by_a_shift_or_a_scale():
    x = features(30, 8, 0)
    assert frechet_distance(x, x) < 1e-9 * np.trace(np.cov(x, rowvar=False))
    np.testing.assert_allclose(frechet_distance(x, x + 2), 8 * 4, rtol=1e-9)
    mean = x.mean(axis=0)
    np.testing.assert_allclose(
        frechet_distance(x, mean + 3 * (x - mean)), 4 * np.trace(np.cov(x, rowvar=False)), rtol=1e-9
    )
    assert np.isclose(frechet_distance(x[:, :1], x[:, :1] + 1), 1)


def test_mmd_by_hand():
    x, y = np.random.default_rng(0).normal(size=(4, 3)), np.random.default_rng(1).normal(size=(5, 3)) + 1

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    own_x = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    own_y = np.mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    between = np.mean([kernel(a, b) for a in x for b in y])
    np.testing.assert_allclose(squared_mmd(x, y), own_x + own_y - 2 * between, rtol=1e-12)


def test_mmd_is_unbiased():
    """Over many draws from one distribution its mean is 0; of the biased one it would be about 0.6."""
    random = np.random.default_rng(0)
    values = [squared_mmd(*random.normal(size=(2, 20, 2))) for _ in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20


@pytest.mark.parametrize("measure", [frechet_distance, squared_mmd])
def test_features_that_cannot_be_compared(measure):
    x = np.zeros((4, 3))
    for y, said in (
        (np.zeros((4, 2)), "of one d"),
        (np.zeros((1, 3)), "two rows"),
        (np.zeros(3), "two rows"),
        (np.zeros((4, 0)), "of one d"),
        (np.where(np.eye(4, 3), np.nan, 0), "not finite, first in row 0"),
    ):
        with pytest.raises(ValueError, match=said):
            measure(x, y)


def test_consistency_by_hand():
    """Angles from the first frame of 0, 60 and 180 degrees: what points away counts 0."""
    frames = np.array([[2.0, 0], [0.5, np.sqrt(0.75)], [-1, 0]])
    np.testing.assert_allclose(consistency(frames), ((0.5 + 0.5) / 2 + 0) / 2, rtol=1e-12)
    np.testing.assert_allclose(consistency(frames[[0, 0, 0]]), 1, rtol=1e-12)


def test_clip_score_by_hand():
    np.testing.assert_allclose(
        clip_score(np.array([[3.0, 0], [-1, 0], [1, 1]]), np.array([5.0, 0])), 100 * (1 + 0.5**0.5) / 3
    )


def test_features_without_a_direction_are_refused():
    with pytest.raises(ValueError, match="in row 1"):
        consistency(np.array([[1.0, 0], [0, 0], [1, 1]]))
    with pytest.raises(ValueError, match="not finite in row 2"):
        consistency(np.array([[1.0, 0], [1, 0], [np.nan, 1]]))
    with pytest.raises(ValueError, match="two frames or more"):
        consistency(np.ones((1, 4)))
    with pytest.raises(ValueError, match="one length"):
        clip_score(np.ones((2, 4)), np.ones(3))


def test_the_interval_is_that_of_the_mean():
    """Of many independent values it is the mean ± 1.96 standard errors."""
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = bootstrap_mean(values, range(400))
    error = values.std() / 20
    np.testing.assert_allclose(
        [found.low, found.high], [values.mean() - 1.96 * error, values.mean() + 1.96 * error], atol=0.2 * error
    )
    assert found.mean == values.mean() and found.groups == 400
    assert bootstrap_mean(values, range(400)) == found


def test_groups_are_drawn_whole():
    """Five equal videos of each prompt are no more evidence than one."""
    values = np.random.default_rng(0).normal(size=50)
    once, often = (
        bootstrap_mean(values, range(50)),
        bootstrap_mean(np.repeat(values, 5), np.repeat(range(50), 5).tolist()),
    )
    np.testing.assert_allclose(often[:3], once[:3], rtol=1e-12)
    apart = bootstrap_mean(np.repeat(values, 5), range(250))
    assert apart.high - apart.low < 0.6 * (once.high - once.low)


def test_weights_count():
    found = bootstrap_mean([1.0, 0.0], ["a", "b"], [3, 1])
    assert found.mean == 0.75 and (found.low, found.high) == (0, 1)
    alone = bootstrap_mean([0.25, 0.75], ["a", "a"])
    assert (alone.low, alone.high, alone.groups) == (0.5, 0.5, 1)


@pytest.mark.parametrize("values, groups", [([], []), ([1.0], []), ([float("nan")], ["a"])])
def test_what_has_no_interval(values, groups):
    with pytest.raises(ValueError):
        bootstrap_mean(values, groups)


def test_the_rules_of_motion():
    """At 512 pixels the dynamic degree asks for 12 pixels in 2 of 8 frames, the static filter for 6 in more than 1."""
    assert is_dynamic([12.1, 0, 12.1], 512, 8) and not is_dynamic([12.1, 11.9, 11.9], 512, 8)
    assert is_static([6.1, 5.9, 5.9], [11.9, 0], 512, 8) and not is_static([6.1, 6.1], [0, 0], 512, 8)
    assert not is_static([0, 0], [0, 12.1], 512, 8)
    assert not is_dynamic([], 512, 1)


def test_the_longest_radii():
    flow = np.zeros((10, 10, 2))
    flow[0, :5] = (3, 4)
    assert top_radius(flow, 0.05) == 5 and np.isclose(top_radius(flow, 0.1), 2.5)
    assert top_radius(flow[:2, :2], 0.02) == 5  # one pixel at least
