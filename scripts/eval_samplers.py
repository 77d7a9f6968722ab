"""Judges the samplers on `tiny`, those without noise beside a run of 100 steps, which all of them come to.

python -m cogvx_jax.scripts.eval_samplers

Printed are PSNR and SSIM against the videos of 100 steps of UniPC from the same noise, and how many videos the judge
finds right, of the same held-out prompts. Stochastic samplers make other videos, which only the judge can compare.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import cogvx_jax as cx
from cogvx_jax.diffusion.samplers import SAMPLERS
from cogvx_jax.scripts.eval_reuse import Figures, as_json, judge, make
from cogvx_jax.tiny import shapes

REFERENCE = {"sampler": "unipc", "num_inference_steps": 100}


def main(
    prompts: int = 200,
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
    ways = {
        f"{name}, {count} steps": {"sampler": name, "num_inference_steps": count} for name in only for count in steps
    }
    found, full = {name: Figures() for name in ways}, Figures()
    _, held_out = shapes.split()
    rng = np.random.default_rng(seed)
    chosen = [held_out[i] for i in rng.permutation(len(held_out))[:prompts]]
    for start in range(0, len(chosen), batch):
        began, scenes = time.monotonic(), chosen[start : start + batch]
        captions = [shapes.caption(scene, rng) for scene in scenes]
        reference = make(model, captions, seed + start, REFERENCE)
        judge(full, reference, reference, scenes)
        for name, way in ways.items():
            judge(found[name], make(model, captions, seed + start, way), reference, scenes)
        done = start + len(scenes)
        print(f"{done} prompts; {time.monotonic() - began:.0f} s", flush=True)
        if out is not None:
            out.write_text(json.dumps({"prompts": done, "full": full.right} | as_json(found), indent=1) + "\n")
    print(table(model, ways, found, full))


def table(model: cx.Model, ways: Mapping[str, dict[str, Any]], found: Mapping[str, Figures], full: Figures) -> str:
    lines = [
        f"100 steps of UniPC: {np.mean(full.right):.1%} of {len(full.right)} right",
        f"{'sampler':30}evaluations  dB     SSIM    right",
    ]
    for name, one in found.items():
        method = SAMPLERS[ways[name]["sampler"]]
        evaluations = method.evaluations(model.spec.schedule, ways[name]["num_inference_steps"], 0)
        alike = f"{'-':6} {'-':6}" if method.stochastic else f"{np.mean(one.psnr):5.2f}  {np.mean(one.ssim):.4f}"
        lines.append(f"{name:30}{evaluations:11}  {alike}  {np.mean(one.right):6.1%}")
    return "\n".join(lines)


if __name__ == "__main__":
    tyro.cli(main)
