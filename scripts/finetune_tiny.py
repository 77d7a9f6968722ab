"""Teaches `tiny`, by LoRA, a shape that no clip of its training shows and a word it does not know: rings.

    python -m cogvx_jax.scripts.finetune_tiny --folder runs/ring

Draws clips to video files, trains on them as `cogvx train` does, and has the judge score held-out
prompts before and after. A run that was stopped goes on where it stood.
"""

import json
from pathlib import Path

import numpy as np
import tyro

import cogvx_jax as cx
from cogvx_jax.cli import train as commands
from cogvx_jax.configs import ATTENTION, LoRAConfig
from cogvx_jax.data.video import Video, VideoWriter
from cogvx_jax.tiny import shapes
from cogvx_jax.tiny.judge import score
from cogvx_jax.train.transformer.settings import RunConfig, StageSettings

PARTS = ("colour", "shape", "motion", "background")
BATCH = 20  # videos made at a time


def main(
    folder: Path = Path("runs/ring"),
    model: str = "tiny",
    clips: int = 400,
    prompts: int = 39,
    steps: int = 600,
    rank: int = 16,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> None:
    """Trains and scores; FOLDER gets the clips, the run, scores.json, before.png and after.png.

    Args:
      clips: how many to draw for training.
      prompts: how many of the held-out ones to score.
    """
    train, held_out = split(seed)
    data = draw_clips(folder / "clips", [train[i % len(train)] for i in range(clips)])
    base = cx.load(model)
    scores = {"before": evaluate(base, held_out[:prompts], folder / "before.png", seed)}
    options = commands.TrainOptions(
        data=str(data),
        out=str(folder / "run"),
        model=model,
        lora=LoRAConfig(rank=rank, targets=(*ATTENTION, "ff")),
        stage=StageSettings(steps=steps, batch_size=batch_size, learning_rate=learning_rate),
        run=RunConfig(seed=seed),
    )
    commands.train(options)
    scores["after"] = evaluate(cx.load_lora(base, folder / "run"), held_out[:prompts], folder / "after.png", seed)
    (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    print(json.dumps(scores, indent=2))


def split(seed: int) -> tuple[list[shapes.Scene], list[shapes.Scene]]:
    """Scenes of rings: those to train on, and a tenth that is held out."""
    scenes = shapes.scenes([shapes.RING])
    mixed = [scenes[i] for i in np.random.default_rng(seed).permutation(len(scenes))]
    return mixed[len(mixed) // 10 :], mixed[: len(mixed) // 10]


def draw_clips(folder: Path, scenes: list[shapes.Scene]) -> Path:
    """Draws a video file of each scene, where it is missing. Returns: the list of them, a .jsonl file."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, scene in enumerate(scenes):
        rng = np.random.default_rng((11, i))
        file = folder / f"{i:04d}.mp4"
        pixels, caption = shapes.draw(scene, rng), shapes.caption(scene, rng)
        if not file.exists():
            with VideoWriter(file, shapes.FPS) as writer:
                writer.write(pixels)
        rows.append(json.dumps({"video": file.name, "prompt": caption}))
    listed = folder / "clips.jsonl"
    listed.write_text("\n".join(rows) + "\n")
    return listed


def evaluate(model: cx.Model, scenes: list[shapes.Scene], picture: Path, seed: int) -> dict[str, float]:
    """The share of videos right in each part and in all four; the first ones as a picture, a row each."""
    marks, shown = [], []
    for start in range(0, len(scenes), BATCH):
        some = scenes[start : start + BATCH]
        video = cx.generate(model, [str(scene) for scene in some], seed=seed + start, progress=False)
        marks += [score(frames, scene) for frames, scene in zip(video.frames, some, strict=True)]
        shown.append(video.frames)
    Video(np.concatenate(shown)[:8], shapes.FPS).contact_sheet(9).save(picture)
    found = {part: sum(mark[part] for mark in marks) / len(marks) for part in PARTS}
    return found | {"all": sum(all(mark.values()) for mark in marks) / len(marks)}


if __name__ == "__main__":
    tyro.cli(main)
