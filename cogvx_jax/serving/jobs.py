"""A job: its row in the queue's table, and what is told of it."""

import dataclasses
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import sqlalchemy as sa

QUEUED, RUNNING, COMPLETED, FAILED = "queued", "running", "completed", "failed"
ALIKE = "alike"  # key of `asked`: text that jobs share which may be made together; None of those made alone
SOUND = "sound"  # key of `asked` of a job that is to have sound
CANCELLED = "cancelled"  # an error code: the APIs have no such status

TABLES = sa.MetaData()
_SERIAL = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # the one type that SQLite numbers by itself
JOBS = sa.Table(
    "jobs",
    TABLES,
    sa.Column("seq", _SERIAL, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("request_key", sa.Text),  # of the client, unique of an owner
    sa.Column("fingerprint", sa.Text, nullable=False),  # of what is asked for
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("asked", sa.JSON, nullable=False),  # what the worker reads
    sa.Column("shown", sa.JSON, nullable=False),  # what the APIs answer
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("due", sa.Float),  # from when on a worker may take it: a running one when its lease ends
    sa.Column("worker", sa.Text),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("stage", sa.Text, nullable=False, default=""),  # in words
    sa.Column("step", sa.Integer, nullable=False, default=0),
    sa.Column("steps", sa.Integer, nullable=False, default=0),
    sa.Column("preview", sa.LargeBinary),
    sa.Column("result", sa.Text),  # the file's name in the job's folder
    sa.Column("bytes", sa.BigInteger, nullable=False, default=0),  # of the job's folder
    sa.Column("error_code", sa.Text),
    sa.Column("error_message", sa.Text),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("started", sa.Float),
    sa.Column("finished", sa.Float),
    sa.Column("revision", sa.Integer, nullable=False, default=1),  # grows with each change
    sa.UniqueConstraint("owner", "request_key"),
)
sa.Index(
    "jobs_due",
    JOBS.c.priority.desc(),
    JOBS.c.seq,
    sqlite_where=JOBS.c.due.is_not(None),
    postgresql_where=JOBS.c.due.is_not(None),
)
sa.Index("jobs_status", JOBS.c.status, JOBS.c.owner)
sa.Index("jobs_owner", JOBS.c.owner, JOBS.c.seq)
sa.Index("jobs_finished", JOBS.c.finished)
WORKERS = sa.Table(
    "workers",
    TABLES,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("stage", sa.Text, nullable=False),
    sa.Column("seen", sa.Float, nullable=False),
)
KEPT = sa.Table("kept", TABLES, sa.Column("name", sa.Text, primary_key=True), sa.Column("value", sa.Text))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A row: columns of `JOBS`. Times are seconds since 1970."""

    seq: int
    id: str
    owner: str
    request_key: str | None
    fingerprint: str
    model: str
    priority: int
    asked: Mapping[str, Any]
    shown: Mapping[str, Any]
    status: str
    due: float | None
    worker: str | None
    attempts: int
    stage: str
    step: int
    steps: int
    preview: bytes | None
    result: str | None
    bytes: int
    error_code: str | None
    error_message: str | None
    created: float
    started: float | None
    finished: float | None
    revision: int

    @classmethod
    def of(cls, row: sa.Row) -> Self:
        return cls(**row._mapping)

    @property
    def ended(self) -> bool:
        return self.status in (COMPLETED, FAILED)

    @property
    def inputs(self) -> list[str]:
        """Names of the files that it is made of, in its folder."""
        return list(self.asked.get("files", {}).values())

    @property
    def file(self) -> str:
        """The name of the video that the attempt at hand makes: a worker that was only slow has another."""
        return f"video-{self.attempts}.mp4"


class Placed(NamedTuple):
    """A job, and how many are taken before it; None where it waits no more."""

    job: Job
    position: int | None


def new_id() -> str:
    """A name of a job, which cannot be guessed."""
    return f"video_{secrets.token_hex(16)}"
