"""Manifests of captioned videos: one JSON object a line, a list of them, or CSV; ours and those of other trainers."""

import collections
import csv
import math
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cogvx_jax.data.clips import Source
from cogvx_jax.data.text_lines import parse_json, read_json_lines, read_text, refuse

# The first name of each that a table has counts: ours, those of Hugging Face and DiffSynth, VideoX-Fun's.
COLUMNS = {
    "video": ("video", "file_name", "file_path"),
    "prompt": ("prompt", "caption", "text"),
    "image": ("image",),
    "control": ("control", "control_video", "control_file_path"),
}
MOST_TEXT = 100  # characters of a text that may choose clips
OPTIONAL = ("image", "control")  # columns that a table may have


def read_jsonl(path: Path) -> list[Source]:
    """One object a line, also as Hugging Face has it. Raises: ValueError, with file and line, as the others here."""
    return _rows(path, {f"line {number}": row for number, row in read_json_lines(path).items()}, "lines")


def read_json(path: Path) -> list[Source]:
    """A list of objects, as VideoX-Fun has it."""
    items = parse_json(read_text(path), path)
    if not isinstance(items, list):
        raise ValueError(f"{path} must hold a list of objects with video and prompt, or file_path and text")
    rows = {f"item {number}": row for number, row in enumerate(items, 1)}
    refuse(path, [name for name, row in rows.items() if not isinstance(row, dict)], len(rows), "items are no objects")
    return _rows(path, rows, "items")


def read_csv(path: Path) -> list[Source]:
    """A table whose first line names the columns, also as Hugging Face and DiffSynth have it."""
    table = _csv_rows(path)
    header = [name.strip() for name in table.pop(min(table))] if table else []
    _check_header(path, header)
    wide = [f"line {number}" for number, row in table.items() if len(row) > len(header)]
    hint = 'lines have more fields than the first one; put prompts that hold a comma into "quotes"'
    refuse(path, wide, len(table), hint)
    rows = {f"line {number}": dict(zip(header, row, strict=False)) for number, row in table.items()}
    sources = _rows(path, rows, "lines")
    narrow = [f"line {number}" for number, row in table.items() if len(row) < len(header)]
    refuse(path, narrow, len(table), f"lines have fewer fields than the {len(header)} of the first one")
    return sources


def _csv_rows(path: Path) -> dict[int, list[str]]:
    """The fields of the rows by the lines in which they begin; empty lines are passed over."""
    lines = (line + "\n" for line in read_text(path).split("\n"))
    reader = csv.reader(lines, strict=True)  # else an open quote takes in all lines that follow
    rows, begin = {}, 1
    try:
        for row in reader:
            if row:
                rows[begin] = row
            begin = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {begin} is not CSV: {error}") from None
    return rows


def _check_header(path: Path, header: list[str]) -> None:
    lacking = [kind for kind in ("video", "prompt") if not any(name in header for name in COLUMNS[kind])]
    if lacking:
        raise ValueError(
            f"{path} has no column {' and no column '.join(lacking)}, but {', '.join(header) or 'none'}; its first "
            "line must name the columns: video (or file_name, file_path) and prompt (or caption, text)"
        )
    twice = [name for name, count in collections.Counter(header).items() if name and count > 1]
    refuse(path, twice, len(header), "columns have the same name as another")


def _rows(path: Path, rows: Mapping[str, Mapping[str, Any]], kind: str) -> list[Source]:
    """Of a table's rows by where they stand, such as "line 3"; of `kind` lines or items."""
    given = {name for row in rows.values() for name in row}
    columns = {what: next((n for n in names if n in given), names[0]) for what, names in COLUMNS.items()}
    for what, name in columns.items():
        wrong = [where for where, row in rows.items() if not isinstance(row.get(name), str | None)]
        refuse(path, wrong, len(rows), f"{kind} have no text as {name}")
        lacking = [where for where, row in rows.items() if not (row.get(name) or "").strip()]
        if what not in OPTIONAL:
            refuse(path, lacking, len(rows), f"{kind} have no {name}")
        elif 0 < len(lacking) < len(rows):
            refuse(path, lacking, len(rows), f"{kind} have no {name}, though others do")
    video, prompt = columns["video"], columns["prompt"]
    find_video = _find_below_train if video == "file_name" else find

    def beside(row: Mapping[str, Any]) -> dict[str, Path]:
        named = {what: (row.get(columns[what]) or "").strip() for what in OPTIONAL}
        return {what: find(path.parent, name) for what, name in named.items() if name}

    own = set(columns.values())
    return [
        Source(
            find_video(path.parent, row[video].strip()),
            row[prompt].strip(),
            **beside(row),
            scores=scores({name: value for name, value in row.items() if name not in own}),
        )
        for row in rows.values()
    ]


def scores(row: Mapping[str, Any]) -> dict[str, Any]:
    """What of a row may choose clips: numbers, true, false, null and short texts; a text that is a number is one."""
    return {name: _number(value) for name, value in row.items() if name.isidentifier() and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, int | float) or isinstance(value, str) and len(value) <= MOST_TEXT


def _number(value: Any) -> Any:
    """Of a field of CSV; nothing in it is null."""
    if not isinstance(value, str):
        return value
    try:
        found = float(value)
    except ValueError:
        return value or None
    return found if math.isfinite(found) else None


def find(folder: Path, name: str) -> Path:
    """A file by its name in a list; accents may be composed in one of the two and not in the other."""
    forms = (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    return next((folder / form for form in forms if (folder / form).exists()), folder / name)


def _find_below_train(folder: Path, name: str) -> Path:
    """DiffSynth's first data sets have their files in train/, which their table does not say."""
    file = find(folder, name)
    below = file if file.exists() else find(folder / "train", name)
    return below if below.exists() else file
