"""Judges the samplers on `tiny`, those without noise beside a run of 100 steps, which all of them come to.

python -m cogvx_jax.scripts.eval_samplers

Printed are PSNR and SSIM against the videos of 100 steps of UniPC from the same noise, and how many videos the judge
finds right, of the same held-out prompts. Stochastic samplers make other videos, which only the judge can compare.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import cogvx_jax as cx
from cogvx_jax.diffusion.samplers import SAMPLERS
from cogvx_jax.scripts.compared import Figures, compare

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
    found, full = compare(model, ways, REFERENCE, prompts=prompts, batch=batch, seed=seed, out=out)
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
