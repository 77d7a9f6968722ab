"""All steps of one film. What is done is read from the store, and only what is missing is computed."""

import collections
import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cogvx_jax.prepare.films import TooSlow, one_film
from cogvx_jax.prepare.label_answers import asked_labels
from cogvx_jax.prepare.label_head import head_digest
from cogvx_jax.prepare.look import Look, looks
from cogvx_jax.prepare.probe import probe
from cogvx_jax.prepare.quality import machine_file
from cogvx_jax.prepare.rows import Row, finite, key_of
from cogvx_jax.prepare.settings import Settings
from cogvx_jax.prepare.shots import shots
from cogvx_jax.prepare.sources import Film
from cogvx_jax.prepare.steps import CUT, PROBED, STEPS, Kind
from cogvx_jax.prepare.store import Store
from cogvx_jax.prepare.write import write

OF_FILM = ("source", "digest", "bytes", "prompt", *PROBED)  # of a film's row what clips have, too
BOUNDS = ("digest", "start_frame", "end_frame")  # which frames a clip has


@dataclasses.dataclass(frozen=True)
class Work:
    """What a run has: settings, the steps to do, where its clips go, and what is done."""

    settings: Settings
    steps: tuple[str, ...]
    folder: Path
    store: Store

    def key(self, name: str, row: Row) -> str:
        """Of what a step makes of a row: the same step, settings and inputs make the same."""
        step = STEPS[name]
        part = self._part(name, step.part)
        bounds = [row.get(field) for field in BOUNDS]
        return key_of(name, step.version, part, bounds, {field: row.get(field) for field in step.reads})

    def _part(self, name: str, part: str | None) -> dict[str, Any] | None:
        """The settings that decide about a step's result."""
        labels, captions = self.settings.labels, self.settings.captions
        if name == "check":
            return captions.decides | {"texts": [self.settings.embedding.texts, self.settings.embedding.version]}
        if name == "quality":
            return {"brisque": machine_file() is not None}
        if part == "embedding":
            return {"name": self.settings.embedding.name}
        if part == "captions":
            return captions.decides
        if name == "labels" and labels.source != "rules":
            return {"vlm": captions.decides} if labels.head is None else {"head": head_digest(labels.head)}
        return None if part is None else dataclasses.asdict(getattr(self.settings, part))

    def kind(self, name: str) -> Kind:
        """That of the table; labels of a vision model are asked for."""
        return "asked" if name == "labels" and self.settings.labels.source == "vlm" else STEPS[name].kind

    def of_kind(self, *kinds: Kind) -> list[str]:
        return [name for name in STEPS if self.kind(name) in kinds]

    def known(self, name: str, row: Row) -> bool:
        """Adds what a step has made of a row before; whether it has, or is not to be done."""
        found = self.store.get(name, self.key(name, row))
        if found is None:
            add(name, row, {})
            return name not in self.steps
        add(name, row, found)
        return True

    def do(self, name: str, row: Row, make: Callable[[], Row], key: str | None = None) -> None:
        """Adds what a step makes of a row, and keeps it. What may go well another time is not kept."""
        key = key or self.key(name, row)
        try:
            made, kept = finite(make()), True
        except ValueError as error:
            made, kept = {"error": str(error)}, True
        except OSError as error:  # TooSlow, too
            made, kept = {"error": error.strerror or str(error)}, False
        if kept:
            self.store.put(name, key, made)
        add(name, row, made)


def add(name: str, row: Row, made: Row) -> None:
    """Puts a step's fields into a row: null where it gave none. Its error goes to the others'."""
    fields = PROBED if name == "probe" else STEPS[name].fields
    row |= {field: made.get(field) for field in fields}
    errors = {step: said for step, said in row.get("errors", {}).items() if step != name}
    row["errors"] = errors | ({name: made["error"]} if "error" in made else {})


def prepare_film(film: Film, work: Work) -> tuple[Row, list[Row]]:
    """The row of a film and those of its clips, in order."""
    with one_film():
        return _prepared(film, work)


def _prepared(film: Film, work: Work) -> tuple[Row, list[Row]]:
    row: Row = {"source": str(film.path.absolute()), "prompt": film.prompt, "errors": {}}
    try:
        row |= {"digest": work.store.digest(film.path), "bytes": film.path.stat().st_size}
    except OSError as error:
        add("probe", row, {"error": error.strerror or str(error)})
        return row, []
    if not work.known("probe", row):
        work.do("probe", row, lambda: probe(row, work.settings))
    if row["errors"] or row["width"] is None:
        return row, []
    clips = _clips(row, work)
    if clips:
        _look(row, clips, work)
        _rows(clips, work)
        _ask(row, clips, work)
        _rows(clips, work)
        _write(row, clips, work)
    return row, clips


def _clips(row: Row, work: Work) -> list[Row]:
    key = work.key("shots", row)
    found = work.store.get("shots", key)
    if found is None and "shots" in work.steps:
        made: Row = {}
        work.do("shots", made, lambda: {"clips": shots(row, work.settings)}, key)
        row["errors"] |= made["errors"]
        found = work.store.get("shots", key)
    of_film = {name: row.get(name) for name in OF_FILM}
    return [of_film | {field: clip[field] for field in CUT} | {"errors": {}} for clip in (found or {}).get("clips", ())]


def _missing(clips: Sequence[Row], names: Sequence[str], work: Work) -> list[list[str]]:
    """Of each clip the steps that are to be done. One that others read comes first, and makes them missing as well."""
    missing = []
    for clip in clips:
        own: list[str] = []
        for name in names:
            changed = any(field in STEPS[before].fields for before in own for field in STEPS[name].reads)
            if changed and name in work.steps or not work.known(name, clip):
                own.append(name)
        missing.append(own)
    return missing


def _look(row: Row, clips: Sequence[Row], work: Work) -> None:
    """The steps that see frames."""
    names = work.of_kind("look")
    missing = _missing(clips, names, work)
    for clip, own, look in _looked(row, clips, missing, work):
        for name in own:
            if work.known(name, clip):  # after all: what it reads came out as before
                continue
            run, seen = STEPS[name].run, look.cropped(clip.get("crop") if STEPS[name].reads else None)
            assert run is not None
            work.do(name, clip, lambda run=run, seen=seen, clip=clip: run(clip, seen, work.settings))  # type: ignore[misc]


def _looked(
    row: Row, clips: Sequence[Row], missing: Sequence[Sequence[str]], work: Work
) -> Iterator[tuple[Row, Sequence[str], Look]]:
    """The look of each clip of which a step is missing. Where the film cannot be read, these steps failed."""
    wanted = [(clip, own) for clip, own in zip(clips, missing, strict=True) if own]
    if not wanted:
        return
    limit, done = work.settings.limit_of(row["duration"]), 0
    try:
        with looks(row, [clip for clip, _ in wanted], limit) as each:
            for (clip, own), look in zip(wanted, each, strict=False):
                yield clip, own, look
                done += 1
    except (ValueError, TooSlow) as error:
        for clip, own in wanted[done:]:
            for name in own:
                add(name, clip, {"error": str(error)})


def _rows(clips: Sequence[Row], work: Work) -> None:
    """The steps that read a row alone."""
    for clip, name in itertools.product(clips, work.of_kind("row")):
        if not work.known(name, clip):
            run = STEPS[name].run
            assert run is not None
            work.do(name, clip, lambda run=run, clip=clip: run(clip, work.settings))  # type: ignore[misc]


def _ask(row: Row, clips: Sequence[Row], work: Work) -> None:
    """The steps that ask somebody far away, several clips at the same time, of whose frames no others are held."""
    names = work.of_kind("asked")
    missing = _missing(clips, names, work)
    most = work.settings.captions.at_once
    waiting: collections.deque[tuple[str, Row, concurrent.futures.Future[Any]]] = collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor(most)
    try:
        for clip, own, look in _looked(row, clips, missing, work):
            for name in own:
                run = asked_labels if name == "labels" else STEPS[name].run
                assert run is not None
                waiting.append((name, clip, pool.submit(run, clip, look.cropped(clip.get("crop")), work.settings)))
            while len(waiting) > most:
                _take(waiting, work)
        while waiting:
            _take(waiting, work)
    finally:
        pool.shutdown(cancel_futures=True)


def _take(waiting: collections.deque, work: Work) -> None:
    name, clip, answer = waiting.popleft()
    work.do(name, clip, answer.result)


def _write(row: Row, clips: Sequence[Row], work: Work) -> None:
    wanted = []
    for clip in clips:
        known = work.known("write", clip)
        gone = clip["video"] is not None and not (work.folder / clip["video"]).is_file()
        if "write" in work.steps and (gone or not known):
            wanted.append(clip)
        elif gone:
            clip["video"] = None
    if not wanted:
        return
    done = 0
    try:
        for clip, made in zip(wanted, write(row, wanted, work.folder, work.settings), strict=True):
            work.do("write", clip, lambda made=made: made)  # type: ignore[misc]
            done += 1
    except (ValueError, TooSlow) as error:
        for clip in wanted[done:]:
            add("write", clip, {"error": str(error)})
