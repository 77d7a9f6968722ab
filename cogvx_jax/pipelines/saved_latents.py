"""Sampled latents in a file: what the costly part of a run made, kept until the video is whole."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np

from cogvx_jax.storage import write_whole

FORMAT = "cogvx latents 1"  # changes when an older program could not read the file


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedLatents:
    """latents: (1, T, h, w, 16) float32 as sampled; `padding` frames of them are dropped in decoding."""

    latents: np.ndarray
    padding: int
    fps: float
    model: str  # what `load` takes
    prompt: str


def save_latents(path: str | os.PathLike, saved: SavedLatents) -> None:
    """Writes a safetensors file, which appears under its name only when whole."""
    from safetensors.numpy import save

    facts = {"padding": saved.padding, "fps": saved.fps, "model": saved.model, "prompt": saved.prompt}
    metadata = {"format": FORMAT, "run": json.dumps(facts)}
    write_whole(Path(path), save({"latents": np.ascontiguousarray(saved.latents)}, metadata))


def read_latents(path: str | os.PathLike) -> SavedLatents:
    """What `save_latents` wrote.

    Raises: FileNotFoundError; ValueError where the file is not one of ours or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, "np") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise ValueError(f"{path} does not hold latents that `cogvx generate` saved")
            return SavedLatents(latents=file.get_tensor("latents"), **json.loads(about["run"]))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
