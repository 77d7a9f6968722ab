"""Temporal flickering as VBench has it: of the bytes of frames as they are decoded, in VBench's own arithmetic.

`flicker` is the CogVideoX paper's measure of a VAE; this one is a dimension of a board.
"""

from collections.abc import Iterable

import numpy as np


def temporal_flickering(frames: Iterable[np.ndarray]) -> float:
    """(255 - mean difference of neighbouring frames) / 255: 1 for a still. It is meant for videos that do not move.

    Args:
      frames: of (H, W, 3) uint8 each, in any order of channels; no more than two are held.
    Returns: the number that the package `vbench` prints, bit for bit: means are of float32.
    Raises: ValueError for fewer than two frames, or frames of several sizes.
    Source: Huang et al. 2024, arXiv:2311.17982; `vbench/temporal_flickering.py` of version 0.1.5.
    """
    differences, before = list[np.floating](), None
    for frame in frames:
        if before is not None:
            differences.append(mean_difference(before, frame))
        before = frame
    if not differences:
        raise ValueError("temporal flickering is of two frames or more")
    return (255.0 - np.mean(np.array(differences)).item()) / 255.0


def mean_difference(first: np.ndarray, second: np.ndarray) -> np.floating:
    """The mean absolute difference of two frames of bytes, 0 to 255, float32. Raises: ValueError for two sizes."""
    if first.shape != second.shape:
        raise ValueError(f"frames of one size are compared, got {first.shape} and {second.shape}")
    return np.mean(np.abs(np.float32(first) - np.float32(second)))
