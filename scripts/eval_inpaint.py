"""Scores an inpainting model of `tiny`'s world: held-out scenes, of which first and last frames or a part are given.

    python -m cogvx_jax.scripts.eval_inpaint --model tiny-inp

Printed are the PSNR of the frames that were given, or of what the mask keeps, and which part of the clips the judge
finds right, for each property of the same held-out prompts. `tiny`, which sees the prompt alone, stands beside it.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import cogvx_jax as cx
from cogvx_jax.data.video import Video
from cogvx_jax.scripts.eval_tiny import PARTS
from cogvx_jax.tiny import shapes
from cogvx_jax.tiny.judge import score

Given = Callable[[np.ndarray], dict[str, Any]]  # a drawn clip (F, H, W, 3) -> options of `generate`


def half_mask(clip: np.ndarray) -> np.ndarray:
    """The right half, (F, H, W) bool."""
    made = np.zeros(clip.shape[:3], bool)
    made[:, :, clip.shape[2] // 2 :] = True
    return made


WAYS: Mapping[str, tuple[str, Given]] = {
    "tiny, text": ("tiny", lambda clip: {}),
    "text": ("model", lambda clip: {}),
    "first": ("model", lambda clip: {"image": clip[0]}),
    "first and last": ("model", lambda clip: {"image": clip[0], "last_image": clip[-1]}),
    "right half": ("model", lambda clip: {"video": clip, "mask": half_mask(clip)}),
}


def main(model: str, prompts: int = 40, seed: int = 0, sheets: Path | None = None, out: Path | None = None) -> None:
    """Prints a table of ways.

    Args:
      model: "tiny-inp", or another that `python -m cogvx_jax.scripts.inpaint_tiny` made.
      prompts: how many held-out combinations, drawn without repetition.
      sheets: a folder for pictures of the first clips of each way, a row each.
      out: write the figures as JSON here.
    """
    found = compare_ways(cx.load(model), prompts, seed, sheets)
    if out is not None:
        out.write_text(json.dumps(found, indent=2) + "\n")


def compare_ways(model: cx.Model, prompts: int, seed: int, sheets: Path | None = None) -> dict[str, dict[str, float]]:
    """The figures of each way; the same scenes, captions, drawn clips and noise for all. Prints them as they come."""
    _, held_out = shapes.split()
    rng = np.random.default_rng(seed)
    scenes = [held_out[i] for i in rng.permutation(len(held_out))[:prompts]]
    captions = [shapes.caption(scene, rng) for scene in scenes]
    clips = [shapes.draw(scene, np.random.default_rng((13, seed, i))) for i, scene in enumerate(scenes)]
    models, found = {"tiny": cx.load("tiny"), "model": model}, {}
    print(f"{'way':16}" + "".join(f"{name:>12}" for name in ("given, dB", *PARTS, "all")), flush=True)
    for name, (which, given) in WAYS.items():
        made = []
        for i, (caption, clip) in enumerate(zip(captions, clips, strict=True)):
            made.append(cx.generate(models[which], caption, seed=seed + i, progress=False, **given(clip)).frames[0])
        found[name] = figures(made, clips, scenes, given)
        shares = "".join(f"{found[name][part]:12.0%}" for part in (*PARTS, "all"))
        print(f"{name:16}{found[name]['psnr']:12.1f}{shares}", flush=True)
        if sheets is not None:
            rows = np.stack([frames for pair in zip(clips[:4], made[:4], strict=True) for frames in pair])
            sheets.mkdir(parents=True, exist_ok=True)
            Video(rows, shapes.FPS).contact_sheet(9).save(sheets / f"{name.replace(',', '').replace(' ', '-')}.png")
    return found


def figures(
    made: list[np.ndarray], clips: list[np.ndarray], scenes: list[shapes.Scene], given: Given
) -> dict[str, float]:
    """PSNR in dB of what was given, and where nothing was of the first and last frame; shares of clips right."""
    marks = [score(frames, scene) for frames, scene in zip(made, scenes, strict=True)]
    errors = []
    for frames, clip in zip(made, clips, strict=True):
        known = known_pixels(given(clip), clip.shape[:3])
        errors.append(np.mean(np.square(frames[known] / 255.0 - clip[known] / 255.0)))
    shares = {part: float(np.mean([mark[part] for mark in marks])) for part in PARTS}
    whole = float(np.mean([all(mark.values()) for mark in marks]))
    return {"psnr": float(-10 * np.log10(np.mean(errors)))} | shares | {"all": whole}


def known_pixels(options: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    """The pixels (F, H, W) bool that were given; of the first and last frame where none were."""
    if "mask" in options:
        return ~options["mask"]
    known = np.zeros(shape, bool)
    known[[0] if options.keys() == {"image"} else [0, -1]] = True
    return known


if __name__ == "__main__":
    tyro.cli(main)
