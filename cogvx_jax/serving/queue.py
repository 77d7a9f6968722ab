"""The durable queue: one table whose rows are leased to workers, in SQLite or Postgres.

A job survives every process. A worker takes it for a while, the lease, and renews that while it works. If the worker
dies, the lease ends, and any other takes the job again. Three statements do it: `claim`, `beat`, and the ends of a job.
The last two hold for the worker that has the job now, and for no other. So one that was only slow changes nothing.

Why a table of our own: of the packages for queues, none has an embedded and a distributed engine and also gives a job
back whose machine never returns.
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import sqlalchemy as sa

from cogvx_jax.serving.database import Database, clock
from cogvx_jax.serving.jobs import (
    ALIKE,
    CANCELLED,
    COMPLETED,
    FAILED,
    JOBS,
    KEPT,
    QUEUED,
    RUNNING,
    TABLES,
    WORKERS,
    Job,
    Placed,
)

LEASE = 30.0  # seconds
ATTEMPTS = 3  # a job can take down worker after worker
VERSION = "1"  # of the tables
ALIVE = 15.0  # seconds since a worker was seen last
FORGOTTEN = 86400.0  # seconds after which a worker's row goes
LOOKED_AT = 100  # jobs among which a worker looks for some that are alike


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retention:
    """How much is kept of what has ended. None is without a bound.

    Args:
      age: seconds.
      count: jobs.
      bytes: of all their files.
    """

    age: float | None = None
    count: int | None = None
    bytes: int | None = None


class Full(Exception):
    """No further job is taken now."""


class KeyUsed(Exception):
    """The client used a key of its requests before, for something else."""


class Queue:
    """Jobs in a database. One value serves all threads of a process.

    Every method may raise `Unavailable`, an OSError, and OSError with ENOSPC where the database has no room.

    Args:
      url: of `Database`; the tables are made where they are not there.
      capacity: of jobs that wait, all owners together.
    Raises: ValueError for another URL, or tables of another version; OSError.
    """

    def __init__(self, url: str, *, capacity: int = 10_000, attempts: int = ATTEMPTS, patience: float = 30.0):
        self.database = Database(url, patience)
        self._capacity, self._attempts = capacity, attempts
        with self.database.writes_alone() as connection:
            TABLES.create_all(connection)
        if (found := self.kept("version", lambda: VERSION)) != VERSION:
            raise ValueError(f"{self.database.name} is a queue of version {found}, not {VERSION}; give a new one")

    def close(self) -> None:
        self.database.close()

    # --- for those who ask

    def submit(
        self,
        *,
        id: str,
        owner: str,
        model: str,
        asked: Mapping[str, Any],
        shown: Mapping[str, Any],
        fingerprint: str = "",
        request_key: str | None = None,
        priority: int = 0,
        most: int | None = None,
        size: int = 0,
    ) -> tuple[Job, bool]:
        """Adds a job; of one owner and request key there is one, however often it is sent.

        Args:
          most: jobs of this owner that may wait or run; None is without a bound.
          size: bytes of its folder.
        Returns: the job, and whether it is new.
        Raises: Full, where nothing was added; KeyUsed where the key stands for another fingerprint.
        """
        with self.database.writes_alone() as connection:
            if request_key is not None:
                same = JOBS.c.owner == owner, JOBS.c.request_key == request_key
                if (row := connection.execute(sa.select(JOBS).where(*same)).first()) is not None:
                    if row.fingerprint != fingerprint:
                        raise KeyUsed("this key was used before, for another request; give each its own")
                    return Job.of(row), False
            self._check_room(connection, owner, most)
            new = dict(id=id, owner=owner, model=model, asked=dict(asked), shown=dict(shown), request_key=request_key)
            more = dict(fingerprint=fingerprint, priority=priority, status=QUEUED, bytes=size)
            insert = JOBS.insert().values(**new, **more, created=clock(), due=clock()).returning(JOBS)
            return Job.of(connection.execute(insert).one()), True

    def _check_room(self, connection: sa.Connection, owner: str, most: int | None) -> None:
        waiting = sa.select(sa.func.count()).where(JOBS.c.status == QUEUED)
        if (connection.scalar(waiting) or 0) >= self._capacity:
            raise Full(f"{self._capacity} jobs wait, which is all that the queue takes; try again later")
        if most is None:
            return
        own = sa.select(sa.func.count()).where(JOBS.c.status.in_((QUEUED, RUNNING)), JOBS.c.owner == owner)
        if (connection.scalar(own) or 0) >= most:
            raise Full(f"{most} of your jobs wait or run, which is all that your key may have; try again later")

    def get(self, id: str, owner: str | None = None) -> Job | None:
        """A job; None where there is none, or none of this owner."""
        return self.several([id], owner).get(id)

    def of_request(self, owner: str, request_key: str) -> Job | None:
        """The job that an owner sent under a key of its requests."""
        with self.database.reads() as connection:
            same = JOBS.c.owner == owner, JOBS.c.request_key == request_key
            row = connection.execute(sa.select(JOBS).where(*same)).first()
        return None if row is None else Job.of(row)

    def several(self, ids: Collection[str], owner: str | None = None) -> dict[str, Job]:
        """Those of these jobs that there are."""
        wanted = [JOBS.c.id.in_(ids)] if owner is None else [JOBS.c.id.in_(ids), JOBS.c.owner == owner]
        with self.database.reads() as connection:
            return {row.id: Job.of(row) for row in connection.execute(sa.select(JOBS).where(*wanted))}

    def placed(self, ids: Collection[str]) -> dict[str, Placed]:
        """Those of these jobs that there are, with their places."""
        with self.database.reads() as connection:
            jobs = [Job.of(row) for row in connection.execute(sa.select(JOBS).where(JOBS.c.id.in_(ids)))]
            return {job.id: Placed(job, _position(connection, job)) for job in jobs}

    def page(self, owner: str, *, after: int | None, limit: int, newest_first: bool) -> list[Job]:
        """At most `limit` jobs of an owner, those that follow the one with number `after`."""
        wanted = [JOBS.c.owner == owner]
        if after is not None:
            wanted.append(JOBS.c.seq < after if newest_first else JOBS.c.seq > after)
        order = JOBS.c.seq.desc() if newest_first else JOBS.c.seq
        with self.database.reads() as connection:
            rows = connection.execute(sa.select(JOBS).where(*wanted).order_by(order).limit(limit))
            return [Job.of(row) for row in rows]

    def position(self, job: Job) -> int | None:
        """How many jobs are taken before it; None where it waits no more."""
        with self.database.reads() as connection:
            return _position(connection, job)

    def cancel(self, id: str) -> bool:
        """Ends a job that waits or runs; its worker stops at the next step. Says whether it did."""
        ended = dict(status=FAILED, error_code=CANCELLED, error_message="the job was cancelled")
        return self._change(JOBS.c.id == id, JOBS.c.status.in_((QUEUED, RUNNING)), **ended, **_ENDED)

    def delete(self, id: str) -> bool:
        """Removes a job's row; its worker stops at the next step. Its files are the caller's."""
        with self.database.writes() as connection:
            return connection.execute(JOBS.delete().where(JOBS.c.id == id)).rowcount == 1

    def show(self, id: str, **more: Any) -> bool:
        """Adds to what the APIs answer of a job, whoever has it."""
        with self.database.writes_alone() as connection:
            row = connection.execute(sa.select(JOBS.c.shown).where(JOBS.c.id == id)).first()
            if row is None:
                return False
            values = dict(shown=dict(row.shown) | more, revision=JOBS.c.revision + 1)
            return connection.execute(JOBS.update().where(JOBS.c.id == id).values(**values)).rowcount == 1

    def counts(self) -> dict[str, int]:
        """Jobs by status."""
        with self.database.reads() as connection:
            rows = connection.execute(sa.select(JOBS.c.status, sa.func.count()).group_by(JOBS.c.status))
            return {QUEUED: 0, RUNNING: 0, COMPLETED: 0, FAILED: 0} | {status: count for status, count in rows}

    # --- for workers

    def claim(self, worker: str, model: str, lease: float = LEASE) -> Job | None:
        """The job that is next, for this worker until its lease ends; None where none waits."""
        first = (
            sa.select(JOBS.c.seq)
            .where(JOBS.c.due <= clock(), JOBS.c.model == model)
            .order_by(JOBS.c.priority.desc(), JOBS.c.seq)
            .limit(1)
            .with_for_update(skip_locked=True)  # which SQLite has not, nor needs: one process writes at a time
        )
        taken = _taken(worker, lease)
        with self.database.writes() as connection:
            self._give_up(connection)
            claim = JOBS.update().where(JOBS.c.seq == first.scalar_subquery()).values(**taken).returning(JOBS)
            row = connection.execute(claim).first()
        return None if row is None else Job.of(row)

    def claim_like(self, job: Job, most: int, lease: float = LEASE) -> list[Job]:
        """At most `most` more jobs for the worker of one that it has just claimed, which it may make together with it.

        Those are alike by what the service noted of them, wait, and were never begun.
        """
        if job.asked.get(ALIKE) is None or job.step or most < 1:
            return []
        waiting = (JOBS.c.status == QUEUED, JOBS.c.due <= clock(), JOBS.c.model == job.model, JOBS.c.step == 0)
        order = JOBS.c.priority.desc(), JOBS.c.seq
        near = (
            sa.select(JOBS.c.seq, JOBS.c.asked).where(*waiting, JOBS.c.attempts == 0).order_by(*order).limit(LOOKED_AT)
        )
        taken = _taken(job.worker, lease)
        with self.database.writes() as connection:
            found = connection.execute(near.with_for_update(skip_locked=True))
            alike = [row.seq for row in found if row.asked.get(ALIKE) == job.asked[ALIKE]][:most]
            claim = JOBS.update().where(JOBS.c.seq.in_(alike)).values(**taken).returning(JOBS)
            rows = connection.execute(claim).all() if alike else []
        return sorted(map(Job.of, rows), key=lambda one: (-one.priority, one.seq))

    def _give_up(self, connection: sa.Connection) -> None:
        """Ends the jobs whose workers have died time after time."""
        dead = JOBS.c.status == RUNNING, JOBS.c.due <= clock(), JOBS.c.attempts >= self._attempts
        said = f"{self._attempts} workers ended while they made this video; its sizes may be beyond their memory"
        ended = dict(status=FAILED, error_code="worker_lost", error_message=said, **_ENDED)
        connection.execute(JOBS.update().where(*dead).values(**ended))

    def beat(self, job: Job, lease: float = LEASE, **progress: Any) -> bool:
        """Renews the lease of a claimed job. False: it was cancelled, deleted or taken over, so stop.

        Args:
          progress: columns `stage`, `step`, `steps` and `preview`, where they are new.
        """
        changed = _CHANGED if progress else {}  # to be alive is nothing new
        return self._change(*_held(job), due=clock() + lease, **progress, **changed)

    def complete(
        self, job: Job, *, result: str, size: int, told: Mapping[str, Any] | None = None, **shown: Any
    ) -> bool:
        """Ends a claimed job well, its file whole under its final name. False as for `beat`.

        Args:
          size: bytes of its folder.
          told: what the APIs answer from now on, beside `shown`.
        """
        facts = dict(job.shown) | dict(told or {}) | shown
        ended = dict(status=COMPLETED, result=result, bytes=size, shown=facts, stage="")
        return self._change(*_held(job), **ended, step=JOBS.c.steps, **_ENDED)

    def fail(self, job: Job, code: str, message: str) -> bool:
        """Ends a claimed job that cannot be made. False as for `beat`."""
        return self._change(*_held(job), status=FAILED, error_code=code, error_message=message, **_ENDED)

    def give_back(self, job: Job, *, wait: float = 0.0, stage: str = "") -> bool:
        """Lets go of a claimed job, which waits again, this attempt not counted. False as for `beat`.

        Args:
          wait: seconds in which no worker takes it.
          stage: why it waits, in words.
        """
        again: dict[str, Any] = dict(status=QUEUED, due=clock() + wait, worker=None, stage=stage)
        return self._change(*_held(job), **again, attempts=JOBS.c.attempts - 1, **_CHANGED)

    def seen(self, worker: str, model: str, stage: str) -> None:
        """Notes that a worker lives, and what it does in words; rows of those long gone are removed."""
        values = dict(model=model, stage=stage, seen=clock())
        with self.database.writes() as connection:
            connection.execute(WORKERS.delete().where(WORKERS.c.seen < clock() - FORGOTTEN))
            if not connection.execute(WORKERS.update().where(WORKERS.c.name == worker).values(**values)).rowcount:
                connection.execute(WORKERS.insert().values(name=worker, **values))

    def gone(self, worker: str) -> None:
        """Removes the row of a worker that ends."""
        with self.database.writes() as connection:
            connection.execute(WORKERS.delete().where(WORKERS.c.name == worker))

    def died(self, worker: str) -> None:
        """Ends the leases of a worker whose process is known to have ended: the next worker takes its job at once.

        The attempt stays counted, for the job may have been why it ended.
        """
        held = JOBS.c.status == RUNNING, JOBS.c.worker == worker
        with self.database.writes() as connection:
            connection.execute(JOBS.update().where(*held).values(due=clock()))
            connection.execute(WORKERS.delete().where(WORKERS.c.name == worker))

    def workers(self, within: float = ALIVE) -> dict[str, str]:
        """What each worker does that was seen of late."""
        with self.database.reads() as connection:
            alive = sa.select(WORKERS.c.name, WORKERS.c.stage).where(WORKERS.c.seen > clock() - within)
            return {name: stage for name, stage in connection.execute(alive)}

    # --- for those who tidy up

    def expire(self, keep: Retention) -> list[str]:
        """Removes the rows of ended jobs beyond what is kept, the oldest first; gives their ids."""
        newest = (JOBS.c.finished.desc(), JOBS.c.seq.desc())
        ended = sa.select(
            JOBS.c.id,
            (clock() - JOBS.c.finished).label("age"),
            sa.func.row_number().over(order_by=newest).label("place"),
            sa.func.sum(JOBS.c.bytes).over(order_by=newest).label("bytes"),
        ).where(JOBS.c.finished.is_not(None))
        found = ended.subquery()
        bounds = ((found.c.age, keep.age), (found.c.place, keep.count), (found.c.bytes, keep.bytes))
        beyond = [column > bound for column, bound in bounds if bound is not None]
        if not beyond:
            return []
        with self.database.writes() as connection:
            ids = list(connection.scalars(sa.select(found.c.id).where(sa.or_(*beyond))))
            for some in (ids[i : i + 500] for i in range(0, len(ids), 500)):
                connection.execute(JOBS.delete().where(JOBS.c.id.in_(some)))
        return ids

    # --- what all processes share

    def kept(self, name: str, make: Callable[[], str]) -> str:
        """A value under a name, made by whoever asks first."""
        with self.database.reads() as connection:
            found = connection.scalar(sa.select(KEPT.c.value).where(KEPT.c.name == name))
        if found is not None:
            return found
        with self.database.writes_alone() as connection:
            found = connection.scalar(sa.select(KEPT.c.value).where(KEPT.c.name == name))
            if found is None:
                found = make()
                connection.execute(KEPT.insert().values(name=name, value=found))
        return found

    def keep(self, name: str, value: Any) -> None:
        """Sets a JSON value under a name, for all processes."""
        text = json.dumps(value)
        with self.database.writes_alone() as connection:
            if not connection.execute(KEPT.update().where(KEPT.c.name == name).values(value=text)).rowcount:
                connection.execute(KEPT.insert().values(name=name, value=text))

    def now(self) -> float:
        """Seconds since 1970 by the database's clock."""
        with self.database.reads() as connection:
            return connection.scalar(sa.select(clock()))

    def _change(self, *where: Any, **values: Any) -> bool:
        with self.database.writes() as connection:
            return connection.execute(JOBS.update().where(*where).values(**values)).rowcount == 1


_CHANGED: dict[str, Any] = dict(revision=JOBS.c.revision + 1)
_ENDED: dict[str, Any] = dict(due=None, finished=clock(), preview=None, **_CHANGED)


def _taken(worker: str | None, lease: float) -> dict[str, Any]:
    """What of a row says that a worker has it."""
    found: dict[str, Any] = dict(status=RUNNING, worker=worker, due=clock() + lease, stage="starting", **_CHANGED)
    return found | dict(attempts=JOBS.c.attempts + 1, started=sa.func.coalesce(JOBS.c.started, clock()))


def _held(job: Job) -> tuple[Any, ...]:
    """Whether a job is still the one that was claimed: by this worker, in this attempt."""
    mine = JOBS.c.worker == job.worker, JOBS.c.attempts == job.attempts
    return JOBS.c.id == job.id, JOBS.c.status == RUNNING, *mine


def _position(connection: sa.Connection, job: Job) -> int | None:
    if job.status != QUEUED:
        return None
    sooner = (JOBS.c.priority > job.priority) | ((JOBS.c.priority == job.priority) & (JOBS.c.seq < job.seq))
    wanted = JOBS.c.status == QUEUED, JOBS.c.model == job.model, sooner
    return connection.scalar(sa.select(sa.func.count()).where(*wanted))
