"""The videos that lie in a folder, by their names below it."""

import os
import re
import unicodedata
from pathlib import Path
from typing import NoReturn

from cogvx_jax.data.clips import VIDEOS
from cogvx_jax.storage import check_place
from cogvx_jax.temporaries import PREFIX


def find_videos(folder: Path) -> dict[str, Path]:
    """All video files in a folder and below, by their names there with slashes, in Unicode's composed form.

    Links to folders are not followed, so none can lead in a circle; hidden folders, and those that are being written,
    are passed over.

    Raises: FileNotFoundError; ValueError for what is no folder; PermissionError for a folder that cannot be read.
    """
    check_place(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; give the folder of the videos")
    found = dict[str, Path]()
    for place, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith((".", PREFIX)))
        for name in sorted(files):
            if Path(name).suffix.lower() in VIDEOS and not name.startswith("._"):  # those are macOS's own
                path = Path(place, name)
                found[composed(path.relative_to(folder).as_posix())] = path
    return found


def composed(name: str) -> str:
    """A name in one form of Unicode: some systems write é as two characters."""
    return unicodedata.normalize("NFC", name)


def prompt_of(name: str) -> str:
    """The prompt in a video's name, as VBench's tools take it: without its folder, its suffix and its number."""
    return re.sub(r"-\d+$", "", Path(name).stem)


def _refuse(error: OSError) -> NoReturn:
    raise PermissionError(error.errno, error.strerror, error.filename)
