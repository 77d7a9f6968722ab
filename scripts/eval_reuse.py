"""Judges step reuse and cheaper guidance on `tiny`, beside the same sampler with as many fewer steps.

python -m cogvx_jax.scripts.eval_reuse

Every way makes the videos of the same held-out prompts from the same noise as the full run does. Printed are PSNR and
SSIM against the full run's videos, how many videos the judge finds right, and of how many its verdict changed.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import cogvx_jax as cx
from cogvx_jax.scripts.compared import Figures, compare

# Of 20 steps with guidance, 40 evaluations of a row: name -> options. Thresholds are those that compute so many steps.
TWICE: Mapping[str, dict[str, Any]] = {
    "10 steps": {"num_inference_steps": 10},
    "every:2": {"reuse": "every:2"},
    "taylor:2": {"reuse": "taylor:2"},
    "taylor:2,2": {"reuse": "taylor:2,2"},
    "first-block:0.14": {"reuse": "first-block:0.14"},
}
HALF_AS_MANY_AGAIN: Mapping[str, dict[str, Any]] = {
    "13 steps": {"num_inference_steps": 13},
    "every:1.5": {"reuse": "every:1.5"},
    "taylor:1.5": {"reuse": "taylor:1.5"},
    "first-block:0.08": {"reuse": "first-block:0.08"},
}
OTHERS: Mapping[str, dict[str, Any]] = {
    "pab:2": {"reuse": "pab:2"},
    "15 steps": {"num_inference_steps": 15},
    "guidance delta:2": {"guidance": "delta:2"},
    "guidance interval:0.2-0.8": {"guidance": "interval:0.2-0.8"},
    "guidance interval:0.4-1": {"guidance": "interval:0.4-1"},
}
GROUPS = {"2": (TWICE, 10), "1.5": (HALF_AS_MANY_AGAIN, 13)}


def main(
    prompts: int = 200,
    batch: int = 10,
    seed: int = 0,
    only: tuple[str, ...] = (),
    out: Path | None = None,
) -> None:
    """Prints a table of ways.

    Args:
      prompts: how many held-out combinations, drawn without repetition.
      batch: videos made at a time; what first-block decides, it decides for all of them.
      only: names of ways, in place of all.
      out: write the figures as JSON here, after each batch.
    """
    warnings.filterwarnings("ignore", ".*inference steps: the reference")
    model = cx.load("tiny")
    ways = {name: way for name, way in all_ways(model).items() if not only or name in only}
    print(table(*compare(model, ways, {}, prompts=prompts, batch=batch, seed=seed, out=out)))


def all_ways(model: cx.Model) -> dict[str, dict[str, Any]]:
    """All ways by name, thresholds found: those of host-side schedules from the schedules themselves."""
    ways: dict[str, dict[str, Any]] = {}
    for group, computed in GROUPS.values():
        ways |= dict(group)
        for method, numbers in (("teacache", ""), ("magcache", ",3,0.2")):
            value = threshold(model, method, numbers, computed)
            ways[f"{method}:{value:.3g}{numbers}"] = {"reuse": f"{method}:{value:.6g}{numbers}"}
    return ways | dict(OTHERS)


def threshold(model: cx.Model, method: str, numbers: str, computed: int) -> float:
    """The least threshold, of a grid, at which at most `computed` of the model's own steps are computed."""
    for value in np.geomspace(1e-3, 30, 400):
        if computed_steps(model, f"{method}:{value:.6g}{numbers}").sum() <= computed:
            return float(value)
    raise ValueError(f"no threshold of {method} computes as few as {computed} steps")


def computed_steps(model: cx.Model, reuse: str) -> np.ndarray:
    from cogvx_jax.pipelines.generate import sampler_of
    from cogvx_jax.pipelines.options import Options
    from cogvx_jax.pipelines.request import check_request
    from cogvx_jax.pipelines.short_schedule import short_schedule

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        request = check_request(model.spec, "", Options(reuse=reuse))
        steps = sampler_of(model, request)
        found = short_schedule(model, request, steps)
    return np.ones(len(steps.timesteps), bool) if found is None else found.computed


def table(found: Mapping[str, Figures], full: Figures) -> str:
    lines = [
        f"full run: {np.mean(full.right):.1%} of {len(full.right)} right",
        f"{'way':30}dB     SSIM    right   lost won",
    ]
    for name, one in found.items():
        before, after = np.array(full.right), np.array(one.right)
        lost, won = int((before & ~after).sum()), int((after & ~before).sum())
        lines.append(
            f"{name:30}{np.mean(one.psnr):5.2f}  {np.mean(one.ssim):.4f}  {np.mean(after):6.1%}  {lost:4} {won:3}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    tyro.cli(main)
