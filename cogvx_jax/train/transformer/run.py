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
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from cogvx_jax.configs import Compute, ControlNetConfig, ModelSpec
from cogvx_jax.convert.runs import transformer_shapes
from cogvx_jax.models import lora as loras
from cogvx_jax.models.abstract import abstract_params
from cogvx_jax.models.flops import training_flops, transformer_flops
from cogvx_jax.pipelines.model import Model, check_trainable
from cogvx_jax.pipelines.request import Request
from cogvx_jax.sharding import replicate
from cogvx_jax.storage import StoragePath
from cogvx_jax.train import optim, parts, run_folder
from cogvx_jax.train.checkpoint import newest_update
from cogvx_jax.train.clips.batches import ENCODED, Feed, Share, clip_tokens, feed, packed_feed
from cogvx_jax.train.clips.cache import chosen, open_cache
from cogvx_jax.train.clips.encode import check_model
from cogvx_jax.train.clips.held_out import hold_out
from cogvx_jax.train.loop import Input, Start, Update, run_updates
from cogvx_jax.train.pace import Pace
from cogvx_jax.train.placement import Placement, check_batch
from cogvx_jax.train.progress import Span, Watch, say
from cogvx_jax.train.step import State
from cogvx_jax.train.transformer.controlled_objective import make_controlled_loss
from cogvx_jax.train.transformer.controlnet import (
    Beginning,
    check_controls,
    complete_controlnet,
    facts_of,
    first_params,
    following,
)
from cogvx_jax.train.transformer.distillation import complete, make_distilled_loss, more_evaluations
from cogvx_jax.train.transformer.objective import make_partial_loss
from cogvx_jax.train.transformer.packed_objective import make_partial_packed_loss
from cogvx_jax.train.transformer.record import describe
from cogvx_jax.train.transformer.settings import RunConfig
from cogvx_jax.train.transformer.stages import Stage
from cogvx_jax.train.transformer.trained import with_trained
from cogvx_jax.train.transformer.validation import (
    Measure,
    controlled_measure,
    distilled_measure,
    make_validate,
    plain_measure,
)
from cogvx_jax.train.transformer.videos import write_videos


@dataclasses.dataclass(frozen=True, kw_only=True)
class Videos:
    """What a run makes on its way."""

    wanted: Sequence[Request] = ()  # a checked request for each
    every: int = 1000  # updates between them


def train(
    model: Model,
    stages: tuple[Stage, ...],
    config: RunConfig,
    folder: StoragePath,
    *,
    source: str,
    pace: Pace = Pace(),  # noqa: B008
    videos: Videos = Videos(),  # noqa: B008
    release: bool = False,
    command: Mapping[str, Any] | None = None,
) -> Model:
    """Trains a LoRA or parts of the model's transformer, or a ControlNet, through all stages, on the model's mesh.

    It goes on from the run's newest checkpoint if there is one, whatever mesh that was made on. The state of a
    stage's last update is that of the next one's first.

    Args:
      model: of its components, the transformer is needed, for image-to-video and inpainting models the VAE, for
        videos all.
      source: what the model was loaded from; it is noted in the run.
      videos: of the moving average, see `videos.write_videos`.
      release: the given model is not used any more: parameters that are trained are freed when the state has them.
      command: options that change no number; noted in the run, so that it can be repeated.
    Returns: the model with the moving average of what was trained; for a ControlNet, which is no part of it, as it was.
    Raises: ValueError, before anything is compiled, for a cache of another model, a run with other settings,
      adapters, parts or a ControlNet that the model cannot have, a batch that the mesh cannot split, or a folder in
      use; and where training meets numbers that are not finite.
    """
    check_trainable(model.spec.name, model.compute.quantize)
    check_kind(model.spec)
    config.objective.check(model.spec)
    config, begins = complete_controlnet(model.spec, complete(model.spec, config, stages), stages)
    stages = tuple(dataclasses.replace(s, learning_rate=s.learning_rate or config.learning_rate) for s in stages)
    for stage in stages:
        check_batch(model.mesh, stage.batch_size, stage.accumulate)
    shares = [_shares(stage, config.validation, begins is not None) for stage in stages]
    check_model([share.cache for of in shares for share in of], model)
    run = _begin(model, config, release, begins)
    feeds = [
        _feed(run.spec, stage, of, (config.seed, n)) for n, (stage, of) in enumerate(zip(stages, shares, strict=True))
    ]
    facts = describe(model, config, stages, shares, source) | {
        "command": {**dataclasses.asdict(pace), **(command or {})}
    }
    facts |= facts_of(begins, run.given)
    if config.distill is not None:
        facts["distilled"] = dataclasses.asdict(config.distill.result(model.spec))
    run_folder.check_same(folder, facts, _modern)
    with run_folder.used(folder):
        done = newest_update(folder)
        if done < run_folder.ends(stages)[-1] or not done:
            run_folder.write(folder, facts)
        if done:
            run.let_go()
        fixed: dict[str, Any] = {"base": run.frozen, "empty": replicate(shares[0][0].cache.empty_text(), model.mesh)}
        if run.spec.kind in ENCODED:
            fixed["vae"] = jax.tree.map(jnp.asarray, model.params["vae"])
        for number, end in enumerate(run_folder.ends(stages)[:-1]):
            if done < end:  # its state is not held here: the next stage reads it from the checkpoint
                _run_stage(run, stages, number, shares[number], feeds[number], fixed, folder, pace, videos)
        state = _run_stage(run, stages, len(stages) - 1, shares[-1], feeds[-1], fixed, folder, pace, videos)
        return model if begins is not None else with_trained(model, config.lora, state.exported)


def check_kind(spec: ModelSpec) -> None:
    """Raises ValueError for a kind of model whose condition no batch of clips holds."""
    if spec.kind == "control":
        raise ValueError(
            f"{spec.name} is of the kind control, which cannot be trained here; use a text-to-video, image-to-video or "
            "inpainting model"
        )


@dataclasses.dataclass(frozen=True)
class _Run:
    """What all stages of a run have in common."""

    model: Model
    config: RunConfig
    compute: Compute  # to train with
    given: Any  # what is trained, as the model has it
    frozen: Any
    placement: Placement
    release: bool
    net: ControlNetConfig | None = None  # of a ControlNet, which is what is trained

    @property
    def spec(self) -> ModelSpec:
        return self.model.spec

    @property
    def start(self) -> Start:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, self._dtype, sharding=x.sharding), self.given)
        return Start(make=self._make, shapes=shapes)

    @property
    def measure(self) -> Measure:
        """What is measured of clips that are held out."""
        if self.net is not None:
            return controlled_measure(self.spec, self.compute, self.whole, self.net)
        if self.config.distill is None:
            return plain_measure(self.spec, self.compute, self.whole)
        return distilled_measure(self.spec, self.compute, self.config.objective, self.config.distill, self.whole)

    def let_go(self) -> None:
        if self.release:
            jax.tree.map(lambda x: x.delete(), self.given)

    def whole(self, base: Any, part: Any) -> Any:
        """The transformer's parameters."""
        if self.net is not None:
            return base
        if self.config.lora is None:
            return parts.join(base, part)
        return loras.merge(base, part, self.config.lora.scale)

    @property
    def _dtype(self) -> jnp.dtype:
        return jnp.dtype(self.config.trained_dtype)

    def _make(self) -> Any:
        made = jax.tree.map(lambda x: jnp.copy(x) if x.dtype == self._dtype else x.astype(self._dtype), self.given)
        self.let_go()
        return made


def _run_stage(
    run: _Run,
    stages: tuple[Stage, ...],
    number: int,
    shares: Sequence[Share],
    fed: Feed,
    fixed: Mapping[str, Any],
    folder: StoragePath,
    pace: Pace,
    videos: Videos,
) -> State:
    stage, end = stages[number], run_folder.ends(stages)[number]
    first, mesh = end - stage.steps, run.placement.mesh
    about: dict[str, float] = {"stage": number + 1}
    make: Any = make_partial_loss
    if run.net is not None:
        make = functools.partial(make_controlled_loss, cfg=run.net)
    elif run.config.distill is not None:
        make = functools.partial(make_distilled_loss, distill=run.config.distill)
    elif fed.packing is not None:
        make, about["packed"] = make_partial_packed_loss, round(fed.packing.used, 4)
        say(f"{folder.name} stage {number + 1}: {fed.packing}")

    def show(average: Any, done: int) -> None:
        # As in training: the bound on logits of a model's own would be a new one, and another program, each time.
        tuned, wanted = run.model, videos.wanted
        if run.net is not None:
            wanted = following(wanted, average, tuned)
        else:
            tuned = with_trained(tuned, run.config.lora, average)
        tuned = dataclasses.replace(tuned, compute=run.compute)
        write_videos(tuned, wanted, folder / "videos" / str(done))

    held_out = [share for share in shares if share.held_out]
    watch = Watch(
        tokens=round(fed.tokens),
        flops=_flops(run.spec, shares, fed.clips, run.config, run.start.shapes, run.net),
        rate=make_rate(run.config, stage, first),
        about=about,
        validate=make_validate(run.spec, run.measure, held_out, fixed, stage.batch_size, mesh) if held_out else None,
        show=show if videos.wanted else None,
        show_every=videos.every,
    )
    rows = run.placement.rows(fed.rows)
    return run_updates(
        run.start,
        Input(batches=functools.partial(_read, fed, first, rows.numbers), rows=rows, fixed=fixed),
        Update(
            loss=run.placement.loss(make(run.spec, run.compute, run.config.objective, whole=run.whole)),
            tx=make_optimizer(run.config, stage, first),
            decay=run.config.average,
            accumulate=stage.accumulate,
        ),
        Span(steps=end, start=first, end=run_folder.ends(stages)[-1]),
        folder,
        seed=run.config.seed,
        pace=pace,
        placement=run.placement,
        watch=watch,
    )


def make_rate(config: RunConfig, stage: Stage, start: int = 0) -> optax.Schedule:
    """Learning rate by updates of the run done before, in a stage that begins at update `start`."""
    peak = stage.learning_rate or config.learning_rate
    return optim.schedule(peak, stage.decay_steps, warmup=stage.warmup, start=start)


def make_optimizer(config: RunConfig, stage: Stage, start: int = 0) -> optax.GradientTransformation:
    """The optimizer of a stage that begins at update `start`; its state fits every stage."""
    make, peak = getattr(optim, config.optimizer), stage.learning_rate or config.learning_rate
    return make(peak, stage.decay_steps, warmup=stage.warmup, weight_decay=config.weight_decay, start=start)


def _modern(said: dict[str, Any]) -> dict[str, Any]:
    """What run.json says; settings that there were not when it was written are as they were then."""
    then = run_folder.as_json(dataclasses.asdict(RunConfig()))
    return {**then, **said, "objective": {**then["objective"], **said.get("objective", {})}}


def _feed(spec: ModelSpec, stage: Stage, shares: Sequence[Share], seed: tuple[int, ...]) -> Feed:
    if stage.pack:
        return packed_feed(spec, shares, stage.batch_size, stage.pack, seed)
    return feed(spec, shares, stage.batch_size, seed)


def _shares(stage: Stage, validation: float, controls: bool) -> list[Share]:
    shares = []
    for folder, weight in stage.data:
        cache = open_cache(folder)
        if controls:
            check_controls([cache])
        apart = hold_out((video for video, _ in cache.clips), validation)
        numbers = chosen(cache, stage.where)
        clips = tuple(number for number in numbers if cache.clips[number][0] not in apart)
        if not clips:
            raise ValueError(f"of the clips that {stage.where!r} chooses in {folder}, all are kept for validation")
        held_out = tuple(number for number in numbers if cache.clips[number][0] in apart)
        shares.append(Share(cache, weight, clips, held_out, controls))
    return shares


def _begin(model: Model, config: RunConfig, release: bool = False, begins: Beginning | None = None) -> _Run:
    """How to compute in training, what is trained, as it is given, and what is not, on the model's mesh."""
    base, placement = jax.tree.map(jnp.asarray, model.params["transformer"]), Placement(model.mesh)
    if begins is not None:
        given = first_params(begins, model.spec, base, config.seed, model.mesh)
        return _Run(model, config, model.compute, given, base, placement, release, begins.cfg)
    if config.lora is not None:
        adapters = loras.init(jax.random.key(config.seed), transformer_shapes(model.spec), config.lora)
        given = placement.adapters(adapters, abstract_params(model.spec.transformer))
        return _Run(model, config, model.compute, given, base, placement, release)
    trained, frozen = parts.split(base, config.parts)
    # The bound on logits holds for the weights that were loaded, not for those they become.
    compute = dataclasses.replace(model.compute, logit_bound=None)
    return _Run(model, config, compute, trained, frozen, placement, release)


def _flops(
    spec: ModelSpec,
    shares: Sequence[Share],
    clips: int,
    config: RunConfig,
    trained: Any,
    net: ControlNetConfig | None = None,
) -> int:
    """Of an update on so many clips, on average; `net` is trained beside a model of which nothing is."""
    rank = 0 if config.lora is None else config.lora.rank
    paths = trained if config.lora is not None else traverse_util.flatten_dict(trained, sep="/")
    paths = paths if net is None else ()
    total = 0
    for share in shares:
        tokens = spec.transformer.text_length + clip_tokens(spec, share.cache)
        total += share.weight * training_flops(spec.transformer, tokens, paths, batch=clips, rank=rank)
        if net is not None:
            total += share.weight * 3 * transformer_flops(net.transformer, tokens, batch=clips)
        if config.distill is not None:
            rows = clips * more_evaluations(spec, config.distill)
            total += share.weight * transformer_flops(spec.transformer, tokens, batch=rows)
    return total // sum(share.weight for share in shares)


def _read(of: Feed, first: int, rows: tuple[int, ...], step: int) -> dict[str, Any]:
    """The batch of an update of the run; `first` is the stage's first."""
    return of.batches(step - first, rows)
