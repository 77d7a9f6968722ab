"""Finishing on this device, its networks beside torch with the same random weights, and what interpolation is worth.

    python -m cogvx_jax.scripts.benchmark_finish
    python -m cogvx_jax.scripts.benchmark_finish --clip bigbuckbunny.mp4 --first 60 --frames 9

Sides take turns within a run, and the fastest run of each counts, so that other work on the machine harms both alike.
`tests/parity/test_finishing.py` compares results with the authors' modules; here the torch side is functions.
"""

import importlib.util
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from cogvx_jax.convert.finishing import DENSE_TABLE, FLOW_TABLE, compact_table
from cogvx_jax.convert.tables import Row, resolve
from cogvx_jax.data.decode import stream_video
from cogvx_jax.finishing.interpolate import middle_program
from cogvx_jax.finishing.networks import load_interpolator
from cogvx_jax.finishing.packaged import INTERPOLATORS, find_weights
from cogvx_jax.models.rife import RIFE
from cogvx_jax.models.upscalers import CompactUpscaler, DenseUpscaler
from cogvx_jax.scripts import finish_torch

CASES: dict[str, tuple[nn.Module, tuple[Row, ...], int]] = {  # network, table, pictures that it takes
    "compact": (CompactUpscaler(), compact_table(16), 1),
    "dense": (DenseUpscaler(), DENSE_TABLE, 1),
    "rife": (RIFE(), FLOW_TABLE, 2),
}


def main(
    parts: tuple[str, ...] = tuple(CASES),
    size: tuple[int, int] = (96, 160),
    runs: int = 5,
    clip: Path | None = None,
    first: int = 0,
    frames: int = 9,
) -> None:
    """Prints seconds of a picture (of a pair for rife) and the share of torch's; of a clip, decibels.

    Args:
      parts: compact, dense, rife.
      size: height and width of the pictures that go in, multiples of 32.
      runs: of each side, by turns, after one that is not counted.
      clip: a video; every second frame is left out and interpolated by the installed weights.
      first: frame of the clip to begin with.
      frames: how many of it, an odd number.
    """
    torch = importlib.util.find_spec("torch") is not None
    print(f"{jax.devices()[0].device_kind}, {size[0]}x{size[1]}" + ("" if torch else "; without torch, no shares"))
    for part in parts:
        print(part, "  ".join(f"{name} {value:.3g}" for name, value in _timed(part, size, runs, torch).items()))
    if clip is not None:
        ours, mean = _left_out(clip, first, frames)
        print(f"{clip.name}: left-out frames {ours:.2f} dB, the mean of their neighbours {mean:.2f} dB")


def _timed(part: str, size: tuple[int, int], runs: int, torch: bool) -> dict[str, float]:
    network, rows, count = CASES[part]
    pictures = np.random.default_rng(0).random((count, 1, *size, 3), np.float32)
    params = _random(network, list(pictures))
    program = jax.jit(network.apply)
    sides: dict[str, Callable[[], Any]] = {
        "seconds": lambda: jax.block_until_ready(program({"params": params}, *pictures))
    }
    if torch:
        reference = getattr(finish_torch, part)
        sides["torch"] = reference(_published(rows, params), *pictures)
    best = dict.fromkeys(sides, float("inf"))
    for turn, (name, run) in itertools.product(range(runs + 1), sides.items()):
        began = time.perf_counter()
        run()
        if turn:
            best[name] = min(best[name], time.perf_counter() - began)
    return best | ({"share": best["seconds"] / best["torch"]} if torch else {})


def _random(network: nn.Module, pictures: list[np.ndarray]) -> Any:
    shapes = nn.unbox(jax.eval_shape(lambda *x: network.init(jax.random.key(0), *x), *pictures))["params"]
    rng = np.random.default_rng(1)

    def draw(leaf: Any) -> jax.Array:
        return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) / max(np.prod(leaf.shape[-4:-1]), 25) ** 0.5)

    return jax.tree.map(draw, shapes)


def _published(rows: tuple[Row, ...], params: Any) -> dict[str, np.ndarray]:
    flat, found = traverse_util.flatten_dict(params, sep="/"), {}
    for parameter in resolve(rows, {path: leaf.shape for path, leaf in flat.items()}):
        leaf = np.asarray(flat[parameter.path])
        for key, one in zip(parameter.keys, leaf if parameter.stacked else [leaf], strict=True):
            found[key] = np.ascontiguousarray(parameter.change.write(one))
    return found


def _left_out(clip: Path, first: int, frames: int) -> tuple[float, float]:
    """Decibels of every second frame, interpolated, and of the mean of its neighbours."""
    loaded = load_interpolator(find_weights("rife", INTERPOLATORS))
    with stream_video(clip) as stream:
        shown = [frame / np.float32(255) for frame in stream.at(range(first, first + frames))]
    program = middle_program(loaded.network, *shown[0].shape[:2])
    pairs: Iterator[Any] = zip(shown[::2], shown[1::2], shown[2::2], strict=False)
    found = [(np.asarray(program(loaded.params, a, c)), b, (a + c) / 2) for a, b, c in pairs]
    return tuple(float(np.mean([_psnr(one[k], one[1]) for one in found])) for k in (0, 2))  # type: ignore[return-value]


def _psnr(x: np.ndarray, truth: np.ndarray) -> float:
    return -10 * np.log10(np.mean(np.square(x - truth)))


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
