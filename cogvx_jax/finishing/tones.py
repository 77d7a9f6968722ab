"""The sound that is built in: a tone. No network made it, and it is like nothing that the video shows.

Its pitch follows how bright a picture is, its loudness how much changes between two. It is there to try the way from a
maker to a file, and to hear whether sound and picture run together.
"""

import numpy as np

from cogvx_jax.finishing.scene import Scene

RATE = 48_000
LOWEST, OCTAVES = 110.0, 3.0  # Hz of black, and how much higher white is
VOLUME = 0.25  # of the most that a file holds, where the most changes
FADE = 0.01  # seconds at either end, else it clicks


def tones(scene: Scene) -> tuple[np.ndarray, int]:
    """Samples (N,) float32 in [-VOLUME, VOLUME], and their rate. The prompt and the seed change nothing."""
    bright, moves = followed(scene)
    shown = np.arange(len(bright)) / float(scene.fps)
    volume = VOLUME * moves / max(moves.max(), 1e-9)
    out, turned = np.empty(round(scene.seconds * RATE), np.float32), 0.0
    for begin in range(0, len(out), RATE):  # a second at a time: wider numbers than the result's
        moments = np.arange(begin, min(begin + RATE, len(out))) / RATE
        phase = turned + np.cumsum(LOWEST * 2 ** (OCTAVES * np.interp(moments, shown, bright)) / RATE)
        left = np.minimum(moments, (len(out) - 1) / RATE - moments)
        ends = np.minimum(left / FADE, 1)
        out[begin : begin + RATE] = ends * np.interp(moments, shown, volume) * np.sin(2 * np.pi * phase)
        turned = phase[-1] % 1
    return out, RATE


def followed(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Of each frame how bright it is and how much differs from the one before, (F,) each, both in [0, 1]."""
    bright, moves, before = list[float](), list[float](), None
    for frame in scene.frames():
        luma = frame.mean(axis=-1) / 255
        bright.append(float(luma.mean()))
        moves.append(0.0 if before is None else float(np.abs(luma - before).mean()))
        before = luma
    return np.array(bright), np.array(moves)
