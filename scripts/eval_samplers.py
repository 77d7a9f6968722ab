"""Judges the samplers on `tiny`, each beside its own run of 100 steps from the same noise.

python -m cogvx_jax.scripts.eval_samplers

Printed are PSNR and SSIM against the videos of 100 steps, and how many videos the judge finds right, of the same
held-out prompts. Of stochastic samplers the figures against 100 steps say little: other numbers of steps draw other
noise.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro

import cogvx_jax as cx
from cogvx_jax.diffusion.samplers import SAMPLERS
from cogvx_jax.scripts.eval_reuse import Figures, as_json, judge, make
from cogvx_jax.tiny import shapes

REFERENCE = 100  # steps


def main(
    prompts: int = 40,
    batch: int = 10,
    steps: tuple[int, ...] = (10, 20),
    seed: int = 0,
    only: tuple[str, ...] = tuple(SAMPLERS),
    out: Path | None = None,
) -> None:
    """Prints a table of samplers.

    Args:
      prompts: how many held-out combinations, drawn without repetition.
      batch: videos made at a time.
      steps: to judge each sampler at.
      only: names of samplers.
      out: write the figures as JSON here, after each batch.
    """
    model = cx.load("tiny")
    counts = (*steps, REFERENCE)
    found = {f"{name}, {count} steps": Figures() for name in only for count in counts}
    _, held_out = shapes.split()
    rng = np.random.default_rng(seed)
    chosen = [held_out[i] for i in rng.permutation(len(held_out))[:prompts]]
    for start in range(0, len(chosen), batch):
        began, scenes = time.monotonic(), chosen[start : start + batch]
        captions = [shapes.caption(scene, rng) for scene in scenes]
        for name in only:
            ways = {count: {"sampler": name, "num_inference_steps": count} for count in counts}
            reference = make(model, captions, seed + start, ways[REFERENCE])
            for count in counts:
                frames = reference if count == REFERENCE else make(model, captions, seed + start, ways[count])
                judge(found[f"{name}, {count} steps"], frames, reference, scenes)
        done = start + len(scenes)
        print(f"{done} prompts; {time.monotonic() - began:.0f} s", flush=True)
        if out is not None:
            out.write_text(json.dumps({"prompts": done} | as_json(found), indent=1) + "\n")
    print(table(model, found, counts))


def table(model: cx.Model, found: dict[str, Figures], counts: Sequence[int]) -> str:
    lines = [f"{'sampler':30}evaluations  dB     SSIM    right"]
    for name, one in found.items():
        sampler, count = name.split(", ")
        steps = int(count.split()[0])
        evaluations = SAMPLERS[sampler].evaluations(model.spec.schedule, steps, 0)
        alike = "    -       -" if steps == counts[-1] else f"{np.mean(one.psnr):5.2f}  {np.mean(one.ssim):.4f}"
        lines.append(f"{name:30}{evaluations:11}  {alike}  {np.mean(one.right):6.1%}")
    return "\n".join(lines)


if __name__ == "__main__":
    tyro.cli(main)
