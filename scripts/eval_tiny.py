"""Scores the `tiny` model: 200 held-out prompts, judged on colour, shape, motion and background.

python -m cogvx_jax.scripts.eval_tiny
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import PIL.Image
import tyro

import cogvx_jax as cx
from cogvx_jax.data.video import to_uint8
from cogvx_jax.models import vae as vaes
from cogvx_jax.pipelines.latents import decode_batch, encode_batch
from cogvx_jax.tiny import shapes
from cogvx_jax.tiny.judge import score

PARTS = ("colour", "shape", "motion", "background")


def main(
    model: str = "tiny",
    lora: str | None = None,
    prompts: int = 200,
    batch: int = 20,
    steps: int | None = None,
    guidance_scale: float | None = None,
    sampler: str | None = None,
    quantize: str | None = None,
    seed: int = 0,
    psnr: bool = True,
    sheet: Path | None = None,
    out: Path | None = None,
) -> None:
    """Prints the share of videos right in each part and in all four, and the VAE's PSNR.

    Args:
      lora: as for `cogvx generate`; one of few steps brings its own steps, guidance scale and sampler.
      prompts: how many held-out combinations, drawn without repetition.
      batch: videos made at a time.
      quantize: as for `cogvx generate`.
      psnr: of the VAE, too.
      sheet: write a PNG with a row of frames per video here, wrong ones marked.
      out: write the figures as JSON here.
    """
    loaded = cx.load(model, quantize=quantize)
    loaded = loaded if lora is None else cx.load_lora(loaded, lora)
    options = dict(num_inference_steps=steps, guidance_scale=guidance_scale, sampler=sampler)
    found = judge_videos(loaded, prompts, batch, seed, options)
    figures = found.figures()
    if psnr:
        figures["psnr"] = reconstruction_psnr(loaded, shapes.split()[1][:48])
    print(json.dumps(figures, indent=2))
    print("\n".join(found.wrong))
    if sheet is not None:
        half = len(found.rows) // 2
        halves = [np.concatenate(found.rows[:half]), np.concatenate(found.rows[half : 2 * half])]
        PIL.Image.fromarray(np.concatenate(halves, axis=1)).save(sheet)
    if out is not None:
        out.write_text(json.dumps(figures | {"prompts": len(found.rows), "wrong": found.wrong}, indent=2) + "\n")


@dataclasses.dataclass
class Verdicts:
    """right: videos by part, and in "all" of them. wrong: a line for each other video. rows: pictures."""

    right: Counter[str] = dataclasses.field(default_factory=Counter)
    wrong: list[str] = dataclasses.field(default_factory=list)
    rows: list[np.ndarray] = dataclasses.field(default_factory=list)

    def figures(self) -> dict[str, float]:
        return {part: self.right[part] / len(self.rows) for part in (*PARTS, "all")}


def judge_videos(model: cx.Model, prompts: int, batch: int, seed: int, options: Mapping[str, Any]) -> Verdicts:
    """Makes and judges videos of held-out prompts; of one seed, the same prompts from the same noise every time."""
    _, held_out = shapes.split()
    rng, found = np.random.default_rng(seed), Verdicts()
    chosen = [held_out[i] for i in rng.permutation(len(held_out))[:prompts]]
    for start in range(0, len(chosen), batch):
        scenes = chosen[start : start + batch]
        captions = [shapes.caption(scene, rng) for scene in scenes]
        video = cx.generate(model, captions, seed=seed + start, progress=False, **options)
        for scene, caption, frames in zip(scenes, captions, video.frames, strict=True):
            marks = score(frames, scene)
            found.right.update(part for part in PARTS if marks[part])
            found.right["all"] += all(marks.values())
            if not all(marks.values()):
                found.wrong.append(f"{caption}: wrong {', '.join(p for p in PARTS if not marks[p])}")
            strip = np.concatenate(list(frames[::2]), axis=1)
            mark = np.full((strip.shape[0], 6, 3), (0, 160, 0) if all(marks.values()) else (220, 0, 0), np.uint8)
            found.rows.append(np.concatenate([mark, strip], axis=1))
        done = min(start + batch, len(chosen))
        print(f"{done} videos, {found.right['all'] / len(found.rows):.1%} right in all four", flush=True)
    return found


def reconstruction_psnr(model: cx.Model, scenes: list[shapes.Scene]) -> float:
    """PSNR in dB of freshly drawn clips through the VAE, from the posterior's mode, over all pixels."""
    errors = []
    for i, scene in enumerate(scenes):
        clip = shapes.draw(scene, np.random.default_rng((7, i)))
        pixels = jnp.asarray(clip[None] / 127.5 - 1, jnp.float32)
        vae, params = model.vae, model.params["vae"]
        moments = vaes.encode(vae, params, pixels, encode_batch=encode_batch(vae))
        again = vaes.decode(vae, params, vaes.mode(moments), decode_batch=decode_batch(vae))
        errors.append(np.mean(np.square((to_uint8(np.asarray(again[0])) / 255.0) - clip / 255.0)))
    return float(-10 * np.log10(np.mean(errors)))


if __name__ == "__main__":
    tyro.cli(main)
