"""RUN/run.json: what a run trains on what, so that it can be repeated, gone on with and read."""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cogvx_jax.pipelines.model import Model
from cogvx_jax.sharding import first_process, params_digest, wait_for_all
from cogvx_jax.storage import StoragePath, write_whole
from cogvx_jax.train.clips.batches import Share
from cogvx_jax.train.transformer.stages import Stage

KEYS = {"source", "name", "width", "layers", "lora"}  # what reading a run needs
MOVES = {"source"}  # the model may lie elsewhere when a run goes on


def describe(
    model: Model, config: Any, stages: Sequence[Stage], shares: Sequence[Sequence[Share]], source: str
) -> dict[str, Any]:
    """What stands in run.json.

    Args:
      config: the run's other settings, a dataclass.
      shares: the data of each stage.
      source: what the model was loaded from.
    """
    cfg = model.spec.transformer
    facts = {
        "source": source,
        "name": model.spec.name,
        "width": cfg.width,
        "layers": cfg.layers,
        "dtype": cfg.dtype,
        "transformer": params_digest(model.params["transformer"]),
    }
    described = [_stage(stage, of) for stage, of in zip(stages, shares, strict=True)]
    return _json(facts | dataclasses.asdict(config) | {"stages": described})


def _json(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Tuples as they are read back."""
    return json.loads(json.dumps(facts))


def _stage(stage: Stage, shares: Sequence[Share]) -> dict[str, Any]:
    data = [
        {"clips": len(of.clips), "digest": of.digest, "shape": dataclasses.asdict(of.shape), "weight": share.weight}
        for share in shares
        for of in [share.cache]
    ]
    return {field.name: getattr(stage, field.name) for field in dataclasses.fields(stage)} | {"data": data}


def check_same(folder: StoragePath, facts: Mapping[str, Any], unsaid: Mapping[str, Any]) -> None:
    """Raises ValueError where `folder` holds a run that does not begin as `facts` say.

    Stages may be added at the end, and the last one be made longer, or shorter while it is the last.

    Args:
      unsaid: settings of a run that was made when there were no others.
    """
    check_folder(folder)
    if not is_run(folder):
        return
    old = {**_json(unsaid), **read(folder)}
    stages, count = facts["stages"], len(old.get("stages", ()))
    if len(stages) < count:
        raise ValueError(f"{folder} holds a run of {count} stages, and now there are {len(stages)}; repeat them all")
    was, now = flat(old), flat({**facts, "stages": stages[:count]})
    ignored = set(MOVES)
    last = f"stages.{count}.steps"
    if last in now and stages[count - 1]["schedule"] == "constant":
        ignored |= {last} if len(stages) == count or now[last] >= was[last] else set()
    names = [*now, *(name for name in was.keys() - now.keys() if name.startswith("stages."))]
    changed = [name for name in names if name not in ignored and was.get(name) != now.get(name)]
    if changed:
        each = "; ".join(f"{name} was {was.get(name)} and is now {now.get(name)}" for name in changed)
        raise ValueError(f"{folder} holds a run with other settings: {each}; repeat them, or give another folder")


def check_folder(folder: StoragePath) -> None:
    """Raises ValueError where `folder` holds something, but neither a run nor the clips for one."""
    if folder.exists() and not is_run(folder) and not (folder / "cache").is_dir():
        if not folder.is_dir() or any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no run; give another folder")


def is_run(folder: StoragePath) -> bool:
    return (folder / "run.json").is_file()


def run_source(folder: StoragePath) -> str:
    """What the run's model was loaded from."""
    return str(read(folder)["source"])


def run_dtype(folder: StoragePath) -> str:
    """What the run's model computed in, and held its parameters in."""
    return str(read(folder)["dtype"])


def is_lora(folder: StoragePath) -> bool:
    """Whether a run trains a LoRA, not the model's parameters."""
    return read(folder)["lora"] is not None


def read(folder: StoragePath, keys: Collection[str] = KEYS, verb: str = "train") -> dict[str, Any]:
    """What run.json says.

    Args:
      keys: that it must have.
      verb: of `cogvx` that writes such a run, for messages.
    Raises: FileNotFoundError; ValueError for a file that is not such a run's.
    """
    try:
        facts = json.loads((folder / "run.json").read_text())
        if not isinstance(facts, dict) or not facts.keys() >= set(keys):
            raise ValueError(f"it has not all of {', '.join(sorted(keys))}")
        return facts
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} holds no run of `cogvx {verb}`: it has no run.json") from None
    except ValueError as error:
        raise ValueError(f"{folder / 'run.json'} cannot be read: {error}") from None


def write(folder: StoragePath, facts: Mapping[str, Any]) -> None:
    """Writes run.json once, when every process has read what was there.

    Raises: ValueError where one of them does not see the folder of the first.
    """
    wait_for_all("run.json is read")
    if first_process():
        write_whole(folder / "run.json", (json.dumps(facts, indent=2) + "\n").encode())
    wait_for_all("run.json is written")
    if not is_run(folder):
        raise ValueError(f"{folder} must be one folder that all processes see; here it is not")


def flat(facts: Any, name: str = "") -> dict[str, Any]:
    """{"lora.rank": 4, "stages.1.steps": 100, ...}; of lists, only those of objects are taken apart."""
    if isinstance(facts, dict):
        inside = facts.items()
    elif isinstance(facts, list) and facts and isinstance(facts[0], dict):
        inside = {str(i): value for i, value in enumerate(facts, 1)}.items()
    else:
        return {name: facts}
    found: dict[str, Any] = {}
    for key, value in inside:
        found |= flat(value, f"{name}.{key}" if name else key)
    return found
