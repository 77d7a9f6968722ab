"""The file that says how a model's blocks change from step to step: `reuse.json`, of `cogvx calibrate`."""

import dataclasses
import json
import os
from pathlib import Path

from cogvx_jax.convert.config import MAX_BYTES
from cogvx_jax.diffusion.reuse import Calibration, Reuse, checked_calibration
from cogvx_jax.json_files import parse_json
from cogvx_jax.storage import StoragePath, open_files, storage_path, write_whole

NAME = "reuse.json"


def find_calibration(
    reuse: Reuse, model: str, folder: str | Path | None, file: str | os.PathLike | None
) -> Calibration | None:
    """The calibration for a method: that of `file`, or, where that is None, of the model's folder.

    Args:
      model: the name of its spec.
    Raises: OSError for a file that is not there; ValueError, one sentence, for one that is damaged or of another model,
      and where the method needs one and there is none.
    """
    found = None
    if file is not None:
        found = read_calibration(os.path.dirname(os.fspath(file)) or ".", os.path.basename(os.fspath(file)))
    elif folder is not None and open_files(folder).exists(NAME):
        found = read_calibration(folder)
    reuse.check_calibration(model, found)
    return found


def read_calibration(folder: str | Path, name: str = NAME) -> Calibration:
    """Raises: FileNotFoundError; ValueError, one sentence, for a file that is none."""
    try:
        return checked_calibration(parse_json(open_files(folder).bytes(name, MAX_BYTES)))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {folder}/{name}; `cogvx calibrate` makes one") from None
    except ValueError as error:
        raise ValueError(f"{folder}/{name} is no calibration: {error}") from None


def write_calibration(file: StoragePath, found: Calibration) -> None:
    """Raises: OSError."""
    write_whole(file, (json.dumps(dataclasses.asdict(found), indent=1) + "\n").encode())


def calibration_path(folder: str | Path) -> StoragePath:
    """Where a model's calibration lies. Raises: ValueError for a URL that is not written to."""
    return storage_path(folder) / NAME
