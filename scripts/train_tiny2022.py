"""Trains `tiny2022` from nothing: a small CogVideo (2022) of the drawn world.

    python -m cogvx_jax.scripts.train_tiny2022 --folder runs/tiny2022

Every part goes on from its newest checkpoint, and a finished one is skipped: the same command resumes a run.
"""

import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from cogvx_jax.convert.cogvideo2022_folder import CLUSTERS, TEXT, write_shared
from cogvx_jax.convert.cogvideo2022_made import made_parts
from cogvx_jax.convert.cogvideo2022_sizes import Beside
from cogvx_jax.models.cogvideo2022.configs import ImageTokenizerConfig
from cogvx_jax.models.cogvideo2022.image_tokenizer import ImageTokenizer
from cogvx_jax.models.cogvideo2022.transformer import of_base
from cogvx_jax.pipelines.cogvideo2022.text import FIRST_SUFFIX, GUIDE, TextTokenizer
from cogvx_jax.scripts.eval_tiny import PARTS
from cogvx_jax.scripts.eval_tiny2022 import THREE
from cogvx_jax.tiny import shapes
from cogvx_jax.tiny.tokenizer import word_model
from cogvx_jax.train import optim
from cogvx_jax.train.cogvideo2022.batches import InMemory
from cogvx_jax.train.cogvideo2022.beginning import Beginning, from_nothing, new_channel, new_stage
from cogvx_jax.train.cogvideo2022.pictures import Components, PictureObjective, clusters, picture_loss
from cogvx_jax.train.cogvideo2022.run import train_codes
from cogvx_jax.train.cogvideo2022.settings import PICTURES, CodesObjective, CodesRunConfig
from cogvx_jax.train.loop import Input, Update, run_updates
from cogvx_jax.train.pace import Pace
from cogvx_jax.train.progress import Span
from cogvx_jax.train.transformer.settings import StageSettings

SIZE, EDGE = 32, 1.5  # pixels of a picture's side, and of a soft edge
# 512 patches of 4x4 pixels are enough: of 112 clips whose patches were each the mean of their cluster, the judge read
# all right. Of 16 codes a frame, at rate 8, and codes learnt with the networks it read 5%.
IMAGES = ImageTokenizerConfig(
    codes=512,
    code_width=16,
    channels=16,
    encoder=(1, 2, 4),
    encoder_blocks=1,
    decoders=((4, (1, 2, 4)),),
    groups=4,
)
GRID = SIZE // IMAGES.rate


PICTURE_STEPS, PICTURES_AT_ONCE = 5000, 8
PICTURES_SEEN = 4096  # before training, for what codes there are
PACE = Pace(save_every=100)
CLIPS, FRAMES = 12096, 9  # eight of every training scene; as many are of hard ones
PIECES = ("<n>", f"▁{FIRST_SUFFIX.strip()}", f"▁{GUIDE}", *(f"▁{4.0 / 2**depth}秒" for depth in range(5)))
SIZES: dict[str, Any] = dict(
    layers=3,
    heads=4,
    head_dim=32,
    codes=IMAGES.codes,
    vocab=IMAGES.codes + 96,
    start_of_image=IMAGES.codes + 85,
    grid=GRID,
    first_position=80,
    base_positions=80 + GRID**2,
    text_length=16,
)
SEQUENTIAL, INTERPOLATION = new_stage("sequential", SIZES), new_stage("interpolation", SIZES)
PICTURES_FIRST = CodesObjective(first=1.0, later=0.0)
BOTH = CodesObjective(first=0.5, later=1.0)


class Turn(NamedTuple):
    """A stage of training. `hard`: half of the clips show stars and what spins, of which most errors were."""

    stage: StageSettings
    config: CodesRunConfig
    hard: bool = False


# The base alone learns first frames from their captions, then base and channel learn together, and all that once
# more; then together for long. That is how the shipped weights came about, of which the first two stages saw the first
# half of the clips alone. The second channel learns beside that base, which stays as it is.
SEQUENTIAL_STAGES = (
    Turn(
        StageSettings(steps=1500, batch_size=32, learning_rate=3e-3, warmup=100),
        CodesRunConfig(parts=PICTURES, objective=PICTURES_FIRST, optimizer="muon"),
    ),
    Turn(
        StageSettings(steps=1600, batch_size=16, learning_rate=2e-3, warmup=50, schedule="cosine"),
        CodesRunConfig(parts=("*",), objective=BOTH, optimizer="muon", seed=1),
    ),
    Turn(
        StageSettings(steps=2500, batch_size=32, learning_rate=6e-3, warmup=100, schedule="cosine"),
        CodesRunConfig(parts=PICTURES, objective=PICTURES_FIRST, optimizer="muon", seed=3),
    ),
    Turn(
        StageSettings(steps=1000, batch_size=16, learning_rate=3e-3, warmup=100, schedule="cosine"),
        CodesRunConfig(parts=("*",), objective=BOTH, optimizer="muon", seed=4),
    ),
    Turn(
        StageSettings(steps=2500, batch_size=16, learning_rate=3e-3, warmup=100, schedule="cosine"),
        CodesRunConfig(parts=("*",), objective=BOTH, optimizer="muon", seed=5),
    ),
    Turn(
        StageSettings(steps=1500, batch_size=16, learning_rate=2e-3, warmup=50, schedule="cosine"),
        CodesRunConfig(parts=("*",), objective=BOTH, optimizer="muon", seed=6),
        hard=True,
    ),
)
INTERPOLATION_STAGE = Turn(
    StageSettings(steps=350, batch_size=16, learning_rate=3e-3, warmup=50, schedule="cosine"),
    CodesRunConfig(channel="interpolation", optimizer="muon", seed=2),
    hard=True,
)
SETTINGS: dict[str, Any] = {
    "depth": 1,
    "first": {"clusters": 3, "temperature": 0.5, "inner": 1.0},
    "frames": {"clusters": 3, "temperature": 0.8, "inner": 1.0},
    "guidance": None,
    "text_bias": 0.0,
    "training_mask": True,
}


def main(folder: Path = Path("runs/tiny2022")) -> None:
    """Trains what is not yet trained below `folder`, and writes the model to `folder`/model.

    Args:
      folder: where checkpoints, logs, codes and the result go.
    """
    patches, codebook = patches_and_codebook()
    images = train_pictures(folder / "pictures", patches, codebook)
    tokenizer = write_small_files(folder / "small")
    scenes, _ = shapes.split()
    clips = drawn_codes(folder / "codes.npz", scenes, patches, codebook)
    hard = [scene for scene in scenes if scene.shape == "star" or scene.motion == "spins"]
    harder = together(clips, drawn_codes(folder / "hard.npz", hard, patches, codebook))
    sequential = from_nothing(SEQUENTIAL, 0)
    for number, turn in enumerate(SEQUENTIAL_STAGES):
        seen = harder if turn.hard else clips
        params = train_stage(folder / f"sequential_{number}", sequential, tokenizer, seen, turn)
        sequential = sequential._replace(params=params)
    base = {path: x for path, x in flatten_dict(sequential.params, sep="/").items() if of_base(path)}
    new = unflatten_dict(new_channel(INTERPOLATION, base, 1), sep="/")
    begins = Beginning(INTERPOLATION, new, True)
    interpolation = train_stage(folder / "interpolation", begins, tokenizer, harder, INTERPOLATION_STAGE)
    write_model(folder, images, sequential.params, interpolation)


def train_stage(
    folder: Path, begins: Beginning, tokenizer: TextTokenizer, clips: InMemory, turn: Turn
) -> dict[str, Any]:
    """All parameters after one stage, by the engine of `cogvx train`."""
    return train_codes(begins, tokenizer, clips, turn.stage, turn.config, folder, source="train_tiny2022", pace=PACE)


def write_model(folder: Path, images: Any, sequential: Any, interpolation: Any) -> None:
    """FOLDER/model, in 16 bit."""
    stages = {
        "sequential": (SEQUENTIAL, flatten_dict(dict(sequential), sep="/")),
        "interpolation": (INTERPOLATION, flatten_dict(dict(interpolation), sep="/")),
    }
    beside = Beside(images=IMAGES, language="English", settings=SETTINGS)
    made = made_parts(folder / "small", stages, flatten_dict(images, sep="/"), beside, "float16")
    shutil.rmtree(folder / "model", ignore_errors=True)
    write_shared(made, folder / "model")
    (folder / "model" / "README.md").write_text(card(folder))


def card(folder: Path) -> str:
    """The model card, with a summary of the logged curves and, where it is there, of `eval.json`."""
    rows = ["| part | updates | loss at the beginning | at half | at the end |", "|---|---|---|---|---|"]
    for log in sorted(folder.glob("*/log.jsonl")):
        curve = [json.loads(line) for line in log.read_text().splitlines()]
        losses = " | ".join(f"{curve[i]['loss']:.3f}" for i in (0, len(curve) // 2, -1))
        rows.append(f"| {log.parent.name} | {curve[-1]['step']} | {losses} |")
    curves, measured = "\n".join(rows), "not measured yet."
    if (folder / "eval.json").exists():
        found = json.loads((folder / "eval.json").read_text())
        parts = ", ".join(f"{part} {found[part]:.1%}" for part in PARTS)
        measured = f"of {found['prompts']} held-out prompts {found[THREE]:.1%} are right in {THREE} ({parts})."
    return f"""---
license: apache-2.0
library_name: cogvx_jax
---
# tiny2022

A CogVideo (2022) small enough to ship: {SIZE}x{SIZE}, 9 frames in 4 seconds, for prompts of the grammar
`a {{colour}} {{shape}} {{motion}} on a {{colour}} background` (`cogvx_jax/tiny/shapes.py`). Its parts are those of the
published system but for super-resolution; only sizes differ.

Made by `python -m cogvx_jax.scripts.train_tiny2022` on two CPU cores from clips that `tiny/shapes.py` draws. 224 of the
1736 combinations are held out of all training. Codes are clusters of patches; the image tokenizer learns them and what
they show. The base learns first frames of {CLIPS} clips, then base and first channel learn together; both turns come
again, and the last is long. At its end half of the clips show stars or what spins. The second channel learns beside
that base, which stays as it is.

`python -m cogvx_jax.scripts.eval_tiny2022`: {measured}

{curves}

Words outside the grammar are spelled out in letters and mean nothing to the model.
"""


def write_small_files(folder: Path) -> TextTokenizer:
    """The text tokenizer, and a table in which each code is a cluster of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TEXT).write_bytes(word_model(PIECES))
    np.save(folder / CLUSTERS, np.arange(IMAGES.codes))
    return TextTokenizer.read(folder / TEXT, offset=IMAGES.codes, language="English")


# Codes.


def drawn_codes(file: Path, scenes: Sequence[shapes.Scene], patches: Components, codebook: Any) -> InMemory:
    """Codes of drawn clips, clip i showing scene i mod their number: (CLIPS, FRAMES, n)."""
    if not file.exists():
        nearest = jax.jit(
            functools.partial(ImageTokenizer(IMAGES).apply, {"params": {"codebook": codebook}}, method="nearest")
        )
        found = []
        for i in range(CLIPS):
            clip = drawn(scenes[i % len(scenes)], np.random.default_rng((3, i)), FRAMES)
            codes = nearest(patches.features(np.float32(clip) / 255))
            found.append(np.asarray(codes, np.int16).reshape(FRAMES, -1))
        with open(file.with_suffix(".part"), "wb") as part:
            np.savez(part, codes=np.stack(found))
        file.with_suffix(".part").rename(file)
    with np.load(file) as stored:
        codes = stored["codes"]
    captions = [shapes.caption(scenes[i % len(scenes)], np.random.default_rng((4, i))) for i in range(CLIPS)]
    return InMemory(codes.astype(np.int32), captions, where=file.name)


def together(some: InMemory, others: InMemory) -> InMemory:
    """All clips of both."""
    both = np.concatenate([some.array, others.array])
    return InMemory(both, [*some.prompts, *others.prompts], where=f"{some.where}, {others.where}")


# The image tokenizer.


def patches_and_codebook() -> tuple[Components, np.ndarray]:
    """What the features of a patch are, and the codes (codes, C): those of drawn pictures."""
    rng = np.random.default_rng(2)
    pixels = draw_pictures(rng, shapes.split()[0], PICTURES_SEEN).astype(np.float32) / 255
    patches = Components.of(pixels, IMAGES.rate, IMAGES.code_width)
    features = np.unique(patches.features(pixels).reshape(-1, IMAGES.code_width), axis=0)  # most are of one colour
    return patches, clusters(features, IMAGES.codes, rng)


def train_pictures(folder: Path, patches: Components, codebook: np.ndarray) -> Any:
    """The image tokenizer's averaged parameters."""
    network, scenes = ImageTokenizer(IMAGES), shapes.split()[0]
    begin = jax.jit(lambda key: nn.unbox(network.init(key, jnp.zeros((1, 16, 16, 3))))["params"])

    def batches(step: int) -> np.ndarray:
        return draw_pictures(np.random.default_rng((1, step)), scenes, PICTURES_AT_ONCE)

    def loss(params: Any, pixels: jax.Array, key: jax.Array) -> jax.Array:
        return picture_loss(
            PictureObjective(), network, patches, params | {"codebook": codebook}, pixels.astype(jnp.float32) / 255
        )

    params = {path: x for path, x in begin(jax.random.key(0)).items() if path != "codebook"}
    update = Update(loss=loss, tx=optim.adamw(2e-3, PICTURE_STEPS, warmup=PICTURE_STEPS // 100), decay=0.99)
    trained = run_updates(params, Input(batches=batches), update, Span(steps=PICTURE_STEPS), folder, seed=0, pace=PACE)
    return trained.exported | {"codebook": jnp.asarray(codebook)}


def draw_pictures(rng: np.random.Generator, scenes: list[shapes.Scene], count: int) -> np.ndarray:
    """Frames from anywhere in drawn clips, (B, H, W, 3) uint8."""
    chosen = (drawn(scenes[rng.integers(len(scenes))], rng, 5) for _ in range(count))
    return np.stack([clip[rng.integers(len(clip))] for clip in chosen])


def drawn(scene: shapes.Scene, rng: np.random.Generator, frames: int) -> np.ndarray:
    """A clip of the model's size, (F, H, W, 3) uint8."""
    return shapes.draw(scene, rng, size=SIZE, frames=frames, edge=EDGE)


if __name__ == "__main__":
    tyro.cli(main)
