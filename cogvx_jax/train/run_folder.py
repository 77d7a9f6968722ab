"""A run's folder: RUN/run.json says what is trained on what, so that a run can be repeated, gone on with and read.

    run_folder.check_same(folder, facts, modern)
    with run_folder.used(folder):
        run_folder.write(folder, facts)

Both kinds of runs share it; `cogvx_jax.convert.runs` reads it. In run.json, `stages` is a list of objects, and
`command` holds what changes no number of the run. Neither that, nor where the model and the data lie, need be the same
when a run goes on.
"""

import contextlib
import fnmatch
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from cogvx_jax.convert.runs import Kind, is_run, read_run, run_kind, trained_kind
from cogvx_jax.sharding import first_process, wait_for_all
from cogvx_jax.storage import StoragePath, is_bucket, is_empty, write_whole

COMMANDS: dict[Kind, str] = {
    "transformer": "cogvx train",
    "vae": "cogvx train-vae",
    "cogvideo2022": "cogvx train --model COGVIDEO",
}
# Which may differ when a run goes on.
MOVES = ("source", "controlnet.start", "command.*", "stages.*.folder", "stages.*.data.*.folder")
LOCK = ".lock"


def as_json(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What is read back after writing: tuples become lists."""
    return json.loads(json.dumps(facts))


def check_same(
    folder: StoragePath, facts: Mapping[str, Any], modern: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> None:
    """Raises ValueError where `folder` holds a run that does not begin as `facts` say.

    Stages may be added at the end, and the last one be made longer, or shorter while it is the last.

    Args:
      modern: gives what run.json holds, which an older version may have written, as it is written now.
    """
    check_folder(folder, trained_kind(facts))
    if not is_run(folder):
        return
    try:
        old = modern(read_run(folder, ()))
        count = len(list(old.get("stages", ())))
        if any(not isinstance(stage, dict) or "steps" not in stage for stage in old.get("stages", ())):
            raise TypeError("a stage of it has no steps")
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder / 'run.json'} is damaged: {error}") from None
    stages = facts["stages"]
    if len(stages) < count:
        raise ValueError(f"{folder} holds a run of {count} stages, and now there are {len(stages)}; repeat them all")
    was, now = flat(old), flat({**facts, "stages": stages[:count]})
    ignored = set()
    last = f"stages.{count}.steps"
    if last in now and stages[count - 1].get("schedule", "constant") == "constant":
        ignored = {last} if len(stages) == count or now[last] >= was[last] else set()
    names = [*now, *(name for name in was if name not in now and name.startswith("stages."))]
    changed = [name for name in names if name not in ignored and not _moves(name) and was.get(name) != now.get(name)]
    if changed:
        each = "; ".join(f"{name} was {was.get(name)} and is now {now.get(name)}" for name in changed)
        raise ValueError(f"{folder} holds a run with other settings: {each}; repeat them, or give another folder")


class HasSteps(Protocol):
    @property
    def steps(self) -> int: ...


def ends(stages: Sequence[HasSteps]) -> list[int]:
    """Updates of the run that are done when each of its stages is."""
    return [sum(stage.steps for stage in stages[: i + 1]) for i in range(len(stages))]


def reached(before: int, steps: int) -> str:
    """What became of a run that was to be trained to `steps` updates and had some before."""
    if before < steps:
        return f"trained to update {steps}"
    return f"is at update {before} already, {steps} were asked for, and nothing was trained"


def check_folder(folder: StoragePath, kind: Kind) -> None:
    """Raises ValueError where `folder` holds something, but neither such a run nor the clips for one."""
    if is_run(folder):
        found = run_kind(folder)
        if found != kind:
            raise ValueError(
                f"{folder} holds a run of `{COMMANDS[found]}`, not of `{COMMANDS[kind]}`; give another folder"
            )
    elif folder.exists() and not (kind != "vae" and (folder / "cache").is_dir()):
        if not folder.is_dir() or not is_empty(folder) and {path.name for path in folder.iterdir()} != {LOCK}:
            run = "run" if kind != "vae" else f"run of `{COMMANDS[kind]}`"
            raise ValueError(f"{folder} is not empty and holds no {run}; give another folder")


def check_free(folder: StoragePath) -> None:
    """Raises ValueError where another process trains in the folder now; the first of several processes finds out."""
    if first_process() and is_run(folder):
        _lock(folder).close()


@contextlib.contextmanager
def used(folder: StoragePath) -> Iterator[None]:
    """Inside, no other process can train in the folder.

    The operating system gives the lock back when the process ends, however it does. On a disk that hosts share it
    holds between them where that disk knows `flock`, as NFS and Lustre do by default. Buckets know no locks.

    Raises: ValueError where another process trains in it.
    """
    if not first_process():
        yield
        return
    if not is_bucket(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(_lock(folder)):
        yield


def _lock(folder: StoragePath) -> Any:
    """Holds the folder until it is closed."""
    held = contextlib.ExitStack()
    if is_bucket(folder):
        return held
    try:
        import fcntl
    except ImportError:  # Windows
        return held
    if (folder / LOCK).exists() and not (folder / LOCK).is_file():  # opening a FIFO would wait for ever
        raise ValueError(f"{folder / LOCK} is no file; remove it")
    file = held.enter_context(open(folder / LOCK, "ab"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        raise ValueError(
            f"{folder} is in use: another process trains in it; wait for it, or give another folder"
        ) from None
    except OSError:  # a disk without locks
        pass
    return held


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


def _moves(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in MOVES)
