"""How near arrays must come to those that are expected, where single numbers may be near zero."""

import numpy as np


def close(found, expected, tolerance=1e-5):
    """Equal within `tolerance` of the largest expected number; nothing is NaN or infinite."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())
