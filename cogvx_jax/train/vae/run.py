"""A run that trains a model's VAE on videos: a folder with its settings, its curve and its checkpoints.

RUN/run.json      the settings; going on with others is refused
RUN/log.jsonl     the terms of the loss and the pace; scores of clips that are not trained on
RUN/checkpoints/  state of the newest updates: VAE, adversary, their average, both optimizers
RUN/best/         state of the lowest loss of those clips
"""

import dataclasses
import functools
import hashlib
import json
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
from cogvx_jax.convert.runs import is_vae_run, read_exported, read_run
from cogvx_jax.data.clips import Source, read_clip
from cogvx_jax.data.random_clips import RandomClips
from cogvx_jax.metrics import flicker, psnr, ssim
from cogvx_jax.metrics.lpips import LPIPS
from cogvx_jax.models.discriminator import Discriminator, DiscriminatorConfig
from cogvx_jax.models.vae import VAE
from cogvx_jax.pipelines.model import Model
from cogvx_jax.sharding import activate, params_digest, replicate
from cogvx_jax.storage import StoragePath
from cogvx_jax.train.clips.held_out import hold_out
from cogvx_jax.train.loop import run_updates
from cogvx_jax.train.placement import check_batch, place_batch
from cogvx_jax.train.run_folder import write
from cogvx_jax.train.step import Gradient
from cogvx_jax.train.vae.objective import VAEObjective, distance_of, likeness, make_gradient, reconstruct, to_signed

KEYS = {"trains", "source", "vae", "decoder_only", "dtype"}  # of run.json, what reading a run needs


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAERunConfig:
    """What makes a run what it is, but for its length. The defaults are the paper's first stage.

    Raises: ValueError for numbers that cannot be.
    """

    objective: VAEObjective = VAEObjective()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    height: int = 256
    width: int = 256
    frames: int = 17
    fps: tuple[float, ...] = (8.0, 16.0)  # one of them is drawn for each clip
    decoder_only: bool = False  # leaves the latents as they are
    whole_clips: bool = False  # norms over the whole clip, as the authors trained; else over frame batches, as in use
    batch_size: int = 1
    learning_rate: float = 1e-5
    discriminator_rate: float = 1e-4
    warmup: int = 100  # updates, of either network since it began
    weight_decay: float = 1e-4
    average: float = 0.99  # decay of the moving average that is exported
    validation: float = 0.0  # videos kept out of training: a share of them, or from 1 on their number
    seed: int = 0

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"the batch size must be at least 1, got {self.batch_size}")
        for rate in (self.learning_rate, self.discriminator_rate):
            if not 0 < rate < 1:
                raise ValueError(f"a learning rate must be above 0 and below 1, got {rate}")
        if self.warmup < 0 or self.weight_decay < 0 or not 0 <= self.average < 1:
            raise ValueError("warmup and weight decay must be at least 0, the average's decay in 0..1")
        if self.frames < 1 or self.frames % 8 != 1:
            raise ValueError(f"a clip must have 8N+1 frames, got {self.frames}")
        if min(self.height, self.width) < 16 or self.height % 8 or self.width % 8:
            raise ValueError(f"height and width must be multiples of 8 from 16 on, got {self.height}x{self.width}")
        if not self.fps or not min(self.fps) > 0:
            raise ValueError(f"fps must be positive, got {self.fps}")

    @property
    def tx(self) -> optax.GradientTransformation:
        """AdamW for the VAE, Adam of GANs (betas 0.5 and 0.9) for the adversary, which begins when that does."""

        def rate(peak):
            return optax.warmup_constant_schedule(0, peak, self.warmup) if self.warmup else peak

        clip = optax.clip_by_global_norm(1.0)
        adamw = optax.adamw(rate(self.learning_rate), b1=0.9, b2=0.95, weight_decay=self.weight_decay)
        parts = {"vae": optax.chain(clip, adamw)}
        start = self.objective.discriminator_start
        if start is not None:
            adam = optax.chain(clip, optax.adam(rate(self.discriminator_rate), b1=0.5, b2=0.9))
            parts["discriminator"] = optax.conditionally_mask(adam, lambda updates: updates >= start)
        return optax.partition(parts, {name: name for name in parts})


def train_vae(
    model: Model,
    sources: Sequence[Source],
    config: VAERunConfig,
    folder: StoragePath,
    *,
    steps: int,
    source: str,
    lpips: Path | None = None,
    remat: bool = False,
    validate_every: int = 200,
    save_every: int = 200,
    log_every: int = 50,
    keep: int = 2,
    workers: int = 0,
    report: Callable[[str], None] = print,
) -> Model:
    """Trains the model's VAE, or its decoder, to `steps` updates, on the model's mesh.

    It goes on from the run's newest checkpoint if there is one, whatever mesh that was made on.

    Args:
      model: of its components, only the VAE is needed.
      sources: videos; captions are not used.
      source: what the model was loaded from; it is noted in the run.
      lpips: the file for `read_lpips`; None leaves that term out.
      remat: compute each frame batch anew in the backward pass, which saves memory.
      workers: processes that cut clips out of videos ahead; 0 does it in threads.
    Returns: the model with the moving average of what was trained.
    Raises: ValueError, before anything is compiled, for a run with other settings, videos of which none can be used,
      a batch that the mesh cannot split, or a wrong file of LPIPS; and where too many numbers are not finite.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    mesh, objective = model.mesh, config.objective
    check_batch(mesh, config.batch_size)
    trained, held_out = split_videos(sources, config.validation)
    network, weights = (None, None) if lpips is None else read_lpips(lpips)
    facts = _facts(model, sources, config, source, weights)
    _check_same(folder, facts)
    shape = {"frames": config.frames, "height": config.height, "width": config.width}
    clips = RandomClips(trained, fps=config.fps, report=report, **shape)
    clips.batch(1, (config.seed, 0))  # one that can be used, before anything is written
    shown = _read_held_out(held_out, config, report)
    write(folder, facts | {"steps": steps})

    vae = model.vae
    if config.whole_clips:
        vae = VAE(dataclasses.replace(vae.cfg, encode_frames=None, decode_frames=None), vae.compute)
    moving, frozen = _split(jax.tree.map(jnp.asarray, model.params["vae"]), config.decoder_only)
    params, discriminator = {"vae": moving}, None
    if objective.discriminator_start is not None:
        discriminator = Discriminator(config.discriminator)
        begin = jax.jit(lambda key: nn.unbox(discriminator.init(key, jnp.zeros((1, 1, 16, 16, 3))))["params"])
        params["discriminator"] = jax.tree.map(lambda x: replicate(x, mesh), begin(jax.random.key(config.seed)))
    fixed: dict[str, Any] = {"frozen": frozen}
    if weights is not None:
        fixed["lpips"] = jax.tree.map(lambda x: replicate(x, mesh), weights)

    state = run_updates(
        params,
        functools.partial(_read, clips, config),
        _on_mesh(make_gradient(objective, vae, network, discriminator, remat=remat), mesh),
        config.tx,
        steps=steps,
        folder=folder,
        seed=config.seed,
        decay=config.average,
        fixed=fixed,
        mesh=mesh,
        validate=make_validate(objective, vae, network, shown, fixed, mesh) if shown else None,
        validate_every=validate_every,
        save_every=save_every,
        log_every=log_every,
        keep=keep,
        workers=workers,
    )
    return _with(model, state.exported["vae"])


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

    @jax.jit
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
        each = [score(average, place_batch({"pixels": clip[None]}, mesh) | dict(fixed)) for clip in clips]
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


def check_folder(folder: StoragePath) -> None:
    """Raises ValueError where `folder` holds something, but no run of a VAE."""
    if folder.exists() and not is_vae_run(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty and holds no run of `cogvx train-vae`; give another folder")


def _on_mesh(gradient: Gradient, mesh: Mesh | None) -> Gradient:
    def of(*arguments):
        with activate(mesh):
            return gradient.of(*arguments)

    return Gradient(of)


def _split(vae: Any, decoder_only: bool) -> tuple[Any, Any]:
    """What is trained, and what is frozen."""
    return ({"decoder": vae["decoder"]}, {"encoder": vae["encoder"]}) if decoder_only else (vae, {})


def _with(model: Model, moved: Any) -> Model:
    return dataclasses.replace(model, params=model.params | {"vae": model.params["vae"] | moved})


def _read(clips: RandomClips, config: VAERunConfig, step: int) -> dict[str, np.ndarray]:
    """The batch of an update."""
    return {"pixels": clips.batch(config.batch_size, (config.seed, 1, step))}


def _read_held_out(sources: Sequence[Source], config: VAERunConfig, report: Callable[[str], None]) -> list[np.ndarray]:
    """The first frames of each, about the centre, at the first of the rates."""
    shape, clips = {"frames": config.frames, "height": config.height, "width": config.width}, []
    for source in sources:
        try:
            clips.append(read_clip(source.video, fps=config.fps[0], **shape))
        except (ValueError, OSError) as error:
            report(f"skipped {source.video}: {getattr(error, 'strerror', None) or error}")
    if sources and not clips:
        raise ValueError(f"none of the {len(sources)} videos kept for validation can be used, see above")
    return clips


def _facts(model: Model, sources: Sequence[Source], config: VAERunConfig, source: str, lpips: Any) -> dict[str, Any]:
    """What stands in run.json, but for the length."""
    names = "\n".join(sorted(Path(str(s.video)).name for s in sources))
    facts = {
        "trains": "vae",
        "source": source,
        "name": model.spec.name,
        "dtype": model.compute.dtype,
        "vae": params_digest(model.params["vae"]),
        "lpips": None if lpips is None else params_digest(lpips),
        "videos": len(sources),
        "data": hashlib.sha256(names.encode()).hexdigest()[:16],
    }
    return json.loads(json.dumps(facts | dataclasses.asdict(config)))  # tuples as they will be read back


def _check_same(folder: StoragePath, facts: Mapping[str, Any]) -> None:
    check_folder(folder)
    if not is_vae_run(folder):
        return
    was, now = (traverse_util.flatten_dict(dict(x), sep=".") for x in (read_run(folder, KEYS, "train-vae"), facts))
    ignored = {"steps", "source"}  # a run may go on, and its model may have moved
    changed = [name for name in now if name not in ignored and was.get(name) != now[name]]
    if changed:
        each = "; ".join(f"{name} was {was.get(name)} and is now {now[name]}" for name in changed)
        raise ValueError(f"{folder} holds a run with other settings: {each}; repeat them, or give another folder")
