"""Ways to make the same videos of `tiny`, judged beside a reference: held-out prompts, and the same noise for all."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import cogvx_jax as cx
from cogvx_jax.metrics import psnr, ssim
from cogvx_jax.tiny import shapes
from cogvx_jax.tiny.judge import score

MOST = 99.0  # dB, of equal frames


@dataclasses.dataclass
class Figures:
    """Of one way, a number a video; `right` is the judge's verdict."""

    psnr: list[float] = dataclasses.field(default_factory=list)
    ssim: list[float] = dataclasses.field(default_factory=list)
    right: list[bool] = dataclasses.field(default_factory=list)


def compare(
    model: cx.Model,
    ways: Mapping[str, dict[str, Any]],
    reference: dict[str, Any],
    *,
    prompts: int,
    batch: int,
    seed: int,
    out: Path | None = None,
) -> tuple[dict[str, Figures], Figures]:
    """The figures of each way, and of the reference.

    Args:
      ways: options of `generate`, by a name of each.
      reference: options of what they are compared with.
      prompts: how many held-out combinations, drawn without repetition.
      batch: videos made at a time.
      out: where to write the figures as JSON, after each batch.
    """
    found, full = {name: Figures() for name in ways}, Figures()
    _, held_out = shapes.split()
    rng = np.random.default_rng(seed)
    chosen = [held_out[i] for i in rng.permutation(len(held_out))[:prompts]]
    for start in range(0, len(chosen), batch):
        began, scenes = time.monotonic(), chosen[start : start + batch]
        captions = [shapes.caption(scene, rng) for scene in scenes]
        frames = _make(model, captions, seed + start, reference)
        _judge(full, frames, frames, scenes)
        for name, way in ways.items():
            _judge(found[name], _make(model, captions, seed + start, way), frames, scenes)
        done = start + len(scenes)
        print(f"{done} prompts; {time.monotonic() - began:.0f} s", flush=True)
        if out is not None:
            own = {name: dataclasses.asdict(one) for name, one in found.items()}
            out.write_text(json.dumps({"prompts": done, "full": full.right, "ways": own}, indent=1) + "\n")
    return found, full


def _make(model: cx.Model, captions: list[str], seed: int, way: dict[str, Any]) -> np.ndarray:
    return cx.generate(model, captions, seed=seed, progress=False, **way).frames


def _judge(into: Figures, frames: np.ndarray, reference: np.ndarray, scenes: list[shapes.Scene]) -> None:
    ours, theirs = (jnp.asarray(pixels, jnp.float32) / 255 for pixels in (frames, reference))
    into.psnr += map(float, jnp.minimum(psnr(ours, theirs), MOST).mean(axis=1))
    into.ssim += map(float, ssim(ours, theirs).mean(axis=1))
    into.right += [all(score(video, scene).values()) for video, scene in zip(frames, scenes, strict=True)]
