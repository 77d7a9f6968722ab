"""The folder of what browsers upload, which Gradio serves files from: bounded in bytes and in age."""

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from cogvx_jax.serving.service import ROOM
from cogvx_jax.serving.store import Store

MOST = 2 * 2**30  # bytes of all files at a time
KEPT = 3600.0  # seconds after which a file goes


class Uploads:
    """Files by browsers, in the store.

    Gradio removes what it knows of by age, too. It forgets what it knows when it is killed.
    """

    def __init__(self, store: Store):
        self._store, self.folder = store, store.folder / "uploads"
        self.folder.mkdir(exist_ok=True)

    def copy(self, path: Path) -> str:
        """The path of a copy of a job's file, which Gradio may serve."""
        self.tidy()
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        shutil.copyfile(path, folder / path.name)
        return str(folder / path.name)

    def has_room(self) -> bool:
        """Whether a further file is taken."""
        return self.tidy() < MOST and self._store.free() >= ROOM

    def tidy(self) -> int:
        """Removes old files, and gives the bytes of those that are left."""
        left, old = 0, time.time() - KEPT
        for place, folders, names in os.walk(self.folder, topdown=False):
            for path in (Path(place) / name for name in names):
                with contextlib.suppress(OSError):  # one that goes away meanwhile
                    if (about := path.stat()).st_mtime < old:
                        path.unlink()
                    else:
                        left += about.st_size
            for path in (Path(place) / name for name in folders):
                with contextlib.suppress(OSError):  # one that is not empty
                    if path.stat().st_mtime < old:
                        path.rmdir()
        return left
