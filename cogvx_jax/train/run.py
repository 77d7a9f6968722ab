"""A fine-tuning run: a folder that says what is trained on what, its checkpoints and its curve.

RUN/run.json      the settings; going on with others is refused
RUN/log.jsonl     loss, gradient norm and pace
RUN/checkpoints/  state of the newest updates
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from cogvx_jax.configs import ModelSpec
from cogvx_jax.convert import expected_shapes
from cogvx_jax.models import lora as loras
from cogvx_jax.models.lora import LoRA, LoRAConfig
from cogvx_jax.pipelines.model import Model
from cogvx_jax.train import optim
from cogvx_jax.train import step as update
from cogvx_jax.train.checkpoint import Checkpoints
from cogvx_jax.train.latents import Cache, check_model, digest
from cogvx_jax.train.loop import fit
from cogvx_jax.train.objective import Objective, make_lora_loss

# Of run.json, what reading a run needs.
KEYS = {"source", "name", "width", "layers", "lora", "learning_rate", "warmup", "weight_decay"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What makes a run what it is, but for its length.

    Raises: ValueError for numbers that cannot be.
    """

    lora: LoRAConfig = LoRAConfig()
    objective: Objective = Objective()
    batch_size: int = 4
    learning_rate: float = 5e-4  # of the adapters; the authors use 5e-4 to 1e-3
    warmup: int = 50  # updates
    weight_decay: float = 1e-4
    average: float = 0.99  # decay of the moving average that is exported
    seed: int = 0

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"the batch size must be at least 1, got {self.batch_size}")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"the learning rate must be above 0 and below 1, got {self.learning_rate}")
        if self.warmup < 0 or self.weight_decay < 0 or not 0 <= self.average < 1:
            raise ValueError("warmup and weight decay must be at least 0, the average's decay in 0..1")

    @property
    def tx(self) -> optax.GradientTransformation:
        return optim.constant(self.learning_rate, warmup=self.warmup, weight_decay=self.weight_decay)


def train(
    model: Model,
    cache: Cache,
    config: RunConfig,
    folder: Path,
    *,
    steps: int,
    source: str,
    save_every: int = 200,
    log_every: int = 50,
) -> LoRA:
    """Trains adapters of the model's transformer to `steps` updates, from the run's newest checkpoint if there is one.

    Args:
      source: what the model was loaded from; it is noted in the run.
    Returns: the moving average of the adapters.
    Raises: ValueError, before anything is compiled, for a cache of another model, a run with other settings,
      or adapters that the model cannot have; and at the end if the adapters are not finite.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    check_model(cache, model)
    adapters = loras.init(jax.random.key(config.seed), _shapes(model.spec), config.lora)
    facts = _facts(model, cache, config, source)
    _check_same(folder, facts)
    _write(folder, facts | {"steps": steps})
    fixed: dict[str, Any] = {"base": jax.tree.map(jnp.asarray, model.params["transformer"])}
    fixed["empty"] = jnp.asarray(cache.empty_text())
    if model.spec.kind == "i2v":
        fixed["vae"] = jax.tree.map(jnp.asarray, model.params["vae"])

    def batches(step: int) -> dict[str, Any]:
        found = cache.batch(chosen_clips(len(cache.clips), config.batch_size, step, config.seed))
        if model.spec.kind != "i2v":
            del found["image"]
        return found | fixed

    state = fit(
        adapters,
        batches,
        make_lora_loss(model.spec, config.objective, config.lora.alpha / config.lora.rank),
        config.tx,
        steps=steps,
        folder=folder,
        seed=config.seed,
        decay=config.average,
        save_every=save_every,
        log_every=log_every,
    )
    if not all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(state.params)):
        raise ValueError(f"{folder}: training diverged; begin in another folder with a lower learning rate")
    return LoRA(adapters=state.average, rank=config.lora.rank, alpha=config.lora.alpha)


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


def read_lora(folder: Path, spec: ModelSpec) -> LoRA:
    """The moving average of a run's adapters, from its newest checkpoint.

    Raises: ValueError, one sentence, for a folder without a run or checkpoint, or a run of another model.
    """
    facts = _read(folder)
    width, layers = spec.transformer.width, spec.transformer.layers
    if (facts["width"], facts["layers"]) != (width, layers):
        raise ValueError(
            f"{folder} does not fit {spec.name} (width {width}, {layers} layers); "
            f"it was made for {facts['name']} (width {facts['width']}, {facts['layers']} layers)"
        )
    lora = LoRAConfig(**facts["lora"] | {"targets": tuple(facts["lora"]["targets"])})
    plain = {k: facts[k] for k in ("learning_rate", "warmup", "weight_decay")}
    tx = RunConfig(lora=lora, **plain).tx
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        if checkpoints.latest() is None:
            raise ValueError(f"{folder} has no checkpoint yet; train it first")
        fresh = loras.init(jax.random.key(0), _shapes(spec), lora)
        adapters = checkpoints.restore(update.init(fresh, tx)).average
    finally:
        checkpoints.close()
    return LoRA(adapters=adapters, rank=lora.rank, alpha=lora.alpha)


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
    was, now = _flat(_read(folder)), _flat(facts)
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


def _write(folder: Path, facts: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / ".run.json"
    partial.write_text(json.dumps(facts, indent=2) + "\n")
    partial.replace(folder / "run.json")
