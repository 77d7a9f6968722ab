"""Scores of one video made of features of its frames, whatever network they are of.

Shapes: F frames, d features.
"""

import numpy as np


def consistency(features: np.ndarray) -> float:
    """VBench's subject and background consistency: how like each frame is to the one before and to the first.

    The mean over frames 2 and on of (max(0, cos to the frame before) + max(0, cos to the first)) / 2. A board's score
    is the mean over all frames of all videos: weigh videos by F - 1.

    Args:
      features: (F, d) of two frames or more.
    Returns: 0 to 1.
    Raises: ValueError for another shape, and for features that are not finite or 0.
    """
    unit = _unit(features, "two frames or more", 2)
    before = np.maximum(np.sum(unit[1:] * unit[:-1], axis=1), 0)
    first = np.maximum(unit[1:] @ unit[0], 0)
    return float(np.mean((before + first) / 2))


def clip_score(frames: np.ndarray, text: np.ndarray) -> float:
    """100 max(0, cos) of each frame's features (F, d) and the prompt's (d,), averaged over frames: 0 to 100.

    Raises: ValueError for other shapes, and for features that are not finite or 0.
    Source: Hessel et al. 2021, arXiv:2104.08718, whose own factor is 2.5 in place of 100.
    """
    unit, prompt = _unit(frames, "frames", 1), _unit(np.asarray(text)[None], "a prompt", 1)[0]
    if unit.shape[1:] != prompt.shape:
        raise ValueError(f"features of frames and prompts are of one length, got {unit.shape[1]} and {len(prompt)}")
    return float(np.mean(100 * np.maximum(unit @ prompt, 0)))


def _unit(features: np.ndarray, what: str, least: int) -> np.ndarray:
    """Features of length 1, in float64."""
    found = np.asarray(features, np.float64)
    if found.ndim != 2 or len(found) < least:
        raise ValueError(f"features of {what} are (n, d), got {found.shape}")
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    if (bad := ~(np.isfinite(lengths) & (lengths > 0)).ravel()).any():
        raise ValueError(f"features of {what} are all 0 or not finite in row {int(np.argmax(bad))}")
    return found / lengths
