"""Judges editing on `tiny`: whether the new prompt is seen, and whether the shape stays where the clip has it.

python -m cogvx_jax.scripts.eval_edit

Clips of one scene are drawn and edited to another colour and shape. The prompt is of the whole new scene. Printed is
which part of the results the judge finds right, and how far the shape is from where it is in the clip. That is in
pixels of 64: the mean over a clip's frames, its median over the clips.
"""

import dataclasses
from typing import Any

import numpy as np
import tyro

import cogvx_jax as cx
from cogvx_jax.tiny import judge, shapes

WAYS: dict[str, Any] = {  # what is asked beside the prompt, of a clip
    "prompt alone": lambda clip: {},
    "video": lambda clip: {"video": clip},
    "edit": lambda clip: {"edit": clip},
}


def main(clips: int = 12, steps: int = 50, seed: int = 0) -> None:
    """Prints a table of ways.

    Args:
      clips: how many.
      steps: of sampling.
    """
    model = cx.load("tiny")
    rng = np.random.default_rng(seed)
    pairs = [pair(rng) for _ in range(clips)]
    drawn = [shapes.draw(before, rng) for before, _ in pairs]
    print(f"{'':14}" + "".join(f"{name:>12}" for name in ("colour", "shape", "motion", "background", "distance")))
    for name, asked in WAYS.items():
        right, away = [], []
        for i, ((_, after), clip) in enumerate(zip(pairs, drawn, strict=True)):
            how: dict[str, Any] = dict(progress=False, num_inference_steps=steps, seed=seed + i)
            made = cx.generate(model, str(after), **how, **asked(clip)).frames[0]
            right.append(list(judge.score(made, after).values()))
            away.append(np.linalg.norm(judge.centres(made) - judge.centres(clip), axis=1).mean())
        shares = "".join(f"{share:12.0%}" for share in np.mean(right, axis=0))
        print(f"{name:14}{shares}{np.median(away):12.1f}", flush=True)


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
