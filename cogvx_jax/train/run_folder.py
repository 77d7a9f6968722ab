"""RUN/run.json: what a run trains on what, so that it can be repeated, gone on with and read."""

import json
from collections.abc import Mapping
from typing import Any

from cogvx_jax.convert.runs import is_run, read_run
from cogvx_jax.sharding import first_process, wait_for_all
from cogvx_jax.storage import StoragePath, write_whole

MOVES = {"source"}  # the model may lie elsewhere when a run goes on


def as_json(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What is read back after writing: tuples become lists."""
    return json.loads(json.dumps(facts))


def check_same(folder: StoragePath, facts: Mapping[str, Any], unsaid: Mapping[str, Any]) -> None:
    """Raises ValueError where `folder` holds a run that does not begin as `facts` say.

    Stages may be added at the end, and the last one be made longer, or shorter while it is the last.

    Args:
      unsaid: settings of a run that was made when there were no others.
    """
    check_folder(folder)
    if not is_run(folder):
        return
    old = {**as_json(unsaid), **read_run(folder)}
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
