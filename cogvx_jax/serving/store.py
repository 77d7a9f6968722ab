"""The folder that server and workers share: of each job a folder, with what it is made of and what came of it."""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Collection
from pathlib import Path

ID = re.compile(r"video_[0-9a-f]{32}")
WORKFLOW = "workflow.json"  # in the folder of a job: ComfyUI's graph, where a client sent one
YOUNG = 3600.0  # seconds in which a folder without a row may be one whose row is not there yet


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


def keep_only(folder: Path, names: Collection[str]) -> None:
    """Removes what else lies in a job's folder, such as results of earlier attempts and saved steps."""
    for path in folder.iterdir():
        if path.name not in names:
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
