"""PSNR and SSIM of frames against scikit-image."""

import pytest

skimage = pytest.importorskip("skimage.metrics")

import numpy as np  # noqa: E402

from cogvx_jax.metrics import psnr, ssim  # noqa: E402

OPTIONS = {
    "uniform": {},  # its defaults
    "gaussian": dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False),  # as its manual gives Wang's
}
RANGES = {"unit": (0, 1), "signed": (-1, 1), "bytes": (0, 255)}


def videos(low, high, noise):
    """A smooth video and one with noise of `noise` times the range: (2, 2, 24, 37, 3), not square."""
    rng = np.random.default_rng(0)
    row, column = np.mgrid[:24, :37] / 6
    phase = rng.uniform(0, 6, (2, 2, 1, 1, 3))
    smooth = 0.5 + 0.45 * np.sin(row[..., None] + phase) * np.cos(column[..., None] - phase)
    other = np.clip(smooth + noise * rng.normal(size=smooth.shape), 0, 1)
    return tuple((low + (high - low) * v).astype(np.float32) for v in (smooth, other))


def of_frames(measure, x, y):
    return np.array([[measure(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(x, y, strict=True)])


@pytest.mark.parametrize("noise", [0.005, 0.1])
@pytest.mark.parametrize("low, high", RANGES.values(), ids=RANGES)
def test_psnr(low, high, noise):
    x, y = videos(low, high, noise)
    expected = of_frames(lambda a, b: skimage.peak_signal_noise_ratio(b, a, data_range=high - low), x, y)
    np.testing.assert_allclose(psnr(x, y, peak=high - low), expected, rtol=1e-5)


@pytest.mark.parametrize("noise", [0.005, 0.1])
@pytest.mark.parametrize("window", OPTIONS)
@pytest.mark.parametrize("low, high", RANGES.values(), ids=RANGES)
def test_ssim(low, high, window, noise):
    x, y = (v.astype(np.float64) for v in videos(low, high, noise))
    options = dict(data_range=high - low, channel_axis=-1, **OPTIONS[window])
    expected = of_frames(lambda a, b: skimage.structural_similarity(a, b, **options), x, y)
    assert expected.max() < 0.999
    np.testing.assert_allclose(ssim(x, y, peak=high - low, window=window), expected, rtol=0, atol=1e-5)
