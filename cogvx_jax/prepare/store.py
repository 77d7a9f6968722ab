"""What is done already, by the key of what it was made of: a database that a kill at any moment leaves whole."""

import contextlib
import fcntl
import json
import os
import sqlite3
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cogvx_jax.data.comments import file_sha256

FILE, LOCK, FORMAT = "prepare.sqlite", ".prepare.lock", 1
BUSY = 30.0  # seconds that a reader waits while its owner writes
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
        self._note(name, *of, digest)
        return digest

    def take(self, new: Iterable[Sequence[Any]], files: Iterable[Sequence[Any]]) -> None:
        """Takes over what a `Reading` holds."""
        for step, key, value in new:
            self.put(step, key, value)
        for name, *of in files:
            self._note(bytes.fromhex(name), *of)

    def _note(self, name: bytes, size: int, changed: int, digest: str) -> None:
        self._database.execute("insert or replace into files values (?, ?, ?, ?)", (name, size, changed, digest))


@contextlib.contextmanager
def open_store(folder: Path) -> Iterator[Store]:
    """The store of a set's folder, which one process has at a time.

    Raises: OSError where it cannot be written or another process has it; ValueError for one of another version.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    try:
        with (
            _alone(folder),
            contextlib.closing(sqlite3.connect(path, timeout=BUSY, isolation_level="IMMEDIATE")) as database,
        ):
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
        raise OSError(f"{path} cannot be written: {error}") from None
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and all steps are done again") from None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raises OSError where another process has the folder; the lock ends with its process."""
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OSError(f"another process prepares {folder}; wait for it, or give another --out") from None
        yield


class Reading(Store):
    """The store as a process beside its owner sees it: what is new stays here, and the owner takes it over.

    Attributes:
      new: step, key and value of what was put, in order.
      files: path, size, time and digest of files that were read.
    """

    def __init__(self, folder: Path):
        uri = f"file:{urllib.parse.quote(str((folder / FILE).absolute()))}?mode=ro"
        super().__init__(sqlite3.connect(uri, uri=True, timeout=BUSY))
        self.new: list[tuple[str, str, Any]] = []
        self.files: list[list[Any]] = []
        self._own: dict[tuple[str, str], Any] = {}

    def get(self, step: str, key: str) -> Any | None:
        own = self._own.get((step, key))
        return super().get(step, key) if own is None else own

    def put(self, step: str, key: str, value: Any) -> None:
        self.new.append((step, key, value))
        self._own[step, key] = value

    def close(self) -> None:
        self._database.close()

    def _note(self, name: bytes, size: int, changed: int, digest: str) -> None:
        self.files.append([name.hex(), size, changed, digest])
