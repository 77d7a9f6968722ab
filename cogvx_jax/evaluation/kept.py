"""Results that are kept beside the videos: a run that was stopped goes on, and another computes only what is new.

A line of `cogvx-eval.jsonl` is one video's score by one measure. Its key is a hash of the bytes of the files, the
measure and its version: a video that was made anew is scored anew.
"""

import contextlib
import functools
import hashlib
import json
import math
from pathlib import Path

from cogvx_jax.data.comments import file_sha256
from cogvx_jax.data.files import existing
from cogvx_jax.evaluation.measures import Found, Measure
from cogvx_jax.evaluation.setup import Judged, Setup
from cogvx_jax.json_files import parse_json
from cogvx_jax.storage import read_file

NAME = "cogvx-eval.jsonl"
MAX_BYTES = 256 * 2**20


class Kept:
    """Scores that earlier runs found, and those of this one. Where they cannot be written they are computed again."""

    def __init__(self, folder: Path):
        self._file, self._found = folder / NAME, dict[str, Found]()
        with contextlib.suppress(OSError, ValueError):
            for line in read_file(self._file, MAX_BYTES).splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):  # damaged, or cut off
                    row = parse_json(line)
                    self._found[row["key"]] = Found(float(row["value"]), float(row["weight"]))

    def score(self, measure: Measure, video: Judged, setup: Setup) -> Found:
        """A video's score, computed where it is not kept. Raises: as the measure."""
        if not measure.keep:
            return _checked(measure, measure.score(video, setup))
        key = _key(measure, video, setup)
        if key not in self._found:
            found = _checked(measure, measure.score(video, setup))
            self._found[key] = found
            row = {"key": key, "video": video.name, "measure": measure.name, "value": found.value}
            self._add(json.dumps(row | {"weight": found.weight}, ensure_ascii=False))
        return self._found[key]

    def _add(self, line: str) -> None:
        if self._file.exists() and not self._file.is_file():  # opening a FIFO would wait for ever
            return
        with contextlib.suppress(OSError), self._file.open("ab") as file:
            file.write(f"{line}\n".encode())


def _checked(measure: Measure, found: Found) -> Found:
    if not math.isfinite(found.value):
        raise ValueError(f"{measure.name} is not finite")
    return Found(float(found.value), float(found.weight))


def _key(measure: Measure, video: Judged, setup: Setup) -> str:
    files = [video.path]
    if measure.kind == "reference" and video.reference is not None:
        files.append(video.reference)
        if measure.name == "lpips" and setup.lpips is not None:
            files.append(setup.lpips)
    for file in files:
        existing(file)  # reading a FIFO would wait for ever
    parts = [measure.name, str(measure.version), *(_digest(file, *_stamp(file)) for file in files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _stamp(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=100_000)
def _digest(file: Path, size: int, changed: int) -> str:
    """Of a file's bytes; size and time only make the cache forget a file that was written anew."""
    return file_sha256(file)
