"""How like a video file is to another one of the same length and size: what a faster way to make it has cost.

Frames are paired by their number and compared a few at a time, so that memory does not grow with the video.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cogvx_jax.data.decode import stream_video

FRAMES = 8  # that are compared at a time
MOST = 100.0  # dB of equal frames, whose ratio is infinite


def psnr_of(video: Path, reference: Path) -> float:
    """PSNR in dB, the mean over frames; frames that are equal, or nearly, count `MOST`. Raises: as `compared`."""
    from cogvx_jax.metrics import psnr

    return _mean(video, reference, lambda x, y: np.minimum(psnr(*_one(x, y), peak=255)[0], MOST))


def ssim_of(video: Path, reference: Path) -> float:
    """SSIM with the Gaussian window, the mean over frames. Raises: as `compared`; ValueError for tiny frames."""
    program = _ssim()
    return _mean(video, reference, lambda x, y: np.asarray(program(*_one(x, y))[0]))


def lpips_of(video: Path, reference: Path, weights: Path) -> float:
    """LPIPS, the mean over frames. Raises: as `compared`; ValueError for a file that holds no LPIPS."""
    apply, params = _lpips(weights)
    return _mean(video, reference, lambda x, y: np.asarray(apply({"params": params}, *(v / 127.5 - 1 for v in (x, y)))))


def compared(video: Path, reference: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frames of two files, (n, H, W, 3) float32 of bytes each.

    Raises: as `stream_video`; ValueError where their sizes or counts differ.
    """
    with stream_video(video) as first, stream_video(reference) as second:
        sizes = [(one.height, one.width) for one in (first, second)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"{video} has {_size(sizes[0])} pixels and {reference} {_size(sizes[1])}")
        both, count = [one.at(itertools.count()) for one in (first, second)], 0
        while True:
            x, y = (list(itertools.islice(frames, FRAMES)) for frames in both)
            count += len(x)
            if len(x) != len(y):
                raise ValueError(f"{video} and {reference} have another number of frames")
            if not x:
                break
            yield np.stack(x).astype(np.float32), np.stack(y).astype(np.float32)
        if not count:
            raise ValueError(f"{video} holds no video frames")


def check_alike(video: Path, reference: Path) -> None:
    """Raises: as `compared`."""
    for _ in compared(video, reference):
        pass


def _mean(video: Path, reference: Path, measure: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
    values = [measure(x, y) for x, y in compared(video, reference)]
    return float(np.mean(np.concatenate(values), dtype=np.float64))


def _one(first: np.ndarray, second: np.ndarray) -> tuple[Any, Any]:
    """Frames as a video of each."""
    return first[None], second[None]


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


@functools.lru_cache(maxsize=1)
def _ssim() -> Callable[..., Any]:
    """As one program it takes a third of the processor's time."""
    import jax

    from cogvx_jax.metrics import ssim

    return jax.jit(functools.partial(ssim, peak=255))


@functools.lru_cache(maxsize=2)
def _lpips(weights: Path) -> tuple[Callable[..., Any], Any]:
    import jax

    from cogvx_jax.convert import read_lpips

    network, params = read_lpips(weights)
    return jax.jit(network.apply), params
