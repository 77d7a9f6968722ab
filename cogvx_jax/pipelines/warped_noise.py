"""Noise that moves, of a request: read and checked before any work, made when sampling begins.

F pixel frames, T latents, h w their size, C channels.
"""

from typing import NamedTuple

import numpy as np

from cogvx_jax.data.arrays import open_array
from cogvx_jax.diffusion.noise_warp import Grid, area_mean, degraded, to_latents, warp
from cogvx_jax.diffusion.warped import WarpedNoise
from cogvx_jax.nn.resize import resize_linear
from cogvx_jax.pipelines.noise import NoiseSource
from cogvx_jax.pipelines.options import Options

MAX_MOTION = 4  # widths or heights of the picture, from a frame to the next
MAX_POINTS = 2**25  # of a frame's noise: a step holds 17 times its 16 channels


class Warped(NamedTuple):
    """What the noise of a request is made of: `noises` or `flow`."""

    noises: np.ndarray | None  # (T, h, w, C) float32
    flow: np.ndarray | None  # (F - 1, H, W, 2) float32, in pixels of its own
    frames: int  # F
    degradation: float
    way: str  # of `noise_warp.WAYS`
    cell: int


def read_warped(asked: Options, frames: int, shape: tuple[int, int, int, int]) -> Warped | None:
    """The noise that a video of F `frames` is to start from; None where none is given.

    Args:
      shape: of its latents without padding, (T, h, w, C).
    Raises: ValueError, one sentence, for arrays that do not fit the video, or what else is asked; OSError.
    """
    if asked.noises is None and asked.flow is None:
        return None
    given, how = ("flow", asked.flow) if asked.noises is None else ("noises", asked.noises)
    others = {"flow": asked.flow, "latents": asked.latents, "a video to extend": asked.extend}
    for name, value in others.items():
        if value is not None and name != given:
            raise ValueError(f"give {given} or {name}, not both")
    if asked.windows is not None and asked.windows.noise == "free":
        raise ValueError(f"{given} would be shuffled by windows with noise=free; give windows with noise=plain")
    read = _read_noises if given == "noises" else _read_flow
    noises, flow = read(how, frames, shape)
    return Warped(noises, flow, frames, float(how.degradation), how.frames, how.cell)


def _read_noises(how: WarpedNoise, frames: int, shape: tuple[int, int, int, int]) -> tuple[np.ndarray, None]:
    stored = open_array(how.source)
    found, (count, *grid) = stored.array.shape, shape
    if found not in ((frames, *grid), shape):
        raise ValueError(
            f"{stored.name} is noise of {found}, and a video of {frames} frames needs (frames, height, width, "
            f"channels) = {(frames, *grid)}, or {shape} of its latents"
        )
    return to_latents(stored.float32(slice(None)), count, how.frames).astype(np.float32), None


def _read_flow(how: WarpedNoise, frames: int, shape: tuple[int, int, int, int]) -> tuple[None, np.ndarray]:
    stored = open_array(how.source)
    found, most = stored.array.shape, (shape[1] * how.cell, shape[2] * how.cell)
    if most[0] * most[1] > MAX_POINTS:
        raise ValueError(
            f"the noise of {most[0]}x{most[1]} points would take more than can be held; lower cell={how.cell}"
        )
    if len(found) != 4 or found[0] < frames - 1 or found[3] != 2:
        raise ValueError(
            f"{stored.name} is a flow of {found}, and a video of {frames} frames needs (frames - 1, height, width, 2) "
            f"with at least {frames - 1} of pixels to the right and down"
        )
    if found[1] > most[0] or found[2] > most[1]:
        raise ValueError(
            f"{stored.name} is a flow of {found[1]}x{found[2]}, finer than the noise of {most[0]}x{most[1]}; give a "
            "coarser one"
        )
    flow = stored.float32(slice(0, frames - 1))
    farthest, most_pixels = max(float(flow.max()), -float(flow.min())), MAX_MOTION * max(found[1:3])
    if farthest > most_pixels:
        raise ValueError(
            f"{stored.name} moves pixels by {farthest:g}, and a picture of {found[1]}x{found[2]} by at most "
            f"{most_pixels}; give pixels from a frame to the next"
        )
    return None, flow


def warped_latents(warped: Warped, noise: NoiseSource, drawn: np.ndarray, padding: int) -> np.ndarray:
    """The noise of B videos, (B, T, h, w, C) float32.

    Args:
      noise: draws what moves, where that is not given.
      drawn: (B, T, h, w, C), the noise without motion, which is mixed in, and stays at the padding.
    """
    moving = warped.noises
    if moving is None:
        moving = _moved(warped, noise, (len(drawn), *drawn.shape[2:]), drawn.shape[1] - padding)
    mixed = degraded(moving, drawn[:, padding:], warped.degradation)
    return np.concatenate([drawn[:, :padding], mixed], axis=1)


def _moved(warped: Warped, noise: NoiseSource, shape: tuple[int, int, int, int], count: int) -> np.ndarray:
    """The noise of latents that the flow moves, (B, T, h, w, C); one flow for all videos, each with its own noise.

    Args:
      shape: (B, h, w, C) of a latent.
    """
    videos, cell = shape[0], warped.cell
    height, width, channels = shape[1] * cell, shape[2] * cell, shape[3]
    grids = [Grid.of(each) for each in np.asarray(noise.warp(0, (videos, height, width, channels)))]
    frames = [[area_mean(grid.noise, cell) for grid in grids]]
    assert warped.flow is not None
    for step, flow in enumerate(warped.flow, 1):
        points = _resized(flow, height, width)
        fresh = np.asarray(noise.warp(step, (videos, height, 2 * width, channels)))
        grids = [warp(grid, points, own) for grid, own in zip(grids, fresh, strict=True)]
        frames.append([area_mean(grid.noise, cell) for grid in grids])
    return np.stack([to_latents(np.stack(own), count, warped.way) for own in zip(*frames, strict=True)])


def _resized(flow: np.ndarray, height: int, width: int) -> np.ndarray:
    """A flow (H, W, 2) in its own pixels on a grid of points, in points."""
    scale = np.array([width / flow.shape[1], height / flow.shape[0]], np.float32)
    return resize_linear(flow, {0: height, 1: width}) * scale[None, None]
