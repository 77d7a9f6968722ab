"""PSNR, SSIM and flicker of cases that can be done by hand; `tests/parity/test_metrics.py` has scikit-image."""

import jax
import numpy as np
import pytest

from cogvx_jax import metrics

SHAPE = (2, 3, 16, 12, 3)


def compiled(measure, *static):
    """One program for each shape, in place of one for each operation; gives NumPy's arrays."""
    run = jax.jit(measure, static_argnames=("peak", *static))
    return lambda *videos, **how: np.asarray(run(*videos, **how))


psnr, ssim, flicker = compiled(metrics.psnr), compiled(metrics.ssim, "window"), compiled(metrics.flicker)


def video(seed=0):
    return np.random.default_rng(seed).uniform(size=SHAPE).astype(np.float32)


def test_psnr_of_a_constant_error():
    x = np.zeros(SHAPE, np.float32)
    y = x.copy()
    y[0, 1] = 0.1  # 20 dB below 1
    y[1, 2, :, :6] = 0.1  # half of the pixels: half of the power
    found = psnr(x, y)
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found[0, 1], 20, rtol=1e-5)
    np.testing.assert_allclose(found[1, 2], 20 + 10 * np.log10(2), rtol=1e-5)
    assert np.isposinf(found[0, 0]) and np.isposinf(found[1, 1])


@pytest.mark.parametrize("window", ["gaussian", pytest.param("uniform", marks=pytest.mark.full)])
def test_ssim_of_flat_frames(window):
    """Without variance only the means count: (2 m n + c) / (m m + n n + c)."""
    x, y = np.full(SHAPE, 0.2, np.float32), np.full(SHAPE, 0.6, np.float32)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    np.testing.assert_allclose(ssim(x, y, window=window), np.full((2, 3), expected), rtol=1e-4)


def test_ssim_of_opposites():
    """The uniform window, over a 7 x 7 checkerboard and its negative: equal variances, opposite covariance."""
    board = np.indices((7, 7)).sum(0) % 2  # 25 zeros, 24 ones
    x = np.broadcast_to(board[None, None, :, :, None], (1, 1, 7, 7, 3)).astype(np.float32)
    mean = 24 / 49
    variance = mean * (1 - mean) * 49 / 48
    luminance = (2 * mean * (1 - mean) + 1e-4) / (mean**2 + (1 - mean) ** 2 + 1e-4)
    expected = luminance * (9e-4 - 2 * variance) / (9e-4 + 2 * variance)
    np.testing.assert_allclose(ssim(x, 1 - x, window="uniform"), [[expected]], rtol=1e-5)


@pytest.mark.parametrize("window", ["gaussian", "uniform"])
def test_ssim_is_one_for_the_same_and_drops_with_noise(window):
    x, noise = video(), video(1) - 0.5
    np.testing.assert_allclose(ssim(x, x, window=window), np.ones((2, 3)), rtol=1e-5)
    little, much = (ssim(x, x + s * noise, window=window) for s in (0.1, 0.5))
    assert (little < 1).all() and (much < little).all()


def test_frames_do_not_meet():
    x, y = video(), video(1)
    y[0, 1] = x[0, 1]
    assert np.isposinf(psnr(x, y)).sum() == 1
    np.testing.assert_allclose(ssim(x, y)[0, 1], 1, rtol=1e-5)
    assert np.max(np.delete(ssim(x, y).ravel(), 1)) < 0.5


@pytest.mark.parametrize("peak", [2.0, 255.0])
def test_the_range_is_the_callers(peak):
    x, y = video(), video(1)
    np.testing.assert_allclose(psnr(peak * x, peak * y, peak=peak), psnr(x, y), rtol=1e-5)
    np.testing.assert_allclose(ssim(peak * x, peak * y, peak=peak), ssim(x, y), rtol=1e-4)
    np.testing.assert_allclose(flicker(peak * x, peak=peak), flicker(x), rtol=1e-5)


def test_flicker_counts_what_changes_between_frames():
    x = np.zeros((2, 3, 4, 4, 3), np.float32)
    x[0, 1] = 1  # there and back: every pixel, twice
    x[1, 2, :2, :, 0] = 0.5  # a sixth of one frame, once, by half
    np.testing.assert_allclose(flicker(x), [255, 255 / 2 / 6 / 2], rtol=1e-6)


def test_bytes_do_not_wrap_around():
    x, y = np.zeros((1, 2, 16, 16, 3), np.uint8), np.full((1, 2, 16, 16, 3), 1, np.uint8)
    np.testing.assert_allclose(psnr(x, y, peak=255), np.full((1, 2), 20 * np.log10(255)), rtol=1e-5)
    np.testing.assert_allclose(flicker(np.stack([y[0, 0], x[0, 0]])[None], peak=255), [1], rtol=1e-6)


def test_what_cannot_be_compared():
    with pytest.raises(ValueError, match="of one shape"):
        psnr(video(), video()[:, :1])
    with pytest.raises(ValueError, match="of one shape"):
        ssim(video()[0], video()[0])
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(video()[:, :, :10], video()[:, :, :10])
    with pytest.raises(ValueError, match="gaussian or uniform"):
        ssim(video(), video(), window="box")
    with pytest.raises(ValueError, match="two frames or more"):
        flicker(video()[:, :1])
