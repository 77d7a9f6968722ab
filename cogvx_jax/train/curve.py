"""A run's numbers by update, kept in its folder."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from cogvx_jax.sharding import first_process
from cogvx_jax.storage import StoragePath, is_bucket, write_whole

MISSING = "--tensorboard needs tensorboardX: pip install tensorboardX"


class Curve:
    """Writes lines of JSON to FOLDER/log.jsonl and, if asked for, TensorBoard's scalars to FOLDER/tensorboard.

    Of several processes only the first one writes.

    Args:
      start: updates done already; what is there of later ones, which are now done again, is dropped.
    Raises: ValueError where tensorboardX is asked for and missing.
    """

    def __init__(self, folder: StoragePath, *, tensorboard: bool = False, start: int = 0):
        self.name = folder.name
        self._file, self._writer = folder / "log.jsonl", None
        self._written = ""  # all of a file in a bucket, where nothing can be added to one
        if first_process() and self._file.exists():
            self._written = self._drop_later(start)
        if tensorboard and first_process():
            self._writer = _writer()(str(folder / "tensorboard"), purge_step=start + 1 if start else None)

    def _drop_later(self, start: int) -> str:
        """Takes lines about updates after `start`, and one that a kill cut off, out of the file; gives the rest."""
        text = self._file.read_bytes().decode(errors="replace")  # of a bucket, too, whose paths read text without this
        kept = "".join(line for line in text.splitlines(keepends=True) if _update_of(line) <= start)
        if kept != text:
            write_whole(self._file, kept.encode())
        return kept

    def add(self, step: int, row: Mapping[str, Any]) -> None:
        """Of an update: numbers by name, None where there is none, or numbers in a dict of their own."""
        if not first_process():
            return
        line = json.dumps({"step": step, **row}) + "\n"
        if is_bucket(self._file):
            self._written += line
            write_whole(self._file, self._written.encode())
        else:
            with self._file.open("a") as file:
                file.write(line)
        if self._writer is not None:
            for name, value in _scalars(row):
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def __enter__(self) -> "Curve":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _update_of(line: str) -> float:
    """Updates done at a line of the log; infinity for a line that is none."""
    try:
        return int(json.loads(line)["step"]) if line.endswith("\n") else math.inf
    except (ValueError, TypeError, KeyError):
        return math.inf


def check_tensorboard(folder: StoragePath) -> None:
    """Raises ValueError where tensorboardX is missing, or cannot write to the run's folder."""
    if is_bucket(folder):
        raise ValueError(f"--tensorboard needs a run on a disk, not {folder}; its log.jsonl has the same numbers")
    _writer()


def _writer() -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ValueError(MISSING) from None
    return SummaryWriter


def _scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What TensorBoard shows of a row; pace as updates a second, which grows with what is good."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{part}", x) for part, x in _scalars(value))
        elif name == "seconds_per_step":
            yield "steps_per_second", 1 / value
        elif value is not None and math.isfinite(value):
            yield name, value
