"""A set from films: every film's steps, then what needs all clips, then the lists."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cogvx_jax.json_files import printable
from cogvx_jax.prepare.duplicates import duplicates
from cogvx_jax.prepare.film import Work, prepare_film
from cogvx_jax.prepare.rows import Row, write_rows
from cogvx_jax.prepare.sets import ABOUT, CLIPS, FILMS, FORMAT
from cogvx_jax.prepare.settings import Settings
from cogvx_jax.prepare.sources import Film, find_films
from cogvx_jax.prepare.steps import GIVEN, STEPS, chosen
from cogvx_jax.prepare.store import open_store
from cogvx_jax.storage import check_folder_writable, write_whole

Prepared = Iterable[tuple[Row, list[Row]]]


def prepare(place: Path, folder: Path, settings: Settings, report: Callable[[str], None], engine: str = "") -> Row:
    """Makes or completes the set of a folder from the films of a place.

    A process that is killed leaves what is done; the next one goes on from there, to the same lists.

    Args:
      engine: "" is this process; "daft" has Daft do the films, see `engine.prepare_by_daft`.
    Returns: counts, as in set.json.
    Raises: as `find_films`; OSError where the folder cannot be written; ValueError for steps that cannot be done.
    """
    steps = chosen(settings)
    films = find_films(place, report)
    check_folder_writable(folder)
    with open_store(folder) as store:
        work = Work(settings, steps, folder, store)
        if engine == "daft":
            from cogvx_jax.prepare.engine import prepare_by_daft

            done: Prepared = prepare_by_daft(films, work)
        else:
            done = ((prepare_film(film, work)) for film in films)
        rows, clips = _gathered(films, done, report)
    clips = _compared(clips, settings)
    counts = {"films": len(rows), "unreadable": sum(bool(row["errors"]) for row in rows), "clips": len(clips)}
    counts["failed"] = sum(bool(clip["errors"]) for clip in clips)
    counts["copies"] = sum(clip.get("dup_of") is not None for clip in clips)
    write_rows(folder / FILMS, map(_ordered, rows))
    write_rows(folder / CLIPS, map(_ordered, clips))
    about = {"format": FORMAT, "steps": list(steps), "counts": counts}
    write_whole(folder / ABOUT, (json.dumps(about, indent=1) + "\n").encode())
    return counts


def _gathered(films: list[Film], done: Prepared, report: Callable[[str], None]) -> tuple[list[Row], list[Row]]:
    """The rows of films and clips; of two files with the same bytes the second has no clips."""
    rows: list[Row] = []
    clips: list[Row] = []
    first: dict[str, str] = {}
    for n, (row, own) in enumerate(done, 1):
        row["same_as"] = first.get(row.get("digest", ""))
        if "digest" in row:
            first.setdefault(row["digest"], row["source"])
        rows.append(row)
        clips += own if row["same_as"] is None else []
        said = "; ".join(f"{step}: {error}" for step, error in row["errors"].items()) or f"{len(own)} clips"
        if row["same_as"] is not None:
            said = f"has the same bytes as {row['same_as']}"
        report(printable(f"{n}/{len(films)} {row['source']}: {said}"))
    return rows, clips


def _ordered(row: Row) -> Row:
    """With the fields in the order of the steps, whichever was done first."""
    fields = [*GIVEN, *(field for step in STEPS.values() for field in step.fields)]
    return {name: row[name] for name in fields if name in row} | row


def _compared(clips: list[Row], settings: Settings) -> list[Row]:
    """With `dup_of`. Of copies the first is that of the most pixels, then of the most bytes a second."""

    def rank(n: int) -> tuple[Any, ...]:
        clip = clips[n]
        rate = (clip["bytes"] or 0) / (clip["duration"] or 1)
        return -(clip["width"] or 0) * (clip["height"] or 0), -rate, n

    order = sorted(range(len(clips)), key=rank)
    found = duplicates([clips[n] for n in order], settings)
    back = sorted(range(len(order)), key=order.__getitem__)
    return [found[n] for n in back]
