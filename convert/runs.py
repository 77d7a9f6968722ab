"""A run's folder as a checkpoint: `run.json` says what was trained, the newest checkpoint holds the numbers.

`cogvx_jax.train.run_folder` writes it.
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.sharding import SingleDeviceSharding

from cogvx_jax.configs import ControlNetConfig, Distilled, LoRAConfig, ModelSpec
from cogvx_jax.convert.checkpoint import expected_shapes
from cogvx_jax.json_files import parse_json
from cogvx_jax.models import lora as loras
from cogvx_jax.models.abstract import abstract_params
from cogvx_jax.models.lora import LoRA
from cogvx_jax.storage import BUCKETS, StoragePath, is_bucket, read_file, storage_path

TRAINED = {"lora": "a LoRA", "controlnet": "a ControlNet", "parts": "the model itself"}
USE = {
    "lora": "give it as a LoRA",
    "controlnet": "give it as a ControlNet",
    "parts": "`cogvx export` makes a model of it",
}
Kind = Literal["transformer", "vae", "cogvideo2022"]  # of networks that runs train
KEYS = {"source", "name", "width", "layers", "lora"}  # of run.json, what reading a run needs


def is_run(folder: StoragePath) -> bool:
    return (folder / "run.json").is_file()


def find_run(place: str) -> StoragePath | None:
    """The run that a path or URL stands for; None where there is none, as below a URL that is not written to."""
    scheme, is_url, _ = place.partition("://")
    if is_url and scheme not in BUCKETS:
        return None
    folder = storage_path(place)
    return folder if is_run(folder) else None


def read_run(folder: StoragePath, keys: Collection[str] = KEYS, verb: str = "train") -> dict[str, Any]:
    """What run.json says.

    Args:
      keys: that it must have.
      verb: of `cogvx` that writes such a run, for messages.
    Raises: FileNotFoundError; ValueError for a file that is not such a run's.
    """
    if not is_run(folder):
        raise FileNotFoundError(f"{folder} holds no run of `cogvx {verb}`: it has no run.json")
    return read_record(folder / "run.json", keys)


def read_record(file: StoragePath, keys: Collection[str] = KEYS) -> dict[str, Any]:
    """What a run.json says, or that in a folder. Raises: FileNotFoundError; ValueError where it lacks any of `keys`."""
    file = file / "run.json" if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}; give the run.json of a run")
    try:
        said = parse_json(read_file(file))
        if not said.keys() >= set(keys):
            raise ValueError(f"it has not all of {', '.join(sorted(keys))}")
        return said
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from None


def run_source(folder: StoragePath) -> str:
    """What the run's model was loaded from."""
    return str(read_run(folder)["source"])


def run_dtype(folder: StoragePath) -> str:
    """What the run's model computed in, and held its parameters in."""
    return str(read_run(folder)["dtype"])


def trained_part(said: Mapping[str, Any]) -> Literal["lora", "controlnet", "parts"]:
    """What a run of the transformer trains, by what run.json says: the last is parameters of the model itself."""
    if said["lora"] is not None:
        return "lora"
    return "parts" if said.get("controlnet") is None else "controlnet"


def check_trains(folder: StoragePath, said: Mapping[str, Any], wanted: str) -> None:
    """Raises: ValueError where a run trained something else than `wanted`, saying how that is used."""
    if (found := trained_part(said)) != wanted:
        raise ValueError(f"{folder} trained {TRAINED[found]}, not {TRAINED[wanted]}; {USE[found]}")


def run_controlnet_config(folder: StoragePath) -> ControlNetConfig:
    """Sizes of the ControlNet that a run trains. Raises: ValueError for another run, or a damaged record; OSError."""
    said = read_run(folder)
    check_trains(folder, said, "controlnet")
    try:
        return ControlNetConfig(**said["controlnet_config"])
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{folder / 'run.json'} is damaged: its controlnet_config, {error}") from None


def read_run_controlnet(folder: StoragePath, *, best: bool = False) -> tuple[ControlNetConfig, Any]:
    """Sizes and the moving average of a run's ControlNet, as `read_run_lora` reads adapters.

    Raises: ValueError, one sentence, for a folder without a checkpoint, or another run.
    """
    cfg = run_controlnet_config(folder)
    shapes = {path: jax.ShapeDtypeStruct(p.shape, "float32") for path, p in abstract_params(cfg).items()}
    return cfg, read_exported(folder, traverse_util.unflatten_dict(shapes, sep="/"), best)


def run_kind(folder: StoragePath) -> Kind:
    """What the run in `folder` trains. Raises: as `read_run`."""
    return trained_kind(read_run(folder, ()))


def trained_kind(said: Mapping[str, Any]) -> Kind:
    """What a run trains, by what run.json says."""
    found = said.get("trains")
    return found if found in ("vae", "cogvideo2022") else "transformer"


def run_verb(said: Mapping[str, Any]) -> str:
    """The verb of `cogvx` that makes runs of which run.json says such things."""
    if said.get("trains") == "vae":
        return "train-vae"
    return "train" if said.get("distill") is None else "distill"


def is_vae_run(folder: StoragePath) -> bool:
    """Whether `folder` holds a run that trains a VAE."""
    try:
        return run_kind(folder) == "vae"
    except (OSError, ValueError):
        return False


def is_cogvideo2022_run(folder: StoragePath) -> bool:
    """Whether `folder` holds a run that trains a CogVideo (2022)."""
    return is_run(folder) and run_kind(folder) == "cogvideo2022"


def read_run_lora(folder: StoragePath, spec: ModelSpec, *, best: bool = False) -> LoRA:
    """The moving average of a run's adapters, from its newest checkpoint, or its best by validation loss.

    Raises: ValueError, one sentence, for a folder without a run or checkpoint, or a run of another model.
    """
    said = read_run(folder)
    check_trained_from(folder, said, spec)
    check_trains(folder, said, "lora")
    try:
        lora = LoRAConfig(**said["lora"] | {"targets": tuple(said["lora"]["targets"])})
        distilled = Distilled(**said["distilled"]) if "distilled" in said else None
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{folder / 'run.json'} is damaged: its lora, {error}") from None
    adapters = read_exported(folder, loras.init(jax.random.key(0), transformer_shapes(spec), lora), best)
    alpha = lora.scale * lora.rank
    told = f"a run of `cogvx {run_verb(said)}`, {len(adapters)} kernels, rank {lora.rank}, alpha {alpha:g}"
    told += "" if distilled is None else f", for {distilled}"
    return LoRA(adapters=adapters, rank=lora.rank, alpha=alpha, told=told, distilled=distilled)


def check_trained_from(folder: StoragePath, said: Mapping[str, Any], spec: ModelSpec) -> None:
    """Raises ValueError where `run.json` says that the run was of a model of another size than `spec`."""
    width, layers = spec.transformer.width, spec.transformer.layers
    if (said["width"], said["layers"]) != (width, layers):
        raise ValueError(
            f"{folder} does not fit {spec.name} (width {width}, {layers} layers); "
            f"it was made for {said['name']} (width {said['width']}, {said['layers']} layers)"
        )


def read_exported(run: StoragePath, like: Any, best: bool) -> Any:
    """The arrays for use in a run's newest checkpoint, on one device: the moving average, else the parameters.

    Args:
      like: a tree of their shapes.
      best: of the lowest validation loss, not of the newest checkpoint.
    Raises: ValueError where there is no such checkpoint.
    """
    folder = run / ("best" if best else "checkpoints")
    if folder.is_dir():
        with _open(folder) as manager:
            if manager.latest_step() is not None:
                return _restore_exported(manager, like)
    which = "of the best validation loss; train with --validation" if best else "yet; train it first"
    raise ValueError(f"{run} has no checkpoint {which}")


def newest_update(run: StoragePath) -> int:
    """Updates done at a run's newest checkpoint; 0 where there is none. Nothing is written."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return 0
    with _open(folder) as manager:
        return manager.latest_step() or 0


def transformer_shapes(spec: ModelSpec) -> Any:
    """The transformer's parameters as shapes in float32, which is what they are trained in."""
    shapes = {path: jax.ShapeDtypeStruct(s, "float32") for path, s in expected_shapes(spec, "transformer").items()}
    return traverse_util.unflatten_dict(shapes, sep="/")


def _open(folder: StoragePath) -> ocp.CheckpointManager:
    where = storage_path(folder)
    apart = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=f"read {where.name}")
    options = ocp.CheckpointManagerOptions(read_only=True, multiprocessing_options=apart)
    path = where if is_bucket(where) else where.absolute()
    return ocp.CheckpointManager(path, options=options, item_handlers=ocp.PyTreeCheckpointHandler())


def _restore_exported(manager: ocp.CheckpointManager, like: Any) -> Any:
    here = SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like)
    step = manager.latest_step()
    part = "params" if manager.item_metadata(step)["average"] is None else "average"
    wanted = {part: shapes}
    restore = ocp.checkpoint_utils.construct_restore_args(wanted)
    return manager.restore(step, args=ocp.args.PyTreeRestore(wanted, restore_args=restore, partial_restore=True))[part]
