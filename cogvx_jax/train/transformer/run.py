"""A training run: a folder that says what is trained on what, its checkpoints and its curve.

RUN/run.json      the settings; going on with others is refused
RUN/log.jsonl     loss, gradient norm and pace; loss of clips that are not trained on
RUN/checkpoints/  state of the newest updates
RUN/best/         state of the lowest loss of those clips
RUN/tensorboard/  the curve for TensorBoard, if asked for
RUN/videos/       videos of fixed prompts after some updates, if asked for: UPDATE/NUMBER.mp4
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from cogvx_jax.configs import Compute, ModelSpec
from cogvx_jax.convert.runs import transformer_shapes
from cogvx_jax.models import lora as loras
from cogvx_jax.models.abstract import abstract_params
from cogvx_jax.models.flops import training_flops
from cogvx_jax.models.lora import LoRAConfig
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.request import Request
from cogvx_jax.sharding import replicate
from cogvx_jax.storage import StoragePath
from cogvx_jax.train import optim, run_folder
from cogvx_jax.train.checkpoint import Checkpoints
from cogvx_jax.train.clips.batches import Feed, Share, clip_tokens, feed, packed_feed
from cogvx_jax.train.clips.cache import open_cache
from cogvx_jax.train.clips.encode import check_model
from cogvx_jax.train.clips.held_out import hold_out
from cogvx_jax.train.loop import run_updates
from cogvx_jax.train.placement import check_batch, host_rows, place_adapters, place_loss
from cogvx_jax.train.progress import say
from cogvx_jax.train.step import State
from cogvx_jax.train.transformer import parts
from cogvx_jax.train.transformer.objective import Objective, make_partial_loss
from cogvx_jax.train.transformer.packed_objective import make_partial_packed_loss
from cogvx_jax.train.transformer.record import describe
from cogvx_jax.train.transformer.stages import Stage, ends
from cogvx_jax.train.transformer.trained import with_trained
from cogvx_jax.train.transformer.validation import make_validate
from cogvx_jax.train.transformer.videos import write_videos


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What makes a run what it is, but for its stages.

    Raises: ValueError for numbers that cannot be.
    """

    lora: LoRAConfig | None = LoRAConfig()  # None trains parameters themselves, those of `parts`
    parts: tuple[str, ...] = ()  # patterns of their paths, as for `parts.split`
    objective: Objective = Objective()
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    weight_decay: float = 1e-4
    trained_dtype: Literal["float32", "bfloat16"] = "float32"  # of parameters that are trained, and of their moments
    average: float = 0.99  # decay of the moving average that is exported
    validation: float = 0.0  # clips kept out of training: a share of them, or from 1 on their number, of each cache
    seed: int = 0

    def __post_init__(self):
        if (self.lora is None) != bool(self.parts):
            raise ValueError("a run trains either a LoRA or parts of the model")
        if self.lora is not None and self.trained_dtype != "float32":
            raise ValueError("the adapters of a LoRA, which are small, are trained in float32")
        if self.weight_decay < 0 or not 0 <= self.average < 1:
            raise ValueError("weight decay must be at least 0, the average's decay in 0..1")

    def rate(self, stage: Stage, start: int = 0) -> optax.Schedule:
        """Learning rate by updates of the run done before, in a stage that begins at update `start`."""
        return optim.schedule(stage.learning_rate, stage.decay_steps, warmup=stage.warmup, start=start)

    def tx(self, stage: Stage, start: int = 0) -> optax.GradientTransformation:
        """The optimizer of a stage that begins at update `start`; its state fits every stage."""
        make = optim.adafactor if self.optimizer == "adafactor" else optim.adamw
        return make(
            stage.learning_rate, stage.decay_steps, warmup=stage.warmup, weight_decay=self.weight_decay, start=start
        )


def train(
    model: Model,
    stages: tuple[Stage, ...],
    config: RunConfig,
    folder: StoragePath,
    *,
    source: str,
    validate_every: int = 200,
    save_every: int = 200,
    log_every: int = 50,
    keep: int = 2,
    tensorboard: bool = False,
    videos: Sequence[Request] = (),
    video_every: int = 1000,
    workers: int = 0,
    release: bool = False,
) -> Model:
    """Trains a LoRA or parts of the model's transformer through all stages, on the model's mesh.

    It goes on from the run's newest checkpoint if there is one, whatever mesh that was made on. The state of a
    stage's last update is that of the next one's first.

    Args:
      model: of its components, the transformer is needed, for image-to-video models the VAE, for videos all.
      source: what the model was loaded from; it is noted in the run.
      keep: checkpoints to keep, the newest, beside the best of the stage by validation loss.
      tensorboard: write the curve for TensorBoard, too.
      videos: checked requests, of each of which the moving average makes a video every `video_every` updates; see
        `videos.write_videos`.
      workers: processes that read batches ahead; 0 reads in threads.
      release: the given model is not used any more: parameters that are trained are freed when the state has them.
    Returns: the model with the moving average of what was trained.
    Raises: ValueError, before anything is compiled, for a cache of another model, a run with other settings,
      adapters or parts that the model cannot have, or a batch that the mesh cannot split; and where training
      meets numbers that are not finite.
    """
    for stage in stages:
        check_batch(model.mesh, stage.batch_size, stage.accumulate)
    shares = [_shares(stage, config.validation) for stage in stages]
    check_model([share.cache for of in shares for share in of], model)
    spec, (compute, given, frozen) = model.spec, _start(model, config)
    dtype = jnp.dtype(config.trained_dtype)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding), given)
    feeds = [
        packed_feed(spec, of, stage.batch_size, stage.pack, (config.seed, number))
        if stage.pack
        else feed(spec, of, stage.batch_size, (config.seed, number))
        for number, (stage, of) in enumerate(zip(stages, shares, strict=True))
    ]
    described = describe(model, config, stages, shares, source)
    run_folder.check_same(folder, described, dataclasses.asdict(RunConfig()))
    run_folder.write(folder, described)
    fixed: dict[str, Any] = {"base": frozen, "empty": replicate(shares[0][0].cache.empty_text(), model.mesh)}
    if spec.kind == "i2v":
        fixed["vae"] = jax.tree.map(jnp.asarray, model.params["vae"])

    def whole(base: Any, part: Any) -> Any:
        if config.lora is None:
            return parts.join(base, part)
        return loras.merge(base, part, config.lora.alpha / config.lora.rank)

    def show(average: Any, done: int) -> None:
        # As in training: the bound on logits of a model's own would be a new one, and another program, each time.
        tuned = dataclasses.replace(with_trained(model, config.lora, average), compute=compute)
        write_videos(tuned, videos, folder / "videos" / str(done))

    def run_stage(number: int) -> State:
        stage, end = stages[number], ends(stages)[number]
        first, held_out = end - stage.steps, [share for share in shares[number] if share.held_out]
        make, packing = make_partial_loss, feeds[number].packing
        about: dict[str, float] = {"stage": number + 1}
        if packing is not None:
            make, about["packed"] = make_partial_packed_loss, round(packing.used, 4)
            say(f"{folder.name} stage {number + 1}: {packing}")
        rows = host_rows(model.mesh, feeds[number].rows)
        return run_updates(
            begin,
            functools.partial(_read, feeds[number], first, rows.numbers),
            place_loss(make(spec, compute, config.objective, whole), model.mesh),
            config.tx(stage, first),
            steps=end,
            folder=folder,
            seed=config.seed,
            decay=config.average,
            accumulate=stage.accumulate,
            fixed=fixed,
            mesh=model.mesh,
            rows=rows,
            workers=workers,
            tokens=round(feeds[number].tokens),
            flops=_flops(spec, shares[number], feeds[number].clips, config, shapes),
            rate=config.rate(stage, first),
            validate=make_validate(spec, compute, held_out, fixed, whole, stage.batch_size, model.mesh)
            if held_out
            else None,
            validate_every=validate_every,
            show=show if videos else None,
            show_every=video_every,
            save_every=save_every,
            log_every=log_every,
            tensorboard=tensorboard,
            keep=keep,
            start=first,
            shapes=shapes,
            end=ends(stages)[-1],
            about=about,
        )

    def begin() -> Any:
        made = jax.tree.map(lambda x: jnp.copy(x) if x.dtype == dtype else x.astype(dtype), given)
        let_go()
        return made

    def let_go() -> None:
        if release:
            jax.tree.map(lambda x: x.delete(), given)

    done = _done(folder)
    if done:
        let_go()
    for number, end in enumerate(ends(stages)[:-1]):
        if done < end:
            run_stage(number)  # its state is not held here: the next stage reads it from the checkpoint
    state = run_stage(len(stages) - 1)
    return with_trained(model, config.lora, state.exported)


def _shares(stage: Stage, validation: float) -> list[Share]:
    shares = []
    for folder, weight in stage.data:
        cache = open_cache(folder)
        chosen = hold_out((video for video, _ in cache.clips), validation)
        held_out = {number for number, (video, _) in enumerate(cache.clips) if video in chosen}
        clips = (number for number in range(len(cache.clips)) if number not in held_out)
        shares.append(Share(cache, weight, tuple(clips), tuple(sorted(held_out))))
    return shares


def _start(model: Model, config: RunConfig) -> tuple[Compute, Any, Any]:
    """How to compute in training, what is trained, as it is given, and what is not, on the model's mesh."""
    base = jax.tree.map(jnp.asarray, model.params["transformer"])
    if config.lora is not None:
        adapters = loras.init(jax.random.key(config.seed), transformer_shapes(model.spec), config.lora)
        return model.compute, place_adapters(adapters, abstract_params(model.spec.transformer), model.mesh), base
    trained, frozen = parts.split(base, config.parts)
    # The bound on logits holds for the weights that were loaded, not for those they become.
    return dataclasses.replace(model.compute, logit_bound=None), trained, frozen


def _flops(spec: ModelSpec, shares: Sequence[Share], clips: int, config: RunConfig, trained: Any) -> int:
    """Of an update on so many clips, on average."""
    rank = 0 if config.lora is None else config.lora.rank
    paths = trained if config.lora is not None else traverse_util.flatten_dict(trained, sep="/")
    total = 0
    for share in shares:
        tokens = spec.transformer.text_length + clip_tokens(spec, share.cache)
        total += share.weight * training_flops(spec.transformer, tokens, paths, batch=clips, rank=rank)
    return total // sum(share.weight for share in shares)


def _read(of: Feed, first: int, rows: tuple[int, ...], step: int) -> dict[str, Any]:
    """The batch of an update of the run; `first` is the stage's first."""
    return of.batches(step - first, rows)


def _done(folder: StoragePath) -> int:
    """Updates of the run's newest checkpoint."""
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        return checkpoints.latest() or 0
    finally:
        checkpoints.close()
