"""Which films a set is made of: a file, a folder of them, or a list as other tools write it."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cogvx_jax.data.clips import VIDEOS
from cogvx_jax.data.manifests import COLUMNS, find
from cogvx_jax.data.text_lines import parse_json, read_json_lines, read_text
from cogvx_jax.storage import check_place

FILMS = VIDEOS | {".m4v", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv"}
MARKS = re.compile(r"<__dj__\w+>|<\|__dj__eoc\|>")  # of data-juicer, in its texts
MOST_CAPTION = 20_000  # characters of a NAME.txt


class Film(NamedTuple):
    """A file, and what a list or a NAME.txt beside it says of what it shows."""

    path: Path
    prompt: str | None


def find_films(place: Path, report: Callable[[str], None]) -> list[Film]:
    """The films of a place, in the order of their paths, or of the list.

    Lists are .json or .jsonl: ours, VideoX-Fun's (`file_path`, `text`) and data-juicer's (`videos`, `text`). Folders
    that links lead to are entered once. What cannot be looked into is reported.

    Raises: FileNotFoundError; ValueError for a place without films, or a list of another kind.
    """
    check_place(place)
    if place.is_dir():
        found = [Film(path, _beside(path, report)) for path in sorted(_walk(place, report))]
    elif place.suffix.lower() in (".json", ".jsonl"):
        found = _listed(place)
    else:
        found = [Film(place, _beside(place, report))]
    if not found:
        raise ValueError(f"{place} has no films; they end in {', '.join(sorted(FILMS))}")
    return list({film.path: film for film in found}.values())


def _walk(folder: Path, report: Callable[[str], None]) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()

    def fails(error: OSError) -> None:
        report(f"skipped {error.filename}: {error.strerror}")

    for here, folders, names in os.walk(folder, onerror=fails, followlinks=True):
        try:
            own = os.stat(here)
        except OSError as error:
            fails(error)
            continue
        if (own.st_dev, own.st_ino) in seen:  # links in a circle, or two to one folder
            folders.clear()
            continue
        seen.add((own.st_dev, own.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (
            Path(here, name) for name in names if not name.startswith(".") and Path(name).suffix.lower() in FILMS
        )


def _beside(film: Path, report: Callable[[str], None]) -> str | None:
    """The first line of NAME.txt, as `data.layouts` reads captions."""
    try:
        text = film.with_suffix(".txt")
        if not text.is_file() or text.stat().st_size > MOST_CAPTION:
            return None
        return read_text(text).split("\n")[0].strip() or None
    except (ValueError, OSError) as error:
        report(f"no caption of {film}: {error}")
        return None


def _listed(path: Path) -> list[Film]:
    rows: list[Any]
    if path.suffix.lower() == ".jsonl":
        rows = list(read_json_lines(path).values())
    else:
        rows = parse_json(read_text(path), path)
        if not isinstance(rows, list):
            raise ValueError(f"{path} must hold a list of objects with file_path and text, or be a .jsonl of them")
    return [film for number, row in enumerate(rows, 1) for film in _films_of(row, path, number)]


def _films_of(row: Any, path: Path, number: int) -> Iterator[Film]:
    if not isinstance(row, dict):
        raise ValueError(f"{path}, item {number} is no object")
    names = row.get("videos")
    if names is None:
        name = next((row[column] for column in COLUMNS["video"] if row.get(column)), None)
        names = [] if name is None else [name]
        if row.get("type", "video") != "video":  # VideoX-Fun's lists hold pictures, too
            return
    prompt = next((row[column] for column in COLUMNS["prompt"] if row.get(column)), None)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{path}, item {number} names no video; it has video, file_path or videos")
    if not isinstance(prompt, str | None):
        raise ValueError(f"{path}, item {number} has a prompt that is no text")
    prompt = " ".join(MARKS.sub(" ", prompt).split()) if prompt else None
    for name in names:
        yield Film(find(path.parent, name), prompt or None)
