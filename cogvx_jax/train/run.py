"""A fine-tuning run: a folder that says what is trained on what, its checkpoints and its curve.

RUN/run.json      the settings; going on with others is refused
RUN/log.jsonl     loss, gradient norm and pace; loss of clips that are not trained on
RUN/checkpoints/  state of the newest updates
RUN/best/         state of the lowest loss of those clips
RUN/tensorboard/  the curve for TensorBoard, if asked for
RUN/videos/       videos of fixed prompts after some updates, if asked for: UPDATE/NUMBER.mp4
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from cogvx_jax.configs import ModelSpec
from cogvx_jax.convert import expected_shapes
from cogvx_jax.models import lora as loras
from cogvx_jax.models.abstract import abstract_params
from cogvx_jax.models.flops import token_count, training_flops
from cogvx_jax.models.lora import LoRA, LoRAConfig
from cogvx_jax.pipelines.model import Model, with_logit_bound
from cogvx_jax.pipelines.request import padded_latent_frames
from cogvx_jax.sharding import first_process, replicate, wait_for_all
from cogvx_jax.train import optim, parts
from cogvx_jax.train.checkpoint import Checkpoints
from cogvx_jax.train.latents import Cache, check_model, digest
from cogvx_jax.train.loop import fit
from cogvx_jax.train.objective import Objective, make_partial_loss
from cogvx_jax.train.placement import check_batch, place_adapters, place_loss
from cogvx_jax.train.validation import hold_out, make_validate
from cogvx_jax.train.videos import write_videos

# Of run.json, what reading a run needs.
KEYS = {"source", "name", "width", "layers", "lora"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What makes a run what it is, but for its length.

    Raises: ValueError for numbers that cannot be.
    """

    lora: LoRAConfig | None = LoRAConfig()  # None trains parameters themselves, those of `parts`
    parts: tuple[str, ...] = ()  # patterns of their paths, as for `parts.split`
    objective: Objective = Objective()
    batch_size: int = 4
    accumulate: int = 1  # parts of a batch that are computed one after the other
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    learning_rate: float = 5e-4  # of adapters; the authors use 5e-4 to 1e-3, and 1e-5 for all parameters
    cosine_steps: int | None = None  # updates in which the rate falls to 1%; None keeps it
    warmup: int = 50  # updates
    weight_decay: float = 1e-4
    average: float = 0.99  # decay of the moving average that is exported
    validation: float = 0.0  # clips kept out of training: a share of them, or from 1 on their number
    seed: int = 0

    def __post_init__(self):
        if (self.lora is None) != bool(self.parts):
            raise ValueError("a run trains either a LoRA or parts of the model")
        if self.batch_size < 1:
            raise ValueError(f"the batch size must be at least 1, got {self.batch_size}")
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ValueError(f"a batch of {self.batch_size} clips cannot be computed in {self.accumulate} equal parts")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"the learning rate must be above 0 and below 1, got {self.learning_rate}")
        if self.warmup < 0 or self.weight_decay < 0 or not 0 <= self.average < 1:
            raise ValueError("warmup and weight decay must be at least 0, the average's decay in 0..1")
        if self.cosine_steps is not None and self.cosine_steps <= self.warmup:
            raise ValueError(f"a cosine of {self.cosine_steps} updates leaves none after a warmup of {self.warmup}")

    @property
    def rate(self) -> optax.Schedule:
        """Learning rate by updates done before."""
        return optim.schedule(self.learning_rate, self.cosine_steps, self.warmup)

    @property
    def tx(self) -> optax.GradientTransformation:
        rate, steps, warmup, weight_decay = self.learning_rate, self.cosine_steps, self.warmup, self.weight_decay
        if self.optimizer == "adafactor":
            return optim.adafactor(rate, steps, warmup=warmup, weight_decay=weight_decay)
        if steps is not None:
            return optim.adamw(rate, steps, warmup=warmup, weight_decay=weight_decay)
        return optim.constant(rate, warmup=warmup, weight_decay=weight_decay)


def train(
    model: Model,
    cache: Cache,
    config: RunConfig,
    folder: Path,
    *,
    steps: int,
    source: str,
    validate_every: int = 200,
    save_every: int = 200,
    log_every: int = 50,
    keep: int = 2,
    tensorboard: bool = False,
    videos: Sequence[Mapping[str, Any]] = (),
    video_every: int = 1000,
) -> Model:
    """Trains a LoRA or parts of the model's transformer to `steps` updates, on the model's mesh.

    It goes on from the run's newest checkpoint if there is one, whatever mesh that was made on.

    Args:
      source: what the model was loaded from; it is noted in the run.
      keep: checkpoints to keep, the newest, beside the best by validation loss.
      tensorboard: write the curve for TensorBoard, too.
      videos: arguments of `generate`, but for the model and progress, for each video that is made of the moving
        average every `video_every` updates; see `videos.write_videos`.
    Returns: the model with the moving average of what was trained.
    Raises: ValueError, before anything is compiled, for a cache of another model, a run with other settings,
      adapters or parts that the model cannot have, or a batch that the mesh cannot split; and where training
      meets numbers that are not finite.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    check_batch(model.mesh, config.batch_size, config.accumulate)
    trained, held_out = hold_out(cache, config.validation)
    check_model(cache, model)
    spec, start, frozen = _start(model, config)
    facts = _facts(model, cache, config, source)
    _check_same(folder, facts)
    _write_together(folder, facts | {"steps": steps})
    fixed: dict[str, Any] = {"base": frozen, "empty": replicate(cache.empty_text(), model.mesh)}
    if spec.kind == "i2v":
        fixed["vae"] = jax.tree.map(jnp.asarray, model.params["vae"])

    def rows(numbers: Sequence[int]) -> dict[str, Any]:
        found = cache.batch(numbers)
        if spec.kind != "i2v":
            del found["image"]
        return found

    def batches(step: int) -> dict[str, Any]:
        return rows([trained[i] for i in chosen_clips(len(trained), config.batch_size, step, config.seed)])

    def whole(base: Any, part: Any) -> Any:
        return parts.join(base, part) if config.lora is None else loras.merge(base, part, _scale(config.lora))

    def show(average: Any, done: int) -> None:
        # The spec of training: the bound on logits of a model's own would be a new one, and another program, each time.
        tuned = dataclasses.replace(_with(model, config.lora, average), spec=spec)
        write_videos(tuned, videos, folder / "videos" / str(done))

    state = fit(
        start,
        batches,
        place_loss(make_partial_loss(spec, config.objective, whole), model.mesh),
        config.tx,
        steps=steps,
        folder=folder,
        seed=config.seed,
        decay=config.average,
        accumulate=config.accumulate,
        fixed=fixed,
        mesh=model.mesh,
        tokens=config.batch_size * _tokens(spec, cache),
        flops=_flops(spec, cache, config, start),
        rate=config.rate,
        validate=make_validate(spec, rows, held_out, fixed, whole, config.batch_size, model.mesh) if held_out else None,
        validate_every=validate_every,
        show=show if videos else None,
        show_every=video_every,
        save_every=save_every,
        log_every=log_every,
        tensorboard=tensorboard,
        keep=keep,
    )
    if not _finite(state.params):
        raise ValueError(f"{folder}: training diverged; begin in another folder with a lower learning rate")
    return _with(model, config.lora, state.average)


@jax.jit
def _finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def _start(model: Model, config: RunConfig) -> tuple[ModelSpec, Any, Any]:
    """The spec to train with, what is trained, in float32, and what is not, on the model's mesh."""
    base = jax.tree.map(jnp.asarray, model.params["transformer"])
    if config.lora is not None:
        adapters = loras.init(jax.random.key(config.seed), _shapes(model.spec), config.lora)
        return model.spec, place_adapters(adapters, abstract_params(model.spec.transformer), model.mesh), base
    trained, frozen = parts.split(base, config.parts)
    # The bound on logits holds for the weights that were loaded, not for those they become.
    transformer = dataclasses.replace(model.spec.transformer, logit_bound=None)
    trained = jax.tree.map(lambda x: x.astype(jnp.float32), trained)
    return dataclasses.replace(model.spec, transformer=transformer), trained, frozen


def _with(model: Model, lora: LoRAConfig | None, trained: Any) -> Model:
    """The model with what was trained, in its parameters' types."""
    base = model.params["transformer"]
    if lora is not None:
        transformer = loras.merge(base, trained, _scale(lora))
        return dataclasses.replace(model, params=model.params | {"transformer": transformer})
    leaves, new = traverse_util.flatten_dict(base), traverse_util.flatten_dict(trained)
    transformer = traverse_util.unflatten_dict(leaves | {path: x.astype(leaves[path].dtype) for path, x in new.items()})
    spec = with_logit_bound(model.spec, transformer)
    return dataclasses.replace(model, spec=spec, params=model.params | {"transformer": transformer})


def _scale(lora: LoRAConfig) -> float:
    return lora.alpha / lora.rank


def _tokens(spec: ModelSpec, cache: Cache) -> int:
    """Of text and video, in each clip."""
    shape, scale = cache.shape, spec.vae.spatial_compression
    latents = padded_latent_frames(spec, shape.frames), shape.height // scale, shape.width // scale
    return token_count(spec.transformer, latents)


def _flops(spec: ModelSpec, cache: Cache, config: RunConfig, trained: Any) -> int:
    """Of an update."""
    rank = 0 if config.lora is None else config.lora.rank
    paths = trained if config.lora is not None else traverse_util.flatten_dict(trained, sep="/")
    return training_flops(spec.transformer, _tokens(spec, cache), paths, batch=config.batch_size, rank=rank)


def chosen_clips(count: int, batch: int, step: int, seed: int) -> list[int]:
    """The clips of a step: each epoch is another order of all of them, and steps go through them without a gap."""
    numbers = []
    for place in range(step * batch, (step + 1) * batch):
        order = np.random.default_rng((seed, place // count)).permutation(count)
        numbers.append(int(order[place % count]))
    return numbers


def is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file()


def run_source(folder: Path) -> str:
    """What the run's model was loaded from."""
    return str(_read(folder)["source"])


def is_lora(folder: Path) -> bool:
    """Whether a run trains a LoRA, not the model's parameters."""
    return _read(folder)["lora"] is not None


def read_lora(folder: Path, spec: ModelSpec, *, best: bool = False) -> LoRA:
    """The moving average of a run's adapters, from its newest checkpoint, or its best by validation loss.

    Raises: ValueError, one sentence, for a folder without a run or checkpoint, or a run of another model.
    """
    facts = _read(folder)
    _check_model(folder, facts, spec)
    if facts["lora"] is None:
        raise ValueError(f"{folder} trained the model itself, not a LoRA; `cogvx export` makes a model of it")
    lora = LoRAConfig(**facts["lora"] | {"targets": tuple(facts["lora"]["targets"])})
    adapters = _average(folder, loras.init(jax.random.key(0), _shapes(spec), lora), best)
    return LoRA(adapters=adapters, rank=lora.rank, alpha=lora.alpha)


def read_model(folder: Path, model: Model, *, best: bool = False) -> Model:
    """The model that a run of all or some of its parameters was trained from, with their moving average.

    Raises: ValueError as `read_lora`, and if its weights are not those that the run began with.
    """
    facts = _read(folder)
    _check_model(folder, facts, model.spec)
    if facts["lora"] is not None:
        raise ValueError(f"{folder} trained a LoRA, not the model itself")
    if facts["transformer"] != digest(model.params["transformer"]):
        raise ValueError(f"{folder} was trained from other weights than those of this {model.spec.name}")
    like, _ = parts.split(_shapes(model.spec), facts["parts"])
    return _with(model, None, _average(folder, like, best))


def run_dtype(folder: Path) -> str:
    """What the run's model computed in, and held its parameters in."""
    return str(_read(folder)["dtype"])


def _check_model(folder: Path, facts: Mapping[str, Any], spec: ModelSpec) -> None:
    width, layers = spec.transformer.width, spec.transformer.layers
    if (facts["width"], facts["layers"]) != (width, layers):
        raise ValueError(
            f"{folder} does not fit {spec.name} (width {width}, {layers} layers); "
            f"it was made for {facts['name']} (width {facts['width']}, {facts['layers']} layers)"
        )


def _average(folder: Path, like: Any, best: bool) -> Any:
    checkpoints = Checkpoints(folder / ("best" if best else "checkpoints"))
    try:
        if checkpoints.latest() is None:
            which = "of the best validation loss; train with --validation" if best else "yet; train it first"
            raise ValueError(f"{folder} has no checkpoint {which}")
        return checkpoints.restore_average(like)
    finally:
        checkpoints.close()


def _shapes(spec: ModelSpec) -> Any:
    shapes = {path: jax.ShapeDtypeStruct(s, "float32") for path, s in expected_shapes(spec, "transformer").items()}
    return traverse_util.unflatten_dict(shapes, sep="/")


def _facts(model: Model, cache: Cache, config: RunConfig, source: str) -> dict[str, Any]:
    """What stands in run.json, but for the length."""
    cfg = model.spec.transformer
    facts = {
        "source": source,
        "name": model.spec.name,
        "width": cfg.width,
        "layers": cfg.layers,
        "dtype": cfg.dtype,
        "transformer": digest(model.params["transformer"]),
        "data": cache.digest,
        "clips": len(cache.clips),
        "shape": dataclasses.asdict(cache.shape),
    }
    return json.loads(json.dumps(facts | dataclasses.asdict(config)))  # tuples as they will be read back


def check_folder(folder: Path) -> None:
    """Raises ValueError where `folder` holds something, but neither a run nor the clips for one."""
    if folder.exists() and not is_run(folder) and not (folder / "cache").is_dir():
        if not folder.is_dir() or any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no run; give another folder")


def _check_same(folder: Path, facts: Mapping[str, Any]) -> None:
    check_folder(folder)
    if not is_run(folder):
        return
    unsaid = json.loads(json.dumps(dataclasses.asdict(RunConfig())))  # settings that an older run does not name
    was, now = _flat(unsaid | _read(folder)), _flat(facts)
    ignored = {"steps", "source"}  # a run may go on, and its model may have moved
    changed = [name for name in now if name not in ignored and was.get(name) != now[name]]
    if changed:
        each = "; ".join(f"{name} was {was.get(name)} and is now {now[name]}" for name in changed)
        raise ValueError(f"{folder} holds a run with other settings: {each}; repeat them, or give another folder")


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {k.replace("/", "."): v for k, v in traverse_util.flatten_dict(dict(facts), sep="/").items()}


def _read(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / "run.json").read_text())
        if not isinstance(facts, dict) or not KEYS <= facts.keys():
            raise ValueError(f"it has not all of {', '.join(sorted(KEYS))}")
        return facts
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} holds no run of `cogvx train`: it has no run.json") from None
    except ValueError as error:
        raise ValueError(f"{folder / 'run.json'} cannot be read: {error}") from None


def _write_together(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes run.json once, when every process has read what was there.

    Raises: ValueError where one of them does not see the folder of the first.
    """
    wait_for_all("run.json is read")
    if first_process():
        _write(folder, facts)
    wait_for_all("run.json is written")
    if not is_run(folder):
        raise ValueError(f"{folder} must be one folder for all processes, on a disk that they share; here it is not")


def _write(folder: Path, facts: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / ".run.json"
    partial.write_text(json.dumps(facts, indent=2) + "\n")
    partial.replace(folder / "run.json")
