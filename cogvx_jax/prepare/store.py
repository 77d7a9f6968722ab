"""What is done already, by the key of what it was made of: a database that a kill at any moment leaves whole."""

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cogvx_jax.data.comments import file_sha256

FILE, FORMAT = "prepare.sqlite", 1
EVERY = 2.0  # seconds after which what is new is written
TABLES = """
create table if not exists done (step text, key text, value text, primary key (step, key)) without rowid;
create table if not exists files (path blob primary key, size integer, changed integer, digest text);
"""


class Store:
    """The done parts of one set; see `open_store`."""

    def __init__(self, database: sqlite3.Connection):
        self._database, self._saved = database, time.monotonic()

    def get(self, step: str, key: str) -> Any | None:
        """The value of a step, None where it is not done."""
        found = self._database.execute("select value from done where step = ? and key = ?", (step, key)).fetchone()
        return None if found is None else json.loads(found[0])

    def put(self, step: str, key: str, value: Any) -> None:
        text = json.dumps(value)
        self._database.execute("insert or replace into done values (?, ?, ?)", (step, key, text))
        if time.monotonic() - self._saved > EVERY:
            self.save()

    def save(self) -> None:
        """What was put is on the disk from here on."""
        self._database.commit()
        self._saved = time.monotonic()

    def digest(self, path: Path) -> str:
        """Of a file's bytes; of one whose size and time are those of the last look, as it was then. Raises: OSError."""
        now, name = path.stat(), os.fsencode(path.absolute())
        of = now.st_size, now.st_mtime_ns
        known = self._database.execute("select size, changed, digest from files where path = ?", (name,)).fetchone()
        if known is not None and known[:2] == of:
            return known[2]
        digest = file_sha256(path)
        self._database.execute("insert or replace into files values (?, ?, ?, ?)", (name, *of, digest))
        return digest


@contextlib.contextmanager
def open_store(folder: Path) -> Iterator[Store]:
    """The store of a set's folder, which one process has at a time.

    Raises: OSError where it cannot be written or another process has it; ValueError for one of another version.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    try:
        database = sqlite3.connect(path, timeout=0.2, isolation_level="immediate")
        with contextlib.closing(database):
            database.execute("pragma locking_mode = exclusive")
            database.execute("pragma synchronous = normal")
            (version,) = database.execute("pragma user_version").fetchone()
            if version not in (0, FORMAT):
                raise ValueError(f"{path} is of version {version}, and this program knows {FORMAT}; use another --out")
            database.executescript(f"begin immediate; pragma user_version = {FORMAT}; {TABLES} commit;")
            store = Store(database)
            try:
                yield store
            finally:
                store.save()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise OSError(f"another process prepares {folder}; wait for it, or give another --out") from None
        raise OSError(f"{path} cannot be written: {error}") from None
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and all steps are done again") from None
