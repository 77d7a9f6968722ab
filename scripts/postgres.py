"""A Postgres of one's own, in a temporary folder, where the machine has one installed: for tests and benchmarks."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDERS = ("", *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True))


def find(program: str) -> str | None:
    """The path of a program of Postgres; None where none is installed. Debian keeps it outside PATH."""
    found = (shutil.which(program, path=folder or None) for folder in FOLDERS)
    return next((path for path in found if path and "postgres" in os.path.realpath(path)), None)


def _user() -> dict[str, Any]:
    """Whom it runs as: it refuses root."""
    if os.getuid():
        return {}
    names = {entry.pw_name for entry in pwd.getpwall()}
    return {"user": "postgres" if "postgres" in names else "nobody"}


@contextlib.contextmanager
def running() -> Iterator[str]:
    """The URL of a new, empty server, which ends with the block."""
    folder = Path(tempfile.mkdtemp(prefix="cogvx-postgres-"))
    who = _user()
    if who:
        shutil.chown(folder, who["user"])
    quiet: dict[str, Any] = dict(cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **who)
    made = f"-D {folder}/data -U cogvx --auth=trust --no-sync -E UTF8 --locale=C"
    subprocess.run([str(find("initdb")), *made.split()], check=True, **quiet)
    where = f"-D {folder}/data -k {folder} -c listen_addresses= -c fsync=off -c max_connections=200"
    server = subprocess.Popen([str(find("postgres")), *where.split()], **quiet)
    try:
        url = f"postgresql+psycopg://cogvx@/postgres?host={folder}"
        _wait(server, folder)
        yield url
    finally:
        server.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
        server.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(server: subprocess.Popen, folder: Path) -> None:
    ready = [find("pg_isready") or "pg_isready", "-h", str(folder), "-q"]
    for _ in range(300):
        if server.poll() is not None:
            raise RuntimeError(f"postgres ended with {server.returncode}")
        if subprocess.run(ready).returncode == 0:
            return
        time.sleep(0.1)
    raise RuntimeError("postgres did not get ready in 30 seconds")
