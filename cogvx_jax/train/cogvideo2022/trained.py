"""A run of CogVideo (2022) as a model: the folder that it began with, with what it trained."""

from pathlib import Path

from flax import traverse_util

from cogvx_jax.convert.cogvideo2022_folder import Parts, open_parts, write_shared
from cogvx_jax.convert.cogvideo2022_made import with_stage
from cogvx_jax.convert.runs import read_exported, read_run
from cogvx_jax.models.cogvideo2022.transformer import of_base
from cogvx_jax.sharding import params_digest
from cogvx_jax.storage import StoragePath
from cogvx_jax.train.cogvideo2022.beginning import begin
from cogvx_jax.train.cogvideo2022.run import trained_shapes
from cogvx_jax.train.cogvideo2022.settings import CodesRunConfig
from cogvx_jax.train.fields import read_fields

KEYS = {"trains", "source", "dtype", "channel", "new_channel", "parts", "transformer", "seed"}


def read_trained(run: StoragePath, *, best: bool = False) -> Parts:
    """The folder that a run began with, with the stage as the run trained it.

    Other stages are in it if the base is still theirs.

    Raises: ValueError for a run without a checkpoint, or one whose model has other weights now.
    """
    said = read_run(run, KEYS)
    try:
        config = CodesRunConfig(**read_fields(CodesRunConfig, said))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{run / 'run.json'} is damaged: {error}") from None
    parts = open_parts(str(said["source"]))
    begins = begin(parts, config.channel, new=config.new_channel, seed=config.seed)
    if params_digest(begins.params) != said["transformer"]:
        raise ValueError(f"{run} was trained from other weights than those of {said['source']}")
    trained = traverse_util.flatten_dict(read_exported(run, trained_shapes(begins, config), best), sep="/")
    whole = traverse_util.flatten_dict(dict(begins.params), sep="/") | trained
    return with_stage(parts, begins.cfg, whole, base=any(of_base(path) for path in trained))


def write_trained(run: StoragePath, out: Path, *, best: bool = False) -> list[str]:
    """Writes that folder as ours. Gives the stages that are in it. Raises: as `read_trained`; FileExistsError."""
    parts = read_trained(run, best=best)
    write_shared(parts, out)
    return list(parts.stages)
