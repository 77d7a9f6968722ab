"""Files of scores, as the tools of VBench write them: a name, its score, and the scores of its videos.

    {"temporal_flickering": [0.98, [{"video_path": "a-0.mp4", "video_results": 0.98}], {"interval": [0.97, 0.99]}]}

Their tools read the first two of each list. The third, which only this package writes, says how the score was made.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cogvx_jax.evaluation.folders import composed, prompt_of
from cogvx_jax.evaluation.totals import canonical
from cogvx_jax.json_files import quoted, read_json
from cogvx_jax.metrics.bootstrap import Interval, bootstrap_mean
from cogvx_jax.storage import write_whole

MAX_BYTES = 256 * 2**20  # of a file of scores; a video takes about 200 bytes in each measure


@dataclasses.dataclass(frozen=True)
class VideoScore:
    """A video's score: its name below the folder, its number, how much that counts, and the prompt."""

    name: str
    value: float
    weight: float = 1.0
    prompt: str = ""


@dataclasses.dataclass(frozen=True)
class Score:
    """A measure's score of a folder.

    Attributes:
      value: the mean over its videos, or one number of all.
      videos: their own scores; none where the measure is of all at once, or the file does not tell.
      about: how it was made; see `facts`.
    """

    value: float
    videos: tuple[VideoScore, ...] = ()
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def interval(self) -> Interval | None:
        """Where the mean lies, by drawing prompts; None without videos."""
        if not self.videos:
            return None
        return bootstrap_mean(
            [one.value for one in self.videos],
            [one.prompt for one in self.videos],
            [one.weight for one in self.videos],
        )


def write_scores(path: Path, scores: Mapping[str, Score]) -> None:
    """Writes a file of scores, which appears when it is whole. Raises: OSError."""
    rows = {}
    for name, score in scores.items():
        details = []
        for one in score.videos:
            row: dict[str, Any] = {"video_path": one.name, "video_results": one.value}
            if one.weight != 1:
                row["weight"] = one.weight
            details.append(row | {"prompt": one.prompt})
        rows[name] = [score.value, details, dict(score.about)]
    write_whole(path, json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False).encode())


def read_scores(path: Path) -> dict[str, Score]:
    """The scores of a file, ours or one of VBench's tools, by their canonical names.

    Raises: FileNotFoundError; ValueError, one sentence with the file's name, for what is no such file.
    """
    found = dict[str, Score]()
    for key, row in read_json(path, limit=MAX_BYTES).items():
        value = row[0] if isinstance(row, list) and row else row
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{path}: {quoted(key)} has no score as its first number: {quoted(row)}")
        name = canonical(key)
        if name in found:
            raise ValueError(f"{path}: {name} stands in it twice")
        rest = row[1:] if isinstance(row, list) else []
        about = rest[1] if len(rest) > 1 and isinstance(rest[1], dict) else {}
        found[name] = Score(float(value), _videos(rest[0] if rest else []), about)
    return found


def read_all(paths: Sequence[Path]) -> dict[str, Score]:
    """The scores of several files, or of the files *.json of a folder, as VBench's tools write one a dimension.

    Raises: as `read_scores`; ValueError where two files have the same measure with other scores.
    """
    files, found, of = list[Path](), dict[str, Score](), dict[str, Path]()
    for path in paths:
        files += sorted(path.glob("*_eval_results.json")) or sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"there are no files *.json in {', '.join(map(str, paths))}")
    for file in files:
        for name, score in read_scores(file).items():
            if name in found and found[name].value != score.value:
                raise ValueError(f"{name} has one score in {of[name]} and another in {file}; give one of them")
            found[name], of[name] = score, file
    return found


def _videos(details: Any) -> tuple[VideoScore, ...]:
    """The videos' scores, where all of the details are those; some tools write other things."""
    found = list[VideoScore]()
    for row in details if isinstance(details, list) else []:
        row = row if isinstance(row, dict) else {}
        path, value, weight = (row.get(key) for key in ("video_path", "video_results", "weight"))
        if not isinstance(path, str) or not isinstance(value, bool | int | float) or not math.isfinite(value):
            return ()
        heavy = float(weight) if isinstance(weight, int | float) and weight > 0 else 1.0
        own = row.get("prompt")
        prompt = own if isinstance(own, str) else prompt_of(path)
        found.append(VideoScore(composed(path), float(value), heavy, prompt))
    return tuple(found)
