"""Films by Daft: several at the same time on this machine, or on a cluster where `DAFT_RUNNER=ray` names Ray.

A film is a row of a table, and all of its steps are one function of it. Workers read what is done from the set's
folder, which a cluster's machines must share, and give back what is new. This process alone writes.
"""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path

from cogvx_jax.prepare.film import Work, prepare_film
from cogvx_jax.prepare.rows import Row
from cogvx_jax.prepare.settings import Settings
from cogvx_jax.prepare.sources import Film
from cogvx_jax.prepare.store import Reading

MOST_PARTS = 256  # of the table, which a cluster's machines share


def prepare_by_daft(films: list[Film], work: Work) -> Iterator[tuple[Row, list[Row]]]:
    """The rows of films and of their clips, as `prepare_film` gives them, in order.

    Raises: ValueError where Daft is not installed, or its run fails.
    """
    try:
        import daft
    except ImportError:
        raise ValueError("--engine daft needs the package: pip install 'cogvx_jax[prepare-daft]'") from None
    work.store.save()
    settings, steps, folder = work.settings, work.steps, work.folder.absolute()

    # Coroutines of one batch run at the same time; a film's frames come from a process of its own.
    @daft.func(return_dtype=daft.DataType.string(), on_error="log", max_concurrency=os.cpu_count())
    async def made(path: str, prompt: str) -> str:
        return await asyncio.to_thread(_one, path, prompt, settings, steps, folder)

    # JSON keeps names that are no UTF-8.
    table = daft.from_pydict(
        {
            "number": list(range(len(films))),
            "path": [json.dumps(str(film.path.absolute())) for film in films],
            "prompt": [json.dumps(film.prompt) for film in films],
        }
    )
    if os.environ.get("DAFT_RUNNER", "").lower() == "ray":
        table = table.into_partitions(min(len(films), MOST_PARTS))
    plan = table.with_column("made", made(table["path"], table["prompt"])).select("number", "made")
    waiting, due = dict[int, str | None](), 0
    for record in plan.iter_rows():
        waiting[record["number"]] = record["made"]
        while due in waiting:
            yield _taken(films[due], waiting.pop(due), work)
            due += 1


def _one(path: str, prompt: str, settings: Settings, steps: tuple[str, ...], folder: Path) -> str:
    """All steps of a film, in a worker: its rows, and what is new."""
    store = Reading(folder)
    try:
        film = Film(Path(json.loads(path)), json.loads(prompt))
        row, clips = prepare_film(film, Work(settings, steps, folder, store))
        return json.dumps({"row": row, "clips": clips, "new": store.new, "files": store.files})
    finally:
        store.close()


def _taken(film: Film, text: str | None, work: Work) -> tuple[Row, list[Row]]:
    if text is None:
        row: Row = {"source": str(film.path.absolute()), "prompt": film.prompt}
        return row | {"errors": {"probe": "its worker failed; see the log"}}, []
    made = json.loads(text)
    work.store.take(made["new"], made["files"])
    return made["row"], made["clips"]
