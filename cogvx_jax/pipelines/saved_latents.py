"""Sampled latents in a file: what the costly part of a run made, kept until the video is whole."""

import dataclasses
import json
import math
import os
import tempfile
from pathlib import Path

import numpy as np

from cogvx_jax.json_files import parse_json
from cogvx_jax.storage import check_place, write_whole
from cogvx_jax.temporaries import check_local, hidden_folder

FORMAT = "cogvx latents 1"  # changes when an older program could not read the file
SUFFIX = ".latents.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedLatents:
    """latents: (1, T, h, w, 16) float32 as sampled; `padding` frames of them are dropped in decoding.

    Raises: ValueError for latents of another shape or type, or not finite, and for facts of another kind.
    """

    latents: np.ndarray
    padding: int
    fps: float
    model: str  # what `load` takes
    prompt: str
    record: str | None = None  # the text that the video is to carry

    def __post_init__(self):
        shape = self.latents.shape
        if len(shape) != 5 or shape[0] != 1 or not all(shape) or self.latents.dtype != np.float32:
            raise ValueError(f"latents must be those of one video, (1, T, h, w, C) float32, got {_kind(self.latents)}")
        if not np.isfinite(self.latents).all():
            bad = np.sum(~np.isfinite(self.latents))
            raise ValueError(f"of {self.latents.size} numbers of the latents {bad} are not finite")
        if type(self.padding) is not int or not 0 <= self.padding < shape[1]:
            raise ValueError(f"padding must be from 0 to {shape[1] - 1} latent frames, got {self.padding!r}")
        if type(self.fps) not in (int, float) or not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"fps must be a positive number, got {self.fps!r}")
        for name in ("model", "prompt"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be text, got {getattr(self, name)!r}")


def save_latents(path: str | os.PathLike, saved: SavedLatents) -> None:
    """Writes a safetensors file, which appears under its name only when whole. Raises: OSError, naming the file."""
    write_whole(Path(path), _bytes(saved))


def keep_latents(video: Path, saved: SavedLatents) -> Path:
    """Saves latents beside the video that is to be made of them, or in the folder for temporary files if that fails.

    What an earlier run kept, or another one that runs beside this one, stays as it is.

    Returns: the file.
    Raises: OSError, naming both places, where neither has room.
    """
    data, problems = _bytes(saved), []
    for folder in dict.fromkeys((video.absolute().parent, Path(tempfile.gettempdir()).absolute())):
        try:
            return _write_new(folder, video.name, data)
        except OSError as error:
            problems.append(str(error))
    raise OSError("; ".join(problems))


def read_latents(path: str | os.PathLike) -> SavedLatents:
    """The latents that `save_latents` wrote.

    Raises: FileNotFoundError; ValueError, naming the file, where it is not one of ours or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    check_local(path, "a file of latents")
    check_place(path)
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder; give the file of latents that `cogvx generate` kept")
    try:
        with safe_open(path, "np") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise ValueError(f"{path} does not hold latents that `cogvx generate` saved")
            return _checked(path, file.get_tensor("latents"), about.get("run", ""), about.get("record"))
    except (SafetensorError, TypeError, AttributeError) as error:  # the latter two of types that numpy does not have
        raise ValueError(f"{path} is damaged: {str(error)[:200]}") from None


def _checked(path: str | os.PathLike, latents: np.ndarray, run: str, record: str | None) -> SavedLatents:
    names = {field.name for field in dataclasses.fields(SavedLatents)} - {"latents", "record"}
    try:
        facts = parse_json(run)
        if facts.keys() != names:
            raise ValueError(f"its metadata must say {', '.join(sorted(names))}")
        return SavedLatents(latents=latents, record=record, **facts)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {str(error)[:200]}") from None


def _bytes(saved: SavedLatents) -> bytes:
    from safetensors.numpy import save

    facts = {"padding": saved.padding, "fps": saved.fps, "model": saved.model, "prompt": saved.prompt}
    metadata = {"format": FORMAT, "run": json.dumps(facts)}
    metadata |= {} if saved.record is None else {"record": saved.record}
    return save({"latents": np.ascontiguousarray(saved.latents)}, metadata)


def _write_new(folder: Path, name: str, data: bytes) -> Path:
    """Writes NAME.latents.safetensors, or NAME.2.latents.safetensors and so on where that is taken."""
    with hidden_folder(folder) as hidden:
        partial = hidden / f"{name}{SUFFIX}"
        try:
            partial.write_bytes(data)
        except OSError as error:  # of a full disk, which does not say for what
            raise OSError(error.errno, error.strerror, str(folder / partial.name)) from error
        number = 1
        while True:
            file = folder / (partial.name if number == 1 else f"{name}.{number}{SUFFIX}")
            try:
                _claim(partial, file)
                return file
            except FileExistsError:
                number += 1


def _claim(partial: Path, file: Path) -> None:
    """Gives a whole file its name. Raises: FileExistsError where that is taken."""
    try:
        os.link(partial, file)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        file.open("x").close()
        partial.replace(file)


def _kind(array: np.ndarray) -> str:
    return f"{array.shape} {array.dtype}"
