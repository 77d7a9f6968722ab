"""How far two sets of videos are apart, by features (n, d) of any network: the Fréchet distance and MMD.

FVD is the Fréchet distance of features of I3D. Neither number says anything beside one of another network, another
count of videos or frames, or another way to resize.
"""

import numpy as np


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """|m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^½), of unbiased covariances in float64.

    The trace of the root is the sum of the roots of the eigenvalues of S1^½ S2 S1^½, which is symmetric: no root of a
    complex matrix is taken, and sets of fewer videos than features have a distance, too.

    Args:
      x, y: features (n, d) and (m, d) of two sets.
    Returns: 0 or more.
    Raises: ValueError for other shapes, fewer than two rows, or numbers that are not finite.
    Source: Unterthiner et al. 2018, arXiv:1812.01717; Dowson and Landau 1982.
    """
    x, y = check_features(x, y)
    means, (s1, s2) = x.mean(axis=0) - y.mean(axis=0), (np.atleast_2d(np.cov(v, rowvar=False)) for v in (x, y))
    values, vectors = np.linalg.eigh(s1)
    root = (vectors * _roots(values)) @ vectors.T
    product = root @ s2 @ root
    cross = np.sum(_roots(np.linalg.eigvalsh((product + product.T) / 2)))
    return max(float(means @ means + np.trace(s1) + np.trace(s2) - 2 * cross), 0.0)


def _roots(eigenvalues: np.ndarray) -> np.ndarray:
    """Roots of eigenvalues of a matrix without negative ones.

    Those that rounding may have made of 0 are 0: the root of 1e-16 would be 1e-8, and a set of few videos has many.
    """
    least = np.max(eigenvalues) * len(eigenvalues) * np.finfo(np.float64).eps
    return np.sqrt(np.where(eigenvalues > least, eigenvalues, 0))


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased squared maximum mean discrepancy with the kernel (x·y / d + 1)³; it may be a little below 0.

    Raises: as `frechet_distance`.
    Source: Gretton et al. 2012, lemma 6; the kernel of Bińkowski et al. 2018, arXiv:1801.01401.
    """
    x, y = check_features(x, y)
    xx, yy, xy = (np.square(k := a @ b.T / x.shape[1] + 1) * k for a, b in ((x, x), (y, y), (x, y)))
    own = ((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (xx, yy))
    return float(sum(own) - 2 * xy.mean())


def check_features(*sets: np.ndarray) -> list[np.ndarray]:
    """Sets of features in float64. Raises: ValueError, see `frechet_distance`."""
    found = [np.asarray(one, np.float64) for one in sets]
    for one in found:
        if one.ndim != 2 or len(one) < 2 or one.shape[1:] != found[0].shape[1:] or not one.shape[1]:
            shapes = " and ".join(str(other.shape) for other in found)
            raise ValueError(f"features are (n, d) of one d with two rows or more, got {shapes}")
        if not np.isfinite(one).all():
            row = int(np.flatnonzero(~np.isfinite(one).all(axis=1))[0])
            raise ValueError(f"features hold a number that is not finite, first in row {row}")
    return found
