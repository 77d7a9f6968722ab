"""A run of CogVideo (2022): a folder that says what is trained on what, its checkpoints and its curve.

RUN/run.json      the settings; going on with others is refused
RUN/log.jsonl     loss, gradient norm and pace; loss of clips that are not trained on
RUN/checkpoints/  state of the newest updates
RUN/best/         state of the lowest loss of those clips
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from cogvx_jax.convert.runs import Kind
from cogvx_jax.models.cogvideo2022.transformer import CogVideo2022
from cogvx_jax.pipelines.cogvideo2022.text import TextTokenizer
from cogvx_jax.sharding import activate, everywhere, params_digest
from cogvx_jax.storage import StoragePath
from cogvx_jax.train import optim, parts, run_folder
from cogvx_jax.train.checkpoint import newest_update
from cogvx_jax.train.clips.held_out import hold_out
from cogvx_jax.train.cogvideo2022.batches import Batches, Clips, warn_of_long
from cogvx_jax.train.cogvideo2022.beginning import Beginning
from cogvx_jax.train.cogvideo2022.objective import make_loss, rows_of, weighted
from cogvx_jax.train.cogvideo2022.settings import CodesRunConfig
from cogvx_jax.train.loop import Input, Update, run_updates
from cogvx_jax.train.pace import Pace
from cogvx_jax.train.placement import Placement, check_batch
from cogvx_jax.train.progress import Span, Watch
from cogvx_jax.train.transformer.settings import StageSettings

TRAINS: Kind = "cogvideo2022"
LEARNING_RATE = 2e-4  # the makers'


def train_codes(
    begins: Beginning,
    tokenizer: TextTokenizer,
    clips: Clips,
    stage: StageSettings,
    config: CodesRunConfig,
    folder: StoragePath,
    *,
    source: str,
    dtype: str = "float32",
    remat: bool = False,
    mesh: Mesh | None = None,
    pace: Pace = Pace(),  # noqa: B008
    command: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains parts of a stage, by default its channel, from the run's newest checkpoint if there is one.

    Args:
      begins: its parameters, on the mesh.
      source: what the model was loaded from; it is noted in the run.
      dtype: to compute in; what is frozen is kept in it, too.
      remat: compute each layer anew in the backward pass.
      command: options that change no number; noted in the run.
    Returns: all parameters, with the moving average of those that were trained.
    Raises: ValueError, before anything is compiled, for a run with other settings, clips of a length that no video has,
      parts that the model has not, a batch that the mesh cannot split, or a folder in use; and where training meets
      numbers that are not finite.
    """
    check_batch(mesh, stage.batch_size, stage.accumulate)
    network, placement = CogVideo2022(begins.cfg, dtype, remat), Placement(mesh)
    trained, frozen = parts.split(begins.params, config.parts)
    batches, held_out = _divided(begins, tokenizer, clips, stage, config)
    facts = _facts(begins, clips, stage, config, source, dtype)
    facts["command"] = {**dataclasses.asdict(pace), **(command or {})}
    run_folder.check_same(folder, facts)
    fixed = {"base": jax.tree.map(lambda x: x.astype(dtype), frozen)}
    peak = stage.learning_rate or LEARNING_RATE
    with run_folder.used(folder):
        if newest_update(folder) < stage.steps:
            run_folder.write(folder, facts)
        state = run_updates(
            trained,
            Input(batches=batches, fixed=fixed),
            Update(
                loss=placement.loss(make_loss(network, config.objective)),
                tx=_optimizer(config, stage, peak),
                decay=config.average,
                accumulate=stage.accumulate,
            ),
            Span(steps=stage.steps),
            folder,
            seed=config.seed,
            pace=pace,
            placement=placement,
            watch=Watch(
                tokens=stage.batch_size * begins.cfg.frames * begins.cfg.frame_codes,
                rate=optim.schedule(peak, stage.decay_steps, warmup=stage.warmup),
                validate=make_validate(network, config, batches, held_out, fixed, stage.batch_size, mesh),
            ),
        )
    return parts.join(frozen, state.exported)


def make_validate(
    network: CogVideo2022,
    config: CodesRunConfig,
    batches: Batches,
    numbers: Sequence[int],
    fixed: Mapping[str, Any],
    batch_size: int,
    mesh: Mesh | None,
) -> Callable[[Any], dict[str, float]] | None:
    """`validate(trained) -> {"loss": mean over these clips}`; None where there are none."""
    if not numbers:
        return None

    @functools.partial(jax.jit, out_shardings=everywhere(mesh))
    def losses(trained: Any, batch: Any) -> jax.Array:
        with activate(mesh):
            return weighted(network, config.objective, parts.join(batch["base"], trained), rows_of(batch))

    def validate(trained: Any) -> dict[str, float]:
        found: list[np.ndarray] = []
        for start in range(0, len(numbers), batch_size):
            some = list(numbers[start : start + batch_size])
            full = (some * batch_size)[:batch_size]  # one shape, one program
            batch = Placement(mesh).batch(batches.all_of(full)) | dict(fixed)
            found.append(np.asarray(losses(trained, batch))[: len(some)])
        return {"loss": float(np.mean(np.concatenate(found)))}

    return validate


def _divided(
    begins: Beginning, tokenizer: TextTokenizer, clips: Clips, stage: StageSettings, config: CodesRunConfig
) -> tuple[Batches, list[int]]:
    """Batches of the clips to train on, and the numbers of those to validate with."""
    keys = [str(number) for number in range(len(clips.prompts))] if clips.keys is None else list(clips.keys)
    chosen = hold_out(keys, config.validation)
    held_out = [number for number, key in enumerate(keys) if key in chosen]
    numbers = [number for number, key in enumerate(keys) if key not in chosen]
    warn_of_long(tokenizer, clips.prompts, begins.cfg.text_length)
    made = Batches(begins.cfg, tokenizer, clips, config.objective, numbers, stage.batch_size, config.seed)
    return made, held_out


def _optimizer(config: CodesRunConfig, stage: StageSettings, peak: float) -> optax.GradientTransformation:
    make: Any = getattr(optim, config.optimizer)
    made: optax.GradientTransformation = make(
        peak, stage.decay_steps, warmup=stage.warmup, weight_decay=config.weight_decay
    )
    return made


def _facts(
    begins: Beginning, clips: Clips, stage: StageSettings, config: CodesRunConfig, source: str, dtype: str
) -> dict[str, Any]:
    """What stands in run.json."""
    settings = {field.name: getattr(stage, field.name) for field in dataclasses.fields(StageSettings)}
    facts = {
        "trains": TRAINS,
        "source": source,
        "dtype": dtype,
        "sizes": dataclasses.asdict(begins.cfg),
        "transformer": params_digest(begins.params),
    }
    data = [{"clips": len(clips.prompts), "frames": clips.frames, "digest": clips.digest, "folder": clips.where}]
    return run_folder.as_json(facts | dataclasses.asdict(config) | {"stages": [{"data": data} | settings]})


def trained_shapes(begins: Beginning, config: CodesRunConfig) -> Any:
    """What a run trains as shapes in float32."""
    trained, _ = parts.split(begins.params, config.parts)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), trained)
