"""A run that trains a model's VAE on videos: a folder with its settings, its curve and its checkpoints.

RUN/run.json      the settings; going on with others is refused
RUN/log.jsonl     the terms of the loss and the pace; scores of clips that are not trained on
RUN/checkpoints/  state of the newest updates: VAE, adversary, their average, both optimizers
RUN/best/         state of the lowest loss of those clips
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh

from cogvx_jax.convert import expected_shapes, read_lpips
from cogvx_jax.convert.runs import read_exported, read_run
from cogvx_jax.data.clips import Source, read_clip
from cogvx_jax.data.random_clips import RandomClips
from cogvx_jax.metrics import flicker, psnr, ssim
from cogvx_jax.metrics.lpips import LPIPS
from cogvx_jax.models.discriminator import Discriminator
from cogvx_jax.models.vae import VAE
from cogvx_jax.pipelines.model import Model
from cogvx_jax.sharding import activate, everywhere, params_digest, replicate
from cogvx_jax.storage import StoragePath
from cogvx_jax.train.checkpoint import newest_update
from cogvx_jax.train.clips.held_out import hold_out
from cogvx_jax.train.loop import Input, Update, run_updates
from cogvx_jax.train.optim import schedule
from cogvx_jax.train.pace import Pace
from cogvx_jax.train.placement import Placement, check_batch, names
from cogvx_jax.train.progress import Span, Watch
from cogvx_jax.train.run_folder import check_same, ends, used, write
from cogvx_jax.train.step import Gradient, State
from cogvx_jax.train.vae.objective import distance_of, likeness, make_gradient, reconstruct, to_signed
from cogvx_jax.train.vae.record import describe, modern
from cogvx_jax.train.vae.settings import VAEObjective, VAERunConfig, VAEStageSettings
from cogvx_jax.train.vae.stages import VAEStage

KEYS = {"trains", "source", "vae", "decoder_only", "dtype"}  # of run.json, what reading a run needs


def make_optimizer(config: VAERunConfig, stage: VAEStageSettings, start: int = 0) -> optax.GradientTransformation:
    """AdamW for the VAE, Adam of GANs (betas 0.5 and 0.9) for the adversary, which begins when that does.

    Args:
      start: the update at which the stage begins. What the optimizer keeps does not depend on it.
    """

    def rate(peak: float, start: int) -> optax.ScalarOrSchedule:
        # Without a warmup the optimizer counts no updates; see `_check_warmup`.
        return schedule(peak, None, warmup=stage.warmup, start=start) if stage.warmup else peak

    clip = optax.clip_by_global_norm(1.0)
    adamw = optax.adamw(rate(stage.learning_rate, start), b1=0.9, b2=0.95, weight_decay=config.weight_decay)
    parts = {"vae": optax.chain(clip, adamw)}
    begins = config.objective.discriminator_start
    if begins is not None:
        adam = optax.chain(clip, optax.adam(rate(config.discriminator_rate, 0), b1=0.5, b2=0.9))
        parts["discriminator"] = optax.conditionally_mask(adam, lambda updates: updates >= begins)
    return optax.partition(parts, {name: name for name in parts})


def train_vae(
    model: Model,
    stages: tuple[VAEStage, ...],
    sources: Sequence[Sequence[Source]],
    config: VAERunConfig,
    folder: StoragePath,
    *,
    source: str,
    lpips: Path | None = None,
    remat: bool = False,
    pace: Pace = Pace(),  # noqa: B008
    command: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = print,
) -> Model:
    """Trains the model's VAE, or its decoder, through all stages, on the model's mesh.

    It goes on from the run's newest checkpoint if there is one, whatever mesh that was made on. Of several processes,
    each reads whole batches.

    Args:
      model: of its components, only the VAE is needed.
      sources: the videos of each stage; captions are not used.
      source: what the model was loaded from; it is noted in the run.
      lpips: the file for `read_lpips`; None leaves that term out.
      remat: compute each frame batch anew in the backward pass, which saves memory.
      command: options that change no number; noted in the run, so that it can be repeated.
    Returns: the model with the moving average of what was trained.
    Raises: ValueError, before anything is compiled, for a run with other settings, videos of which none can be used,
      a batch that the mesh cannot split, a wrong file of LPIPS, or a folder in use; and where too many numbers are not
      finite.
    """
    stages = tuple(stage.sized(model.spec.defaults) for stage in stages)
    if model.spec.vae.taehv:
        raise ValueError(f"{model.spec.name} has the tiny autoencoder of taehv, which is not trained; load its own VAE")
    _check_warmup(stages)
    for stage in stages:
        check_batch(model.mesh, stage.batch_size)
    run = _begin(model, config, lpips, remat)
    facts = describe(model, config, stages, sources, source, run.fixed.get("lpips")) | {
        "command": {**dataclasses.asdict(pace), **(command or {})}
    }
    check_same(folder, facts, modern)
    clips = [_clips(stage, of, config, report) for stage, of in zip(stages, sources, strict=True)]
    with used(folder):
        done = newest_update(folder)
        if done < ends(stages)[-1] or not done:
            write(folder, facts)
        for number, end in enumerate(ends(stages)[:-1]):
            if done < end:
                _run_stage(run, stages, number, clips[number], folder, pace)  # the next one reads the checkpoint
        state = _run_stage(run, stages, len(stages) - 1, clips[-1], folder, pace)
        return _with(model, state.exported["vae"])


def _check_warmup(stages: Sequence[VAEStage]) -> None:
    if len({stage.warmup > 0 for stage in stages}) > 1:
        raise ValueError("warmup must be 0 in all stages or in none: what the optimizer keeps depends on it")


@dataclasses.dataclass(frozen=True)
class _Run:
    """What all stages of a run have in common."""

    config: VAERunConfig
    vae: VAE
    network: LPIPS | None
    discriminator: Discriminator | None
    params: Any
    fixed: Mapping[str, Any]  # added to each batch
    placement: Placement
    remat: bool


@dataclasses.dataclass(frozen=True)
class _Clips:
    """Of a stage: clips to train on, and those (F, H, W, 3) uint8 to validate with."""

    drawn: RandomClips
    held_out: list[np.ndarray]


def _begin(model: Model, config: VAERunConfig, lpips: Path | None, remat: bool) -> _Run:
    mesh, vae, discriminator = model.mesh, model.vae, None
    network, weights = (None, None) if lpips is None else read_lpips(lpips)
    if config.whole_clips:
        vae = VAE(dataclasses.replace(vae.cfg, encode_frames=None, decode_frames=None), vae.compute)
    moving, frozen = _split(jax.tree.map(jnp.asarray, model.params["vae"]), config.decoder_only)
    params, fixed = {"vae": moving}, {"frozen": frozen}
    if config.objective.discriminator_start is not None:
        discriminator = Discriminator(config.discriminator)
        begin = jax.jit(lambda key: nn.unbox(discriminator.init(key, jnp.zeros((1, 1, 16, 16, 3))))["params"])
        params["discriminator"] = jax.tree.map(lambda x: replicate(x, mesh), begin(jax.random.key(config.seed)))
    if weights is not None:
        _check_finite(weights, lpips)
        fixed["lpips"] = jax.tree.map(lambda x: replicate(x, mesh), weights)
    return _Run(config, vae, network, discriminator, params, fixed, Placement(mesh), remat)


def _check_finite(weights: Any, file: Any) -> None:
    for path, x in jax.tree.leaves_with_path(weights):
        if not np.isfinite(x).all():
            raise ValueError(f"{file}: {'/'.join(names(path))} holds numbers that are not finite")


def _clips(stage: VAEStage, sources: Sequence[Source], config: VAERunConfig, report: Callable[[str], None]) -> _Clips:
    trained, held_out = split_videos(sources, config.validation)
    shape: dict[str, Any] = {"frames": stage.frames, "height": stage.height, "width": stage.width}
    drawn = RandomClips(trained, fps=stage.fps, report=report, **shape)
    drawn.batch(1, (config.seed, 0))  # one that can be used, before anything is written
    return _Clips(drawn, _read_held_out(held_out, stage.fps[0], shape, report))


def _run_stage(
    run: _Run, stages: Sequence[VAEStage], number: int, clips: _Clips, folder: StoragePath, pace: Pace
) -> State:
    config, stage, mesh = run.config, stages[number], run.placement.mesh
    end = ends(stages)[number]
    gradient = make_gradient(config.objective, run.vae, run.network, run.discriminator, remat=run.remat)
    validate = None
    if clips.held_out:
        validate = make_validate(config.objective, run.vae, run.network, clips.held_out, run.fixed, mesh)
    return run_updates(
        run.params,
        Input(
            batches=functools.partial(
                _read, clips.drawn, stage.batch_size, end - stage.steps, (config.seed, number + 1)
            ),
            fixed=run.fixed,
        ),
        Update(
            loss=Gradient(run.placement.compute(gradient.of)),
            tx=make_optimizer(config, stage, end - stage.steps),
            decay=config.average,
        ),
        Span(steps=end, start=end - stage.steps, end=ends(stages)[-1]),
        folder,
        seed=config.seed,
        pace=pace,
        placement=run.placement,
        watch=Watch(validate=validate, about={"stage": number + 1} if len(stages) > 1 else {}),
    )


def make_validate(
    objective: VAEObjective,
    vae: VAE,
    network: LPIPS | None,
    clips: Sequence[np.ndarray],
    fixed: Mapping[str, Any],
    mesh: Mesh | None,
) -> Callable[[Any], dict[str, float]]:
    """`validate(average) -> scores`, means over clips (F, H, W, 3) uint8 of their reconstructions from the mode.

    "loss" is that of training without KL and adversary; beside it the terms, PSNR and SSIM of pixels clipped to their
    range, and the flicker of the reconstruction and of the clip, 0..255.
    """
    every_frame = dataclasses.replace(objective, lpips_frames=None)

    @functools.partial(jax.jit, out_shardings=everywhere(mesh))
    def score(params, batch):
        with activate(mesh):
            pixels = to_signed(batch["pixels"])
            found, _ = reconstruct(vae, batch["frozen"] | params["vae"], pixels, None)
            found = jnp.clip(found, -1, 1)
            loss, terms = likeness(every_frame, found, pixels, distance_of(network, batch), jax.random.key(0))
            scores = {"loss": loss} | terms | {"psnr": jnp.mean(psnr(found, pixels, peak=2))}
            scores["ssim"] = jnp.mean(ssim(found, pixels, peak=2))
            if pixels.shape[1] > 1:
                scores |= {"flicker": flicker(found, peak=2)[0], "flicker_of_clips": flicker(pixels, peak=2)[0]}
            return scores

    def validate(average: Any) -> dict[str, float]:
        each = [score(average, Placement(mesh).batch({"pixels": clip[None]}) | dict(fixed)) for clip in clips]
        return {name: float(np.mean([scores[name] for scores in each])) for name in each[0]}

    return validate


def split_videos(sources: Sequence[Source], amount: float) -> tuple[list[Source], list[Source]]:
    """The videos to train on, and those to validate with, by the names of their files; see `held_out.hold_out`."""
    unique = {str(source.video): source for source in sources}  # one with several captions is one video
    chosen = hold_out(unique, amount, name=lambda key: Path(key).name)  # wherever their folder lies
    return [s for key, s in unique.items() if key not in chosen], [s for key, s in unique.items() if key in chosen]


def read_vae(folder: StoragePath, model: Model, *, best: bool = False, scaling_factor: float | None = None) -> Model:
    """The model that a run was begun with, with the VAE that the run trained.

    Args:
      best: of the lowest validation loss, not of the newest checkpoint.
      scaling_factor: of the new latents; None keeps the model's.
    Raises: ValueError for a run without such a checkpoint, or one begun with another VAE.
    """
    facts = read_run(folder, KEYS, "train-vae")
    if facts["vae"] != params_digest(model.params["vae"]):
        raise ValueError(f"{folder} was trained from another VAE than that of this {model.spec.name}")
    flat = {path: jax.ShapeDtypeStruct(s, "float32") for path, s in expected_shapes(model.spec, "vae").items()}
    like, _ = _split(traverse_util.unflatten_dict(flat, sep="/"), facts["decoder_only"])
    average = read_exported(folder, {"vae": like}, best)["vae"]
    if scaling_factor is not None:
        vae = dataclasses.replace(model.spec.vae, scaling_factor=scaling_factor)
        model = dataclasses.replace(model, spec=dataclasses.replace(model.spec, vae=vae))
    return _with(model, average)


def vae_run_source(folder: StoragePath) -> tuple[str, str]:
    """What the run's model was loaded from, and the type it computed in."""
    facts = read_run(folder, KEYS, "train-vae")
    return str(facts["source"]), str(facts["dtype"])


def _split(vae: Any, decoder_only: bool) -> tuple[Any, Any]:
    """What is trained, and what is frozen."""
    return ({"decoder": vae["decoder"]}, {"encoder": vae["encoder"]}) if decoder_only else (vae, {})


def _with(model: Model, moved: Any) -> Model:
    return dataclasses.replace(model, params=model.params | {"vae": model.params["vae"] | moved})


def _read(clips: RandomClips, count: int, first: int, seed: tuple[int, ...], step: int) -> dict[str, np.ndarray]:
    """The batch of an update of the run; `first` is the stage's first."""
    return {"pixels": clips.batch(count, (*seed, step - first))}


def _read_held_out(
    sources: Sequence[Source], fps: float, shape: Mapping[str, Any], report: Callable[[str], None]
) -> list[np.ndarray]:
    """The first frames of each, about the centre."""
    clips = []
    for source in sources:
        try:
            clips.append(read_clip(source.video, fps=fps, **shape))
        except (ValueError, OSError) as error:
            report(f"skipped {source.video}: {getattr(error, 'strerror', None) or error}")
    if sources and not clips:
        raise ValueError(f"none of the {len(sources)} videos kept for validation can be used, see above")
    return clips
