"""Step `quality`: how sharp, well exposed and whole the pictures are, and how steadily the camera was held."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from cogvx_jax.finishing.packaged import Packaged, packaged_file
from cogvx_jax.metrics.brisque import brisque, read_machine
from cogvx_jax.prepare.look import Look
from cogvx_jax.prepare.rows import Row
from cogvx_jax.prepare.settings import Settings
from cogvx_jax.prepare.shots import LUMA

SIDE = 640  # pixels of the longer side at which sharpness is measured, so that sizes compare
# Levels, the mean difference of frames that are taken for the same. A codec refines a still by up to 0.6 a frame; of
# real clips that move, no two frames differed by less than 0.84.
FROZEN = 0.65
CLIPPED = 4, 251  # luma of pixels that are black or white
MACHINE = Packaged((("brisque", "svm.txt"),))  # of BRISQUE
JUDGED = 3  # frames that it sees
BLOCK = 8  # pixels of a codec's block


FIELDS = ("sharpness", "exposure", "clipped", "contrast", "blockiness", "brisque", "freeze_share", "shake")


def quality(clip: Row, look: Look, settings: Settings) -> Row:
    """Returns:
    `sharpness`, the variance of the Laplacian of luma at 640 pixels, its median over frames; `exposure`, the mean
      luma in 0..1; `clipped`, the share of black and white pixels; `contrast`, the deviation of luma in 0..1;
    `blockiness`, how much steeper luma is at the edges of 8x8 blocks, 1 where there are none; None of a film that is
      wider than 960 pixels, as frames are scaled down; `brisque`, of three frames of at most 960 pixels, the median,
      about 0 of an undamaged picture and 100 of a bad one, None where the package brisque is not installed;
    `freeze_share`, of steps of 1/8 second in which nothing changes; `shake`, pixels of a frame 320 wide by which the
      camera's path is jerky, the mean of its second differences.
    """
    cv2 = vision()
    found: dict[str, list[float]] = {
        name: [] for name in ("sharpness", "exposure", "clipped", "contrast", "blockiness")
    }
    for frame in look.large:
        luma = frame.astype(np.float32) @ LUMA
        found["exposure"].append(luma.mean() / 255)
        found["contrast"].append(luma.std() / 255)
        found["clipped"].append(float(((luma < CLIPPED[0]) | (luma > CLIPPED[1])).mean()))
        scale = SIDE / max(luma.shape)
        size = max(round(luma.shape[1] * scale), 3), max(round(luma.shape[0] * scale), 3)
        scaled = luma if scale >= 1 else cv2.resize(luma, size, interpolation=cv2.INTER_AREA)
        found["sharpness"].append(float(cv2.Laplacian(scaled, cv2.CV_32F).var()))
        if look.native and min(luma.shape) > 4 * BLOCK:
            found["blockiness"].append(_blockiness(luma))
    row: Row = {name: float(np.median(values)) if values else None for name, values in found.items()}
    row["brisque"] = _damage(look.large)
    return row | _over_time(cv2, look.gray)


def vision() -> Any:
    """OpenCV. Raises: ValueError where it is not installed."""
    try:
        import cv2
    except ImportError:
        raise ValueError("this step needs OpenCV: pip install 'cogvx_jax[prepare]'") from None
    return cv2


@functools.cache
def machine_file() -> Path | None:
    """Of the package brisque, which is not imported; None where it is not installed."""
    return packaged_file(MACHINE)


def _damage(frames: np.ndarray) -> float | None:
    if (file := machine_file()) is None or not len(frames):
        return None
    chosen = sorted({(len(frames) - 1) * i // (JUDGED - 1) for i in range(JUDGED)})
    scores = [score for n in chosen if (score := brisque(frames[n], read_machine(file))) is not None]
    return float(np.median(scores)) if scores else None


def _blockiness(luma: np.ndarray) -> float:
    """Steps across the edges of blocks to those elsewhere, the larger of both directions."""
    ratios = []
    for steps in (np.abs(np.diff(luma, axis=1)).mean(0), np.abs(np.diff(luma, axis=0)).mean(1)):
        edges = steps[BLOCK - 1 :: BLOCK].mean()
        inside = np.delete(steps, np.arange(BLOCK - 1, len(steps), BLOCK)).mean()
        ratios.append(edges / max(inside, 1e-3))
    return float(max(ratios))


def _over_time(cv2: Any, luma: np.ndarray) -> Row:
    if len(luma) < 2:
        return {"freeze_share": None, "shake": None}
    gray = [np.ascontiguousarray(frame[::2, ::2]) for frame in luma]
    window = cv2.createHanningWindow(gray[0].shape[::-1], cv2.CV_32F) if min(gray[0].shape) > 2 else None
    moves, still = [], 0
    for before, after in zip(gray, gray[1:], strict=False):
        still += bool(np.abs(before - after).mean() < FROZEN)
        if window is not None:  # OpenCV multiplies what it is given by the window, where it need not enlarge it
            moves.append(2 * np.asarray(cv2.phaseCorrelate(before.copy(), after.copy(), window)[0]))
    jerks = np.linalg.norm(np.diff(np.asarray(moves).reshape(-1, 2), axis=0), axis=1)
    return {"freeze_share": still / (len(gray) - 1), "shake": float(np.median(jerks)) if len(jerks) else None}
