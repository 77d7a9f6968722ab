"""What several tests of the server share: a queue in each database."""

import itertools
from pathlib import Path

import postgres
import pytest

NAMES = itertools.count()


@pytest.fixture(scope="session")
def postgres_url():
    if postgres.find("initdb") is None:
        pytest.skip("no Postgres is installed here")
    with postgres.running() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def queue_url(request, tmp_path):
    """The URL of an empty queue."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/queue.sqlite"
    return new_schema(request.getfixturevalue("postgres_url"))


def new_schema(url):
    """The URL of the same server with empty tables; a database of its own would be 300 files."""
    import sqlalchemy as sa

    name = f"queue{next(NAMES)}"
    with sa.create_engine(url, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    return f"{url}&options=-csearch_path%3D{name}"


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())
