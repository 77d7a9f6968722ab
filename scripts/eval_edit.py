"""Judges editing on `tiny`: whether the new prompt is seen, and whether the shape stays where the clip has it.

python -m cogvx_jax.scripts.eval_edit

Clips of one scene are drawn and edited to another colour and shape. The prompt is of the whole new scene. Printed is
which part of the results the judge finds right, and how far the shape is from where it is in the clip: pixels of 64,
the mean over the frames, the median of the clips.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import tyro

import cogvx_jax as cx
from cogvx_jax.tiny import judge, shapes

WAYS: dict[str, Any] = {  # what is asked beside the prompt, of a clip
    "prompt alone": lambda clip: {},
    "video": lambda clip: {"video": clip},
    "edit": lambda clip: {"edit": clip},
}


def main(clips: int = 12, steps: int = 50, seed: int = 0, aside: int = 0, picture: Path | None = None) -> None:
    """Prints a table of ways.

    Args:
      clips: how many.
      steps: of sampling.
      aside: pixels by which shapes are moved across their motion; in training they are at most 5 from the middle.
      picture: a PNG to write: a row of frames of the first clip, and one of what each way makes of it.
    """
    model = cx.load("tiny")
    rng = np.random.default_rng(seed)
    pairs = [pair(rng) for _ in range(clips)]
    drawn = [moved(shapes.draw(before, rng), before.motion, aside) for before, _ in pairs]
    rows = [drawn[0]]
    print(f"{'':14}" + "".join(f"{name:>12}" for name in ("colour", "shape", "motion", "background", "distance")))
    for name, asked in WAYS.items():
        right, away = [], []
        for i, ((_, after), clip) in enumerate(zip(pairs, drawn, strict=True)):
            how: dict[str, Any] = dict(progress=False, num_inference_steps=steps, seed=seed + i)
            made = cx.generate(model, str(after), **how, **asked(clip)).frames[0]
            right.append(list(judge.score(made, after).values()))
            rows += [made] if i == 0 else []
            away.append(np.linalg.norm(judge.centres(made) - judge.centres(clip), axis=1).mean())
        shares = "".join(f"{share:12.0%}" for share in np.mean(right, axis=0))
        print(f"{name:14}{shares}{np.median(away):12.1f}", flush=True)
    if picture is not None:
        sheet = np.concatenate([np.concatenate(list(clip[::2]), axis=1) for clip in rows])
        PIL.Image.fromarray(sheet).save(picture)


def moved(clip: np.ndarray, motion: str, pixels: int) -> np.ndarray:
    """The clip (F, H, W, 3) with its shape so many pixels across its motion: the background is of one colour."""
    down, right = shapes.MOVES[motion]
    return np.roll(clip, (pixels * abs(right), pixels * abs(down)), axis=(1, 2))


def pair(rng: np.random.Generator) -> tuple[shapes.Scene, shapes.Scene]:
    """A scene of training whose shape moves, and the same with another colour and shape."""
    scenes, _ = shapes.split()
    moving = [scene for scene in scenes if scene.motion in shapes.MOVES]
    before = moving[rng.integers(len(moving))]
    colours = [c for c in shapes.PALETTE if c not in (before.colour, before.background)]
    others = [s for s in shapes.SHAPES if s != before.shape]
    return before, dataclasses.replace(before, colour=str(rng.choice(colours)), shape=str(rng.choice(others)))


if __name__ == "__main__":
    tyro.cli(main)
