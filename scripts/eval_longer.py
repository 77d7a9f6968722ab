"""Judges the ways to make clips longer than trained, on `tiny`, which was trained on 17 frames.

python -m cogvx_jax.scripts.eval_longer

Printed is which part of the clips the judge finds right, for each property of the same held-out prompts.
"""

from typing import Any

import numpy as np
import tyro

import cogvx_jax as cx
from cogvx_jax.diffusion.windows import Windows
from cogvx_jax.tiny import judge, shapes

WAYS: dict[str, dict[str, Any]] = {
    "at once": {},
    "riflex": {"positions": "riflex"},
    "windows": {"windows": Windows(16, overlap=8)},
    "windows, plain noise": {"windows": Windows(16, overlap=8, noise="plain")},
    "extend": {"extend": True},
}


def main(prompts: int = 12, frames: int = 65, steps: int = 20, seed: int = 0) -> None:
    """Prints a table of ways.

    Args:
      prompts: how many held-out combinations, drawn without repetition.
      frames: of each clip.
      steps: of sampling.
    """
    model = cx.load("tiny")
    _, held_out = shapes.split()
    rng = np.random.default_rng(seed)
    scenes = [held_out[i] for i in rng.permutation(len(held_out))[:prompts]]
    captions = [shapes.caption(scene, rng) for scene in scenes]
    print(f"{frames} frames{'':14}" + "".join(f"{name:>12}" for name in ("colour", "shape", "motion", "background")))
    for name, options in WAYS.items():
        right = []
        for i, (scene, caption) in enumerate(zip(scenes, captions, strict=True)):
            how: dict[str, Any] = dict(progress=False, num_inference_steps=steps, seed=seed + i)
            asked = dict(options)
            if asked.get("extend"):
                asked["extend"] = cx.generate(model, caption, **how).frames[0]
            clip = cx.generate(model, caption, num_frames=frames, **how, **asked).frames[0]
            right.append(list(judge.score(clip, scene).values()))
        print(f"{name:23}" + "".join(f"{share:12.0%}" for share in np.mean(right, axis=0)), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
