"""Films that are drawn, shared by tests of data preparation."""

import numpy as np

from cogvx_jax.data.video import VideoWriter

HEIGHT, WIDTH, FPS = 96, 128, 10


def picture(seed, height=HEIGHT, width=WIDTH):
    """Blurred noise (H, W, 3) uint8: texture that flow can follow."""
    coarse = np.random.default_rng(seed).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3))
    fine = np.kron(coarse, np.ones((8, 8, 1)))[:height, :width]
    smooth = (fine + np.roll(fine, 2, 0) + np.roll(fine, 2, 1) + np.roll(fine, (2, 2), (0, 1))) / 4
    return smooth.astype(np.uint8)


def moving(seed, frames, speed=2):
    """A camera that pans over a picture, so many pixels a frame."""
    wide = picture(seed, HEIGHT, WIDTH + speed * frames)
    return [wide[:, n * speed : n * speed + WIDTH] for n in range(frames)]


def slides(seed, frames, each):
    """Sharp stills, one after the other."""
    return [picture(seed + n // each) for n in range(frames)]


def letterboxed(frames, rows=16):
    """With black above and below."""
    found = [frame.copy() for frame in frames]
    for frame in found:
        frame[:rows] = frame[-rows:] = 0
    return found


def save(path, frames, fps=FPS, **options):
    with VideoWriter(path, fps, **options) as writer:
        writer.write(np.stack(frames))
    return path
