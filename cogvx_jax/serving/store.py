"""The folder that server and workers share: of each job a folder, with what it is made of and what came of it.

`bucket.BucketStore` is the same for machines that share no disk.
"""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Collection
from pathlib import Path

ID = re.compile(r"video_[0-9a-f]{32}")
WORKFLOW = "workflow.json"  # in the folder of a job: ComfyUI's graph, where a client sent one
STEPS = "steps.safetensors"  # there, too: where its sampling goes on
YOUNG = 3600.0  # seconds in which a folder without a row may be one whose row is not there yet


class Unreachable(OSError):
    """The bucket that holds the files does not answer. The same may succeed later."""


class Store:
    """Folders of jobs below one folder, which all machines see under some path.

    Raises: OSError, naming the folder, where it cannot be made.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder).absolute()
        self._jobs = self.folder / "jobs"
        self._jobs.mkdir(parents=True, exist_ok=True)

    def folder_of(self, id: str) -> Path:
        """The folder of a job, there or not. Raises: ValueError for what is no id of ours."""
        if not ID.fullmatch(id):
            raise ValueError("this is no id of a job")
        return self._jobs / id

    def make(self, id: str) -> Path:
        """A new, empty folder."""
        folder = self.folder_of(id)
        folder.mkdir()
        return folder

    def publish(self, id: str) -> None:
        """Gives all workers the files that lie in a job's folder; before its row is there."""

    def bring(self, id: str, names: Collection[str]) -> Path:
        """The folder of a job for a worker, with the files that it is made of, and with its saved steps.

        Args:
          names: of those files. One that is not there is missed by whoever reads it.
        Raises: FileNotFoundError where there is no such job.
        """
        folder = self.folder_of(id)
        if not folder.is_dir():
            raise FileNotFoundError(f"the files of this job are not in {folder}, where this worker looks for them")
        return folder

    def keep(self, id: str, file: Path) -> None:
        """Gives all machines a file that a worker has written into its folder of a job."""

    def keep_only(self, id: str, names: Collection[str]) -> None:
        """Removes a job's other files, such as results of earlier attempts and saved steps."""
        for path in self.folder_of(id).iterdir():
            if path.name not in names:
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def drop(self, id: str, name: str) -> None:
        """Removes a file of a job; it need not be there."""
        (self.folder_of(id) / name).unlink(missing_ok=True)

    def fetch(self, id: str, name: str) -> Path:
        """The path of a job's file. Raises: FileNotFoundError."""
        file = self.folder_of(id) / name
        if not file.is_file():
            raise FileNotFoundError(f"{file} is gone")
        return file

    def used(self, id: str) -> None:
        """Says that a job's files are in use here."""

    def forget(self) -> None:
        """Removes copies that are used no more, where the files lie elsewhere."""

    def size(self, id: str) -> int:
        """Bytes of a job's files."""
        total = 0
        for path in self.folder_of(id).rglob("*"):
            with contextlib.suppress(OSError):  # one that goes away meanwhile
                total += path.stat().st_size if path.is_file() else 0
        return total

    def free(self) -> int:
        """Bytes that the disk has left for us."""
        return shutil.disk_usage(self.folder).free

    def remove(self, id: str) -> None:
        """Removes a job's files; none need be there."""
        shutil.rmtree(self.folder_of(id), ignore_errors=True)

    def ids(self) -> list[str]:
        """Of all folders that are there."""
        return [path.name for path in self._jobs.iterdir() if ID.fullmatch(path.name)]

    def remove_others(self, known: Collection[str], young: float = YOUNG) -> list[str]:
        """Removes the folders of jobs that are not known; gives their ids. Young ones may be known soon."""
        removed = []
        for id in set(self.ids()) - set(known):
            with contextlib.suppress(OSError):
                if time.time() - self.folder_of(id).stat().st_mtime >= young:
                    self.remove(id)
                    removed.append(id)
        return removed


def live_of(out: Path) -> Path:
    """Where a worker writes the fragments of a video that is to become `out`, for those who watch meanwhile."""
    return out.with_name(f"live-{out.name}")
