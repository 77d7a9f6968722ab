"""A store whose files lie in a bucket, so that server and workers share no disk.

Each machine has a folder of its own with copies. The files that a job is made of go into the bucket before its row is
written, and a video before its row says completed. An object of a bucket appears only when it is whole. A copy that
nobody uses for an hour goes, and is fetched again where it is asked for.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import fsspec

from cogvx_jax.serving.store import ID, STEPS, WORKFLOW, YOUNG, Store, Unreachable
from cogvx_jax.storage import check_folder_writable, is_bucket, storage_path
from cogvx_jax.temporaries import FULL, hidden_folder

KEPT = 3600.0  # seconds without use after which a copy goes
LISTED = 600.0  # seconds between two listings of all jobs, which a bucket charges for
MARK = "job"  # an empty object of each job: a worker that misses it looks into another bucket than the server
LOCKS = 16  # downloads at a time; two that want the same file share one


class BucketStore(Store):
    """Args:
      folder: of this machine, for copies.
      url: such as gs://BUCKET/videos; credentials are those that gcsfs or s3fs find.
    Raises: OSError as `Store`; ValueError where no package for such a URL is installed.

    Methods raise `Unreachable` where the bucket does not answer; those that remove say so on stderr.
    """

    def __init__(self, folder: str | os.PathLike, url: str):
        super().__init__(folder)
        self.where = url.rstrip("/")
        try:
            self._system, root = fsspec.core.url_to_fs(self.where, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ValueError(f"cannot use {self.where}: {error}") from None
        self._root = f"{root.rstrip('/')}/jobs"
        self._locks = [threading.Lock() for _ in range(LOCKS)]
        self._listed, self._unknown = -LISTED, dict[str, float]()  # ids without a row -> since when they have none

    def publish(self, id: str) -> None:
        with self._reached():
            for path in self.folder_of(id).iterdir():
                self._system.put_file(str(path), self._at(id, path.name))
            self._system.pipe_file(self._at(id, MARK), b"")

    def bring(self, id: str, names: Collection[str]) -> Path:
        there = self._names(id)
        if MARK not in there:
            raise FileNotFoundError(f"there is no job {id} in {self.where}")
        folder = self.folder_of(id)
        folder.mkdir(exist_ok=True)
        for name in there & {*names, WORKFLOW, STEPS}:
            if name == STEPS or not (folder / name).is_file():  # steps change: another worker may have gone on
                self._get(id, name)
        return folder

    def keep(self, id: str, file: Path) -> None:
        with self._reached():
            self._system.put_file(str(file), self._at(id, file.name))

    def keep_only(self, id: str, names: Collection[str]) -> None:
        super().keep_only(id, names)
        with self._quietly():
            self._remove(id, self._names(id) - {MARK, *names})

    def drop(self, id: str, name: str) -> None:
        super().drop(id, name)
        with self._quietly():
            self._remove(id, self._names(id) & {name})

    def fetch(self, id: str, name: str) -> Path:
        file = self.folder_of(id) / name
        with self._locks[hash((id, name)) % LOCKS]:
            if not file.is_file():
                self._get(id, name)
        self.used(id)
        return file

    def remove(self, id: str) -> None:
        super().remove(id)
        with self._quietly(), self._reached(), contextlib.suppress(FileNotFoundError):
            self._system.rm(self._at(id), recursive=True)

    def remove_others(self, known: Collection[str], young: float = YOUNG) -> list[str]:
        removed, now = super().remove_others(known, young), time.monotonic()
        if now - self._listed < LISTED:
            return removed
        with self._quietly():
            self._listed = now
            unknown = self._ids() - set(known)
            # Since when this process has missed the row: the bucket's clock may be another than ours.
            self._unknown = {id: self._unknown.get(id, now) for id in unknown}
            for id in [id for id, since in self._unknown.items() if now - since >= young]:
                self.remove(id)
                removed.append(id)
        return removed

    def ids(self) -> list[str]:
        with self._quietly():
            return sorted({*super().ids(), *self._ids()})
        return super().ids()

    def used(self, id: str) -> None:
        with contextlib.suppress(OSError):
            os.utime(self.folder_of(id))

    def forget(self) -> None:
        old = time.time() - KEPT
        for id in super().ids():
            with contextlib.suppress(OSError):  # another process forgets, too
                if self.folder_of(id).stat().st_mtime < old:
                    super().remove(id)

    def _at(self, id: str, name: str = "") -> str:
        self.folder_of(id)  # which refuses what is no id
        return f"{self._root}/{id}/{name}".rstrip("/")

    def _names(self, id: str) -> set[str]:
        """Of a job's objects; none where there is no such job."""
        return self._listing(self._at(id))

    def _ids(self) -> set[str]:
        return {name for name in self._listing(self._root) if ID.fullmatch(name)}

    def _listing(self, place: str) -> set[str]:
        with self._reached():
            try:
                found = self._system.ls(place, detail=False)
            except FileNotFoundError:  # a bucket has no empty folders
                return set()
        return {path.rstrip("/").rpartition("/")[2] for path in found}

    def _get(self, id: str, name: str) -> None:
        """Copies a file here, which appears only when it is whole. Raises: FileNotFoundError."""
        folder = self.folder_of(id)
        with hidden_folder(self.folder) as partial:
            with self._reached():
                self._system.get_file(self._at(id, name), str(partial / name))
            folder.mkdir(exist_ok=True)
            (partial / name).replace(folder / name)

    def _remove(self, id: str, names: Collection[str]) -> None:
        with self._reached():
            if names:
                self._system.rm([self._at(id, name) for name in sorted(names)])

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """Inside, whatever the packages of buckets raise is `Unreachable`, but for a missing file and a full disk."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            said = str(error).strip().partition("\n")[0]
            raise Unreachable(f"{self.where} cannot be reached now: {said or type(error).__name__}") from error

    @contextlib.contextmanager
    def _quietly(self) -> Iterator[None]:
        """Inside, what cannot be removed now stays: the files of jobs without a row are removed later."""
        try:
            yield
        except (Unreachable, FileNotFoundError) as error:
            print(f"cogvx: {error}", file=sys.stderr)


def open_store(folder: str | os.PathLike, results: str | None) -> Store:
    """The store in a folder, or with its files in a bucket.

    Raises: ValueError for what is no bucket; OSError where nothing can be written to it.
    """
    if results is None:
        return Store(folder)
    if not is_bucket(place := storage_path(results)):
        raise ValueError(f"--results is a bucket such as gs://NAME/videos, got {results}; a folder is given by --store")
    made = BucketStore(folder, results)
    check_folder_writable(place)
    return made
