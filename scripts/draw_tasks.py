"""Draws the pictures of docs/tasks.md: longer clips of `tiny` than it was trained on, and one of `tiny-inp`.

A clip is a row of frames.

python -m cogvx_jax.scripts.draw_tasks --folder docs
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import PIL.Image
import tyro

import cogvx_jax as cx
from cogvx_jax.cli.loop import loop_windows
from cogvx_jax.tiny.judge import judge
from cogvx_jax.tiny.shapes import Scene, draw

GAP = 3  # white pixels around frames
SHOWN = 9  # frames of a row
Clip = np.ndarray  # (F, H, W, 3) uint8


def main(folder: Path = Path("docs"), only: str | None = None, seed: int = 0) -> None:
    """Writes FOLDER/task_NAME.png for each task, and prints what the judge reads off each.

    Args:
      only: the name of one task.
    """
    for name, task in TASKS.items():
        if only in (None, name):
            clip, file = task(seed), folder / f"task_{name}.png"
            PIL.Image.fromarray(row(clip)).quantize(128).save(file, optimize=True)
            print(f"{file}: {judge(clip)}", flush=True)


def row(clip: Clip) -> np.ndarray:
    """Frames of a clip side by side, evenly spread from first to last, (H, W, 3)."""
    chosen = clip[np.linspace(0, len(clip) - 1, SHOWN).round().astype(int)]
    framed = np.pad(chosen, ((0, 0), (GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255)
    return np.concatenate(list(framed), axis=1)


def make(prompt: str, seed: int, **options) -> Clip:
    return cx.generate(cx.load("tiny"), prompt, seed=seed, progress=False, **options).frames[0]


def windows(seed: int) -> Clip:
    prompt = "an orange triangle spins on a black background"
    return make(prompt, seed, num_frames=65, windows=cx.Windows(16, overlap=8))


def extend(seed: int) -> Clip:
    prompt = "a green circle grows on a white background"
    return make(prompt, seed, num_frames=65, extend=make(prompt, seed))


def loop(seed: int) -> Clip:
    """A loop, twice."""
    prompt = "a red triangle spins on a white background"
    clip = make(prompt, seed, num_frames=33, windows=loop_windows(16))
    return np.concatenate([clip, clip])


def given(seed: int) -> Clip:
    """A first and a last frame that were drawn, and between them the clip that was made of them."""
    scene = Scene("yellow", "triangle", "moves right", "blue")
    drawn = draw(scene, np.random.default_rng(seed))
    ends = {"image": drawn[0], "last_image": drawn[-1]}
    clip = cx.generate(cx.load("tiny-inp"), str(scene), seed=seed, progress=False, **ends).frames[0]
    return np.concatenate([drawn[:1], clip, drawn[-1:]])


TASKS: Mapping[str, Callable[[int], Clip]] = {
    "windows": windows,
    "extend": extend,
    "loop": loop,
    "given": given,
}


if __name__ == "__main__":
    tyro.cli(main)
