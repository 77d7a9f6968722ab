"""SQLite and Postgres as the queue needs them: one clock, transactions that write alone, errors as sentences."""

import contextlib
import errno
import sqlite3
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

KINDS = ("sqlite", "postgresql")
PATIENCE = 30.0  # seconds to wait for a database that another process writes to
CONNECTIONS = 20  # of a process at a time
ALONE = 0x636F6776  # the lock of Postgres under which one process writes at a time
READS = "cogvx_reads"


class Unavailable(OSError):
    """The database cannot be reached, or is locked for too long. The same may succeed later."""


class clock(FunctionElement):  # noqa: N801  # it is written as SQL's functions are
    """Seconds since 1970 by the database's own clock: times of several machines are compared."""

    type = sa.Float()
    inherit_cache = True


@compiles(clock, "sqlite")
def _clock_of_sqlite(element: Any, compiler: Any, **how: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(clock, "postgresql")
def _clock_of_postgres(element: Any, compiler: Any, **how: Any) -> str:
    # That of now() stands still in a transaction, which may have waited for another.
    return "extract(epoch from clock_timestamp())::float8"


class Database:
    """Connections to one database.

    Args:
      url: sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME.
      patience: seconds to wait where SQLite is written to by another process.
    Raises: ValueError for another URL.
    """

    def __init__(self, url: str, patience: float = PATIENCE):
        self._engine = _engine(url, patience)
        self.kind = self._engine.dialect.name
        self.name = self._engine.url.render_as_string(hide_password=True)

    @contextlib.contextmanager
    def reads(self) -> Iterator[sa.Connection]:
        """A connection on which each statement is by itself."""
        how = {READS: True} if self.kind == "sqlite" else {"isolation_level": "AUTOCOMMIT"}
        with self._sentences(), self._engine.connect() as connection:
            yield connection.execution_options(**how)

    @contextlib.contextmanager
    def writes(self) -> Iterator[sa.Connection]:
        """A transaction. SQLite has one at a time, and another waits from its beginning on."""
        with self._sentences(), self._engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def writes_alone(self) -> Iterator[sa.Connection]:
        """A transaction that no other of this kind overlaps: what it counts stays true until it ends."""
        with self.writes() as connection:
            if self.kind == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ALONE)))
            yield connection

    def close(self) -> None:
        self._engine.dispose()

    @contextlib.contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.TimeoutError:
            raise Unavailable(f"{self.name}: all connections are in use; try again") from None
        except DBAPIError as error:
            text = str(error.orig).strip().partition("\n")[0]
            if "disk is full" in text or "No space left" in text:
                raise OSError(errno.ENOSPC, "no space is left for the queue's database", self.name) from error
            if isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError):
                raise Unavailable(f"the queue's database {self.name} cannot be used now: {text}") from error
            if "not a database" in text or "malformed" in text:
                raise ValueError(f"{self.name} is no database that can be read: {text}") from error
            raise


def _engine(url: str, patience: float) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is None or parsed.get_backend_name() not in KINDS:
        raise ValueError(
            f"a queue is sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME, got {url.partition(':')[0]!r}"
        )
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    try:
        if parsed.get_backend_name() == "sqlite":
            return _sqlite(parsed, patience)
        how: dict[str, Any] = {"connect_args": {"connect_timeout": max(2, round(patience))}, "pool_pre_ping": True}
        return sa.create_engine(parsed, pool_size=CONNECTIONS, pool_timeout=patience, **how)
    except (NoSuchModuleError, ImportError) as error:
        raise ValueError(f"the queue {parsed.drivername} needs a package that is not installed: {error}") from None


def _sqlite(url: sa.URL, patience: float) -> sa.Engine:
    if url.database in (None, "", ":memory:"):
        raise ValueError("a queue of SQLite is a file, sqlite:///FILE: several processes share it")
    how: dict[str, Any] = {"connect_args": {"timeout": patience, "check_same_thread": False}}
    engine = sa.create_engine(url, pool_size=CONNECTIONS, pool_timeout=patience, **how)

    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # Python would begin transactions by itself, too late
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            try:
                connection.execute(f"PRAGMA {pragma}")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):  # while another process turns it on
                    raise

    @sa.event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        if not connection.get_execution_options().get(READS):
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # one that only began to read could not write later

    return engine
