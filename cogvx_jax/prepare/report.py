"""A page about a set: what was kept and why not, how scores spread, and frames of clips near each threshold."""

import ast
import base64
import html
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from cogvx_jax.data.decode import stream_video
from cogvx_jax.data.expressions import Expression
from cogvx_jax.json_files import printable
from cogvx_jax.prepare.rows import Row, read_rows
from cogvx_jax.prepare.select import parse_where
from cogvx_jax.prepare.sets import FILMS, read_set
from cogvx_jax.storage import write_whole

# What a page tells of without an expression. The peers' usual limits; see docs/prepare.md.
DEFAULT = (
    "motion_mean > 1 and text_area < 0.02 and static < 0.5 and editing < 0.5 and low_quality < 0.5 and screenshot < 0.5"
)
NEAR = 4  # clips on either side of a threshold that are shown
FRAMES, SIDE = 3, 160  # of a clip, pixels of the longer side
BARS = 24
HOUR = 3600.0


def write_report(folder: Path, where: str | None, out: Path) -> Iterator[str]:
    """Writes the page; gives its counts as lines for a terminal. Raises: as `read_set` and `parse_where`."""
    rows, films = read_set(folder), read_rows(folder / FILMS)
    conditions = split_conditions(where or DEFAULT)
    counts = count_reasons(rows, conditions)
    yield from _lines(films, rows, counts)
    parts = [_style(), f"<h1>{html.escape(folder.name)}</h1>", _table(films, rows, counts)]
    for condition in conditions:
        parts.append(f"<h2>{html.escape(condition.text)}</h2>")
        if (threshold := find_threshold(condition)) is not None:
            parts += [_histogram(rows, *threshold), _sheets(folder, rows, *threshold, condition)]
    write_whole(out, "\n".join(parts).encode("utf-8", "replace"))


def split_conditions(where: str) -> list[Expression]:
    """The parts that `and` joins, each an expression of its own."""
    whole = parse_where(where)
    tree = ast.parse(re.sub(r"\s+", " ", whole.text).strip(), mode="eval").body
    parts = tree.values if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And) else [tree]
    return [parse_where(ast.unparse(part)) for part in parts]


def count_reasons(rows: Sequence[Row], conditions: Sequence[Expression]) -> dict[str, tuple[int, float]]:
    """How many clips, and of how many seconds, each condition drops, those that are copies or failed, and the rest.

    A clip counts for each of its reasons. "unknown" is of scores that are missing.
    """
    found: Counter[str] = Counter()
    seconds: Counter[str] = Counter()

    def count(reason: str, row: Row) -> None:
        found[reason] += 1
        seconds[reason] += row["end"] - row["start"]

    for row in rows:
        reasons = [f"not {c.text}" for c in conditions if c.value(row) is False]
        reasons += [f"unknown: {c.text}" for c in conditions if c.value(row) is None]
        reasons += ["copy of another clip"] * (row.get("dup_of") is not None)
        reasons += ["not written"] * (not row.get("video"))
        for reason in reasons or ["kept"]:
            count(reason, row)
    return {reason: (found[reason], seconds[reason]) for reason in sorted(found, key=lambda one: (one != "kept", one))}


def find_threshold(condition: Expression) -> tuple[str, float] | None:
    """The field and the number of a condition such as `motion_mean > 1`; None for others."""
    tree = ast.parse(condition.text, mode="eval").body
    match tree:
        case ast.Compare(
            left=ast.Name(id=name), ops=[ast.Lt() | ast.LtE() | ast.Gt() | ast.GtE()], comparators=[bound]
        ):
            try:
                return name, float(ast.literal_eval(bound))
            except (ValueError, TypeError):
                return None
    return None


def _lines(films: Sequence[Row], rows: Sequence[Row], counts: Mapping[str, tuple[int, float]]) -> Iterator[str]:
    for what, (count, seconds) in _facts(films, rows, counts):
        yield f"{count:8} {seconds / HOUR:10.3f} h  {printable(what)}"


def _facts(
    films: Sequence[Row], rows: Sequence[Row], counts: Mapping[str, tuple[int, float]]
) -> list[tuple[str, tuple[int, float]]]:
    readable = [film for film in films if not film["errors"] and film.get("duration")]
    copies = [film for film in readable if film.get("same_as")]
    cut = sum(row["end"] - row["start"] for row in rows)
    film_seconds = sum(film["duration"] for film in readable)
    copied = sum(film["duration"] for film in copies)
    facts = [("films", (len(readable), film_seconds)), ("films that cannot be read", (len(films) - len(readable), 0.0))]
    facts += [("films with the bytes of another", (len(copies), copied))]
    facts += [("clips", (len(rows), cut)), ("shots too short, and trimmed", (0, max(film_seconds - copied - cut, 0.0)))]
    return [*facts, *counts.items()]


def _table(films: Sequence[Row], rows: Sequence[Row], counts: Mapping[str, tuple[int, float]]) -> str:
    lines = "".join(
        f"<tr><td>{html.escape(what)}</td><td>{count}</td><td>{seconds / HOUR:.3f}</td></tr>"
        for what, (count, seconds) in _facts(films, rows, counts)
    )
    errors = Counter(f"{step}: {said}" for row in (*films, *rows) for step, said in row.get("errors", {}).items())
    said = "".join(f"<li>{count} x {html.escape(error)}</li>" for error, count in errors.most_common(50))
    return f"<table><tr><th></th><th>number</th><th>hours</th></tr>{lines}</table>" + (
        f"<ul>{said}</ul>" if said else ""
    )


def _histogram(rows: Sequence[Row], field: str, threshold: float) -> str:
    """Bars of a score, with a line at the threshold."""
    values = np.array([row[field] for row in rows if isinstance(row.get(field), int | float)], np.float64)
    if not len(values):
        return "<p>no clip has this score</p>"
    low, high = min(values.min(), threshold), max(np.percentile(values, 99), threshold)
    high = high if high > low else low + 1
    bars, _ = np.histogram(np.clip(values, low, high), BARS, (low, high))
    shapes = "".join(
        f'<rect x="{20 * n}" y="{100 - 100 * bar / bars.max():.1f}" width="19" height="{100 * bar / bars.max():.1f}"/>'
        for n, bar in enumerate(bars)
    )
    x = 20 * BARS * (threshold - low) / (high - low)
    missing = len(rows) - len(values)
    return (
        f'<svg viewBox="0 0 {20 * BARS} 100" class="bars">{shapes}'
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="100"/></svg>'
        f"<p>{low:.4g} to {high:.4g}; {missing} of {len(rows)} clips have none</p>"
    )


def _sheets(folder: Path, rows: Sequence[Row], field: str, threshold: float, condition: Expression) -> str:
    """Clips that are just kept and just dropped, nearest first."""
    known = [row for row in rows if isinstance(row.get(field), int | float)]
    known.sort(key=lambda row: abs(row[field] - threshold))
    parts = []
    for title, wanted in (("just kept", True), ("just dropped", False)):
        near = [row for row in known if condition.chooses(row) is wanted][:NEAR]
        shown = "".join(_strip(folder, row, field) for row in near) or "<p>none</p>"
        parts.append(f"<div><h3>{title}</h3>{shown}</div>")
    return f'<div class="sheets">{"".join(parts)}</div>'


def _strip(folder: Path, row: Row, field: str) -> str:
    """A few frames of a clip in a row, of its file or, where that was not written, of the film."""
    label = f"{field} {row[field]:.4g}, {row['clip_id']}"
    try:
        picture = _frames(folder, row)
    except (ValueError, OSError) as error:
        return f"<p>{html.escape(label)}: {html.escape(str(error))}</p>"
    data = io.BytesIO()
    PIL.Image.fromarray(picture).save(data, "JPEG", quality=80)
    source = base64.b64encode(data.getvalue()).decode()
    return f'<figure><img src="data:image/jpeg;base64,{source}"><figcaption>{html.escape(label)}</figcaption></figure>'


def _frames(folder: Path, row: Row) -> np.ndarray:
    written = bool(row.get("video")) and (folder / row["video"]).is_file()
    first, stop = (0, row["end_frame"] - row["start_frame"]) if written else (row["start_frame"], row["end_frame"])
    slots = sorted({first + int((n + 0.5) * (stop - first) / FRAMES) for n in range(FRAMES)})
    begin = first / (row["fps"] or 25.0)
    source: Any = folder / row["video"] if written else row["source"]
    with stream_video(source, strict=True, start=begin if begin > 10 else 0.0) as stream:
        frames = list(stream.at(slots, SIDE))
    if not frames:
        raise ValueError("its frames are gone")
    return np.concatenate(frames, axis=1)


def _style() -> str:
    return (
        "<!doctype html><meta charset=utf-8><style>body{font:14px sans-serif;max-width:1100px;margin:2em auto}"
        "td,th{padding:2px 12px;text-align:left}.bars{width:480px;height:100px;background:#f4f4f4}.bars rect{fill:#58a}"
        ".bars line{stroke:#c33;stroke-width:3}.sheets{display:flex;gap:2em;flex-wrap:wrap}figure{margin:0 0 1em}"
        "figcaption{font-size:11px;color:#555}</style>"
    )
