"""Teaches a ControlNet to lead `tiny` by outlines: where a shape is, how large, and how it moves.

    python -m cogvx_jax.scripts.controlnet_tiny --folder runs/outlines

Draws clips and their outlines to video files, trains on them as `cogvx train --controlnet new` does, and measures two
things of held-out clips: the loss with their outlines, without, and with another clip's; and how much of their shapes
the videos cover that follow their outlines, and those that do not. A run that was stopped goes on where it stood.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import cogvx_jax as cx
from cogvx_jax.cli import train as commands
from cogvx_jax.data.video import Video, VideoWriter, to_model_pixels
from cogvx_jax.models import vae as vaes
from cogvx_jax.pipelines.text import encode_prompts
from cogvx_jax.tiny import shapes
from cogvx_jax.tiny.judge import score
from cogvx_jax.train.transformer.controlled_objective import make_controlled_errors
from cogvx_jax.train.transformer.objective import make_errors
from cogvx_jax.train.transformer.settings import NEW, ControlNetTraining, Objective, RunConfig, StageSettings

SHOWN = 4  # held-out clips in the picture
TIMESTEPS = (999, 900, 800, 700, 500)
PLAIN = Objective(text_dropout=0.0)
EDGE = 60.0  # levels a pixel from which on there is an outline


def main(
    folder: Path = Path("runs/outlines"),
    model: str = "tiny",
    clips: int = 600,
    prompts: int = 24,
    steps: int = 2000,
    layers: int = 3,
    batch_size: int = 4,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> None:
    """Trains and measures; FOLDER gets the clips, the run, scores.json and outlines.png.

    Args:
      clips: how many to draw for training.
      prompts: how many held-out clips to measure with.
    """
    train, held_out = shapes.split()
    order = np.random.default_rng(seed).permutation(len(train))
    data = draw_clips(folder / "clips", [train[order[i % len(train)]] for i in range(clips)])
    options = commands.TrainOptions(
        data=str(data),
        out=str(folder / "run"),
        model=model,
        controlnet=ControlNetTraining(start=NEW, layers=layers),
        stage=StageSettings(steps=steps, batch_size=batch_size, learning_rate=learning_rate),
        run=RunConfig(seed=seed),
    )
    commands.train(options)
    loaded = cx.load(model)
    net = cx.load_controlnet(folder / "run", loaded)
    scenes = held_out[:: len(held_out) // prompts][:prompts]
    scores: dict[str, Any] = {"loss": losses(loaded, net, scenes)}
    scores |= follow(loaded, net, scenes, folder / "outlines.png", seed)
    (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    print(json.dumps(scores, indent=2))


def draw_clips(folder: Path, scenes: Sequence[shapes.Scene]) -> Path:
    """Draws a video file of each scene and of its outlines, where it is missing. Returns: the list of them, .jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, scene in enumerate(scenes):
        rng = np.random.default_rng((13, i))
        files = [folder / f"{i:04d}.mp4", folder / f"{i:04d}-outline.mp4"]
        pixels, caption = shapes.draw(scene, rng), shapes.caption(scene, rng)
        for file, frames in zip(files, (pixels, outlines(pixels)), strict=True):
            if not file.exists():
                with VideoWriter(file, shapes.FPS) as writer:
                    writer.write(frames)
        rows.append(json.dumps({"video": files[0].name, "control": files[1].name, "prompt": caption}))
    listed = folder / "clips.jsonl"
    listed.write_text("\n".join(rows) + "\n")
    return listed


def outlines(frames: np.ndarray) -> np.ndarray:
    """White where colours change from pixel to pixel, on black: (F, H, W, 3) uint8, of the same."""
    video = np.asarray(frames, np.float32)
    down = np.diff(video, axis=1, append=video[:, -1:])
    right = np.diff(video, axis=2, append=video[:, :, -1:])
    slope = np.sqrt((down**2 + right**2).sum(-1))
    return np.repeat(np.where(slope >= EDGE, np.uint8(255), np.uint8(0))[..., None], 3, axis=-1)


def losses(model: cx.Model, net: cx.ControlNet, scenes: Sequence[shapes.Scene]) -> dict[str, dict[str, float]]:
    """Losses of drawn clips by timestep: with their outlines, without a ControlNet, with another clip's outlines."""
    clips = np.stack([drawn_clip(scene, i) for i, scene in enumerate(scenes)])
    encode = jax.jit(lambda params, pixels: vaes.encode(model.vae, params, pixels))
    params = net.on(model.mesh, "float32")
    batch = {
        "moments": encode(model.params["vae"], to_model_pixels(clips, *clips.shape[2:4])),
        "text": encode_prompts(model, [str(scene) for scene in scenes]),
        "control": np.stack([outlines(clip) for clip in clips]),
        "base": model.params["transformer"],
    }
    draw, errors = make_controlled_errors(model.spec, model.compute, PLAIN, lambda base, _: base, net.cfg)
    alone = make_errors(model.spec, model.compute)

    @jax.jit
    def measured(params, batch, t):
        rows = draw(batch, jax.random.key(1), t)
        other = rows | {"control": jnp.roll(rows["control"], 1, axis=0)}
        found = errors(params, rows, batch), alone(batch["base"], rows), errors(params, other, batch)
        return [x.mean() for x in found]

    ways = ("with", "without", "another's")
    found = {t: measured(params, batch, jnp.full(len(clips), t)) for t in TIMESTEPS}
    return {str(t): {way: float(x) for way, x in zip(ways, of, strict=True)} for t, of in found.items()}


def drawn_clip(scene: shapes.Scene, number: int) -> np.ndarray:
    """The held-out clip of a number, (F, H, W, 3) uint8."""
    return shapes.draw(scene, np.random.default_rng((17, number)))


def follow(
    model: cx.Model, net: cx.ControlNet, scenes: Sequence[shapes.Scene], picture: Path, seed: int
) -> dict[str, dict[str, float]]:
    """Figures of `compare`, by ways of making the videos; the first clips as a picture.

    Each clip has four rows there: drawn, its outlines, the video that follows them, and one of the same noise that
    does not.
    """
    marks: dict[str, list[dict[str, float]]] = {"with": [], "without": []}
    rows = []
    for i, scene in enumerate(scenes):
        drawn = drawn_clip(scene, i)
        control = outlines(drawn)
        asked: dict[str, dict[str, Any]] = {"with": dict(controlnet=net, control=control), "without": {}}
        made = {}
        for way, options in asked.items():
            made[way] = cx.generate(model, str(scene), seed=seed + i, progress=False, **options).frames[0]
            marks[way].append(compare(made[way], drawn, scene))
        rows += [drawn, control, made["with"], made["without"]] if i < SHOWN else []
    Video(np.stack(rows), shapes.FPS).contact_sheet(9).save(picture)
    return {way: {name: float(np.mean([m[name] for m in of])) for name in of[0]} for way, of in marks.items()}


def compare(frames: np.ndarray, drawn: np.ndarray, scene: shapes.Scene) -> dict[str, float]:
    """How a video (F, H, W, 3) uint8 follows a drawn one.

    iou: of the pixels that the shape covers in both, the share of those it covers in either, a mean over frames;
    centre: distance in pixels of its centres, a mean over frames; right: whether it shows the scene in all four parts.
    """
    ours, theirs = covered(frames, scene), covered(drawn, scene)
    either = np.maximum((ours | theirs).sum((1, 2)), 1)
    apart = [np.hypot(*(_centre(a) - _centre(b))) for a, b in zip(ours, theirs, strict=True)]
    return {
        "iou": float(((ours & theirs).sum((1, 2)) / either).mean()),
        "centre": float(np.mean(apart)),
        "right": float(all(score(frames, scene).values())),
    }


def covered(frames: np.ndarray, scene: shapes.Scene) -> np.ndarray:
    """(F, H, W) bool, pixels nearer to the colour of the scene's shape than to its background's."""
    colour, background = (np.array(shapes.PALETTE[name], np.float32) for name in (scene.colour, scene.background))
    axis = colour - background
    return (np.asarray(frames, np.float32) - background) @ axis / (axis @ axis) > 0.5


def _centre(mask: np.ndarray) -> np.ndarray:
    """Row and column of a mask's middle; that of the picture where it is empty."""
    places = np.argwhere(mask)
    return places.mean(0) if len(places) else np.array(mask.shape) / 2


if __name__ == "__main__":
    tyro.cli(main)
