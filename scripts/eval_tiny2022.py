"""Scores the small CogVideo (2022) that ships, or another of `train_tiny2022`.

Videos of held-out prompts are judged on colour, shape, motion and background.

python -m cogvx_jax.scripts.eval_tiny2022
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import tyro

from cogvx_jax.pipelines.cogvideo2022.generate import Settings, make_codes, to_pixels
from cogvx_jax.pipelines.cogvideo2022.load import load_cogvideo2022, settings_of
from cogvx_jax.pipelines.cogvideo2022.system import System
from cogvx_jax.scripts.eval_tiny import Verdicts, held_out_batches

THREE = "colour, shape and motion"


def main(
    model: str = "tiny2022",
    prompts: int = 200,
    batch: int = 20,
    depth: int | None = None,
    guidance: float | None = None,
    temperature: float | None = None,
    clusters: int | None = None,
    seed: int = 0,
    sheet: Path | None = None,
    out: Path | None = None,
) -> None:
    """Prints the share of videos right in each part, in colour, shape and motion, and in all four.

    Args:
      model: tiny2022, or a folder.
      prompts: how many held-out combinations, drawn without repetition.
      batch: videos made at a time.
      depth, guidance, temperature, clusters: in place of the model's own; the last two are those of all frames but the
        first.
      sheet: write a PNG with a row of frames per video here, wrong ones marked.
      out: write the figures as JSON here.
    """
    system = load_cogvideo2022(model)
    changes: dict[str, Any] = {"depth": depth, "guidance": guidance}
    how = dataclasses.replace(
        settings_of(system.settings, model), rows=2 * batch, **{k: v for k, v in changes.items() if v is not None}
    )
    draws: dict[str, Any] = {"temperature": temperature, "clusters": clusters}
    frames = dataclasses.replace(how.frames, **{k: v for k, v in draws.items() if v is not None})
    found = judge_videos(system, prompts, batch, dataclasses.replace(how, frames=frames), seed)
    figures = found.figures() | {THREE: found.right[THREE] / len(found.rows)}
    print(json.dumps(figures, indent=2))
    print("\n".join(found.wrong))
    if sheet is not None:
        PIL.Image.fromarray(np.concatenate(found.rows)).save(sheet)
    if out is not None:
        out.write_text(json.dumps(figures | {"prompts": len(found.rows), "wrong": found.wrong}, indent=2) + "\n")


def judge_videos(system: System, prompts: int, batch: int, how: Settings, seed: int) -> Verdicts:
    """Makes and judges videos of held-out prompts; of one seed, the same prompts and draws every time."""
    found = Verdicts()
    for start, scenes, captions in held_out_batches(prompts, batch, seed):
        videos = to_pixels(system, make_codes(system, captions, how, seed=seed + start))
        for scene, caption, frames in zip(scenes, captions, videos, strict=True):
            wrong = found.add(scene, caption, frames, every=max((len(frames) - 1) // 8, 1))
            found.right[THREE] += not set(wrong) - {"background"}
        print(f"{len(found.rows)} videos, {found.right[THREE] / len(found.rows):.1%} right in {THREE}", flush=True)
    return found


if __name__ == "__main__":
    tyro.cli(main)
