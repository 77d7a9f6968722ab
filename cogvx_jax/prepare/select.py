"""Selection: a query over a set's clips, which deletes nothing."""

from pathlib import Path
from typing import Any, NamedTuple

from cogvx_jax.data.expressions import Expression, parse_expression
from cogvx_jax.prepare.formats import write_list
from cogvx_jax.prepare.rows import Row
from cogvx_jax.prepare.sets import read_set
from cogvx_jax.prepare.steps import KNOWN


class Selection(NamedTuple):
    """Counts of a selection."""

    clips: int
    chosen: int
    without_prompt: int
    without_video: int


def parse_where(text: str) -> Expression:
    """An expression over the fields of a set's rows. Raises: as `parse_expression`."""
    return parse_expression(text, KNOWN)


def select(folder: Path, where: str | None, out: Path, prompt: str | None = None, copies: bool = False) -> Selection:
    """Writes the clips of a set for which an expression is true, as training reads them.

    Args:
      where: None chooses all.
      out: .jsonl, .json (VideoX-Fun's), .parquet or .tar (webdataset).
      prompt: of clips that have no caption; without one they are left out, as are clips that were not written.
      copies: choose copies of other clips, too.
    Raises: as `read_set` and `parse_where`; ValueError where none is chosen.
    """
    rows, expression = read_set(folder), None if where is None else parse_where(where)
    chosen = [row for row in rows if expression is None or expression.chooses(row)]
    chosen = [row for row in chosen if copies or row.get("dup_of") is None]
    written = [row for row in chosen if row.get("video")]
    found = [as_sample(row, prompt) for row in written]
    samples = [row for row in found if row["prompt"]]
    counts = Selection(len(rows), len(samples), len(found) - len(samples), len(chosen) - len(written))
    if not samples:
        raise ValueError(f"{folder}: {_why(counts, len(chosen))}")
    write_list(out, samples, folder)
    return counts


def as_sample(row: Row, prompt: str | None) -> dict[str, Any]:
    """A row as a line of training: `video`, and the caption, or the film's own text, as `prompt`, and the scores.

    Errors and embeddings are of the set; no training reads them.
    """
    return {"video": row["video"], "prompt": row.get("caption") or row.get("prompt") or prompt} | {
        name: value for name, value in row.items() if name not in ("video", "prompt", "errors", "embedding")
    }


def _why(counts: Selection, chosen: int) -> str:
    if not chosen:
        return f"none of its {counts.clips} clips is chosen"
    if counts.without_video == chosen:
        return "the clips that are chosen were not written: run `cogvx prepare` with the step write"
    return "the clips that are chosen have no caption: prepare them with --captions, or give --prompt"
