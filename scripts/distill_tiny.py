"""Teaches `tiny`, by LoRA, to make its videos in 4 unguided evaluations of the transformer in place of 40.

    python -m cogvx_jax.scripts.distill_tiny --folder runs/tiny-fast

Draws clips to video files, trains on them as `cogvx distill` does, writes FOLDER/fast.safetensors and has the judge
score held-out prompts with it and without, from the same noise. A run that was stopped goes on where it stood. The
file ships as `cogvx_jax/assets/tiny/fast.safetensors`; where `tiny` is trained anew, so must it be.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro

import cogvx_jax as cx
from cogvx_jax.cli import distill as commands
from cogvx_jax.configs import ATTENTION, LoRAConfig
from cogvx_jax.convert import write_lora
from cogvx_jax.pipelines.lora import find_lora
from cogvx_jax.scripts.eval_tiny import judge_videos
from cogvx_jax.scripts.finetune_tiny import draw_clips
from cogvx_jax.tiny import shapes
from cogvx_jax.train.transformer.settings import Distillation, StageSettings

# Ways beside the LoRA's own, which is 4 unguided steps: whether with the LoRA, and options of `generate`.
WAYS: Mapping[str, tuple[bool, dict[str, Any]]] = {
    "LoRA, 4 unguided steps": (True, {}),
    "LoRA, 8 unguided steps": (True, {"num_inference_steps": 8}),
    "4 unguided steps": (False, {"num_inference_steps": 4, "guidance_scale": 1.0}),
    "4 guided steps": (False, {"num_inference_steps": 4}),
    "8 guided steps": (False, {"num_inference_steps": 8}),
    "20 guided steps": (False, {}),
}


def main(
    folder: Path = Path("runs/tiny-fast"),
    clips: int = 1512,
    steps: int = 400,
    batch_size: int = 4,
    rank: int = 32,
    learning_rate: float = 1.5e-3,
    prompts: int = 200,
    seed: int = 0,
) -> None:
    """Trains, exports and scores; FOLDER gets the clips, the run, fast.safetensors and scores.json.

    Args:
      clips: how many to draw for training; no scene of them is judged.
      prompts: how many of the held-out ones to score; 0 scores none.
    """
    train, _ = shapes.split()
    options = commands.DistillOptions(
        data=str(draw_clips(folder / "clips", [train[i % len(train)] for i in range(clips)])),
        out=str(folder / "run"),
        distill=Distillation(method="progressive", student_steps=4, teacher_steps=8, loss="squared"),
        lora=LoRAConfig(rank=rank, targets=(*ATTENTION, "ff")),
        stage=StageSettings(steps=steps, batch_size=batch_size, learning_rate=learning_rate, warmup=20),
    )
    commands.distill(options)
    base = cx.load("tiny")
    fast, file = find_lora(folder / "run", base.spec), folder / "fast.safetensors"
    file.unlink(missing_ok=True)
    write_lora(file, fast, base.spec, dtype="float16")
    tuned, scores = cx.load_lora(base, file), {}
    for name, (with_lora, how) in WAYS.items() if prompts else ():
        print(name, flush=True)
        scores[name] = judge_videos(tuned if with_lora else base, prompts, 20, seed, how).figures()
        (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
