"""`cogvx train` of CogVideo (2022), and `cogvx export` of such a run."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from cogvx_jax.configs import LoRAConfig
from cogvx_jax.storage import StoragePath, storage_path
from cogvx_jax.train.cogvideo2022.settings import CHANNEL, CodesRunConfig
from cogvx_jax.train.transformer.settings import Objective

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first. `options` are the
# `TrainOptions` of `cli.train`.
FRAMES = 33  # of a clip, where no other number is asked for: a video of the default depth


def train_cogvideo2022(options: Any) -> None:
    """Trains a temporal channel of such a model, its base as it is; --train full and --parts train other parameters."""
    from cogvx_jax.convert.cogvideo2022_folder import open_parts
    from cogvx_jax.pipelines.cogvideo2022.text import TextTokenizer
    from cogvx_jax.pipelines.cogvideo2022.weights import check_axes
    from cogvx_jax.sharding import parse_mesh
    from cogvx_jax.storage import check_folder_writable
    from cogvx_jax.train.checkpoint import newest_update
    from cogvx_jax.train.cogvideo2022.batches import cuts
    from cogvx_jax.train.cogvideo2022.beginning import begin, stage_of
    from cogvx_jax.train.cogvideo2022.run import TRAINS, train_codes
    from cogvx_jax.train.placement import check_batch
    from cogvx_jax.train.run_folder import check_folder, check_free, reached

    check_options(options)
    folder, config = storage_path(options.out), config_of(options)
    devices = None if options.mesh is None else parse_mesh(options.mesh)
    check_axes(devices)  # before clips are encoded
    check_batch(devices, options.stage.batch_size, options.stage.accumulate)
    parts = open_parts(options.model)
    tokenizer = TextTokenizer.read(
        parts.text_model, offset=next(iter(parts.stages.values())).codes, language=parts.beside.language
    )
    cfg = stage_of(parts, config.channel)
    cuts(cfg, options.frames or FRAMES)
    check_folder(folder, TRAINS)
    check_free(folder)
    check_folder_writable(folder)
    clips = _clips(options, parts, cfg.grid, folder)
    begins = begin(parts, config.channel, new=config.new_channel, seed=config.seed, mesh=devices)
    before = newest_update(folder)
    if begins.new and not before:
        print(f"cogvx: {options.model} has no {config.channel} channel, or a new one was asked for", file=sys.stderr)
    train_codes(
        begins,
        tokenizer,
        clips,
        options.stage,
        config,
        folder,
        source=str(Path(options.model).absolute()) if Path(options.model).exists() else options.model,
        dtype=options.dtype or "float32",
        remat=options.remat in ("block", "offload"),
        mesh=devices,
        pace=options.pace,
        command={"remat": options.remat, "mesh": options.mesh},
    )
    said = reached(before, options.stage.steps)
    print(f"{options.out}: {said}; `cogvx export {options.out} --out FOLDER` makes a model of it")


def check_options(options: Any) -> None:
    """Raises: ValueError for options of `cogvx train` that such a model does not have."""
    unknown = {
        "--controlnet": options.controlnet.start is not None,
        "what a LoRA adapts": options.lora != LoRAConfig(),
        "--stages": options.stages is not None,
        "--prompts": options.prompts is not None,
        "--size": options.size is not None,
        "--distributed": options.distributed,
        "--pack": options.stage.pack is not None,
        "--trained-dtype": options.run.trained_dtype != "float32",
        "what is random about the loss, but for --text-dropout": dataclasses.replace(
            options.run.objective, text_dropout=Objective().text_dropout
        )
        != Objective(),
    }
    if told := [name for name, given in unknown.items() if given]:
        raise ValueError(f"{options.model} is a CogVideo (2022), trained without {', '.join(told)}; leave it out")


def config_of(options: Any) -> CodesRunConfig:
    """The settings of the run. Training all of a model, first frames are learnt, too, which its base makes."""
    run, everything = options.run, options.train == "full"
    objective = dataclasses.replace(
        CodesRunConfig().objective, text_dropout=run.objective.text_dropout, first=1.0 if everything else 0.0
    )
    return CodesRunConfig(
        channel=options.cogvideo2022.channel,
        new_channel=options.cogvideo2022.new_channel,
        parts=("*",) if everything else options.parts or CHANNEL,
        objective=objective,
        optimizer=run.optimizer,
        weight_decay=run.weight_decay,
        average=run.average,
        validation=run.validation,
        seed=run.seed,
    )


def _clips(options: Any, parts: Any, grid: int, folder: StoragePath) -> Any:
    """Codes of the clips, made first where videos are given; they are made in the run's folder "cache"."""
    import jax
    import jax.numpy as jnp

    from cogvx_jax.convert.cogvideo2022_folder import read_images
    from cogvx_jax.data.layouts import read_sources
    from cogvx_jax.models.cogvideo2022.image_tokenizer import ImageTokenizer
    from cogvx_jax.train.cogvideo2022.codes import check_codes, is_code_cache, make_cache, open_codes

    assert options.data is not None
    given = storage_path(options.data)
    params = jax.tree.map(jnp.asarray, read_images(parts, parts.image_sizes))
    if is_code_cache(given):
        if options.frames is not None:
            raise ValueError(f"{options.data} holds codes already; leave out --frames")
        cache = open_codes(given)
        check_codes(cache, params, grid)
        return cache

    def report(line: str) -> None:
        print(f"cogvx: {line}" if line.startswith("skipped") else line, file=sys.stderr, flush=True)

    images, frames = ImageTokenizer(parts.image_sizes), options.frames or FRAMES
    sources = read_sources(Path(options.data))
    return make_cache(images, params, sources, folder / "cache", grid=grid, frames=frames, report=report)


def export_cogvideo2022(run: StoragePath, out: Path, best: bool) -> None:
    """Writes the model of a run; see `cogvx export`."""
    from cogvx_jax.train.cogvideo2022.trained import write_trained

    kept = write_trained(run, out, best=best)
    print(f"{out}: CogVideo (2022) as {run} trained it, with {', '.join(kept)}")
