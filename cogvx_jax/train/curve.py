"""A run's numbers by update, kept in its folder."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cogvx_jax.sharding import first_process

MISSING = "--tensorboard needs tensorboardX: pip install tensorboardX"


class Curve:
    """Writes lines of JSON to FOLDER/log.jsonl and, if asked for, TensorBoard's scalars to FOLDER/tensorboard.

    Of several processes only the first one writes.

    Args:
      start: updates done already; TensorBoard drops what it has of later ones, which are now done again.
    Raises: ValueError where tensorboardX is asked for and missing.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = False, start: int = 0):
        self._file, self._writer = folder / "log.jsonl", None
        if tensorboard and first_process():
            self._writer = _writer()(str(folder / "tensorboard"), purge_step=start + 1 if start else None)

    def add(self, step: int, row: Mapping[str, Any]) -> None:
        """Of an update: numbers by name, None where there is none, or numbers in a dict of their own."""
        if not first_process():
            return
        with self._file.open("a") as file:
            file.write(json.dumps({"step": step, **row}) + "\n")
        if self._writer is not None:
            for name, value in _scalars(row):
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def check_tensorboard() -> None:
    """Raises ValueError where tensorboardX is missing."""
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
