"""Scores the `tiny` model: 200 held-out prompts, judged on colour, shape, motion and background.

python -m cogvx_jax.scripts.eval_tiny
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping
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

    def add(self, scene: shapes.Scene, caption: str, frames: np.ndarray, every: int = 2) -> list[str]:
        """Judges a video; its picture has one frame of `every`. Returns: the parts that are wrong."""
        marks = score(frames, scene)
        wrong = [part for part in PARTS if not marks[part]]
        self.right.update(part for part in PARTS if marks[part])
        self.right["all"] += not wrong
        if wrong:
            self.wrong.append(f"{caption}: wrong {', '.join(wrong)}")
        strip = np.concatenate(list(frames[::every]), axis=1)
        mark = np.full((strip.shape[0], 6, 3), (220, 0, 0) if wrong else (0, 160, 0), np.uint8)
        self.rows.append(np.concatenate([mark, strip], axis=1))
        return wrong


def held_out_batches(prompts: int, batch: int, seed: int) -> Iterator[tuple[int, list[shapes.Scene], list[str]]]:
    """Held-out combinations, drawn without repetition: the number of a batch's first, its scenes, their captions."""
    _, held_out = shapes.split()
    rng = np.random.default_rng(seed)
    chosen = [held_out[i] for i in rng.permutation(len(held_out))[:prompts]]
    for start in range(0, len(chosen), batch):
        scenes = chosen[start : start + batch]
        yield start, scenes, [shapes.caption(scene, rng) for scene in scenes]


def judge_videos(model: cx.Model, prompts: int, batch: int, seed: int, options: Mapping[str, Any]) -> Verdicts:
    """Makes and judges videos of held-out prompts; of one seed, the same prompts from the same noise every time."""
    found = Verdicts()
    for start, scenes, captions in held_out_batches(prompts, batch, seed):
        video = cx.generate(model, captions, seed=seed + start, progress=False, **options)
        for scene, caption, frames in zip(scenes, captions, video.frames, strict=True):
            found.add(scene, caption, frames)
        print(f"{len(found.rows)} videos, {found.right['all'] / len(found.rows):.1%} right in all four", flush=True)
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
