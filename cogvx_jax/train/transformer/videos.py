"""Videos that a run makes on its way, of the same prompts and seeds each time: what training changes can be seen."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cogvx_jax.pipelines.generate import generate
from cogvx_jax.pipelines.model import Model
from cogvx_jax.sharding import first_process
from cogvx_jax.storage import StoragePath, write_whole


def write_videos(model: Model, wanted: Sequence[Mapping[str, Any]], folder: StoragePath) -> None:
    """Makes FOLDER/00.mp4, 01.mp4 and so on, each with `generate` of its own arguments; a file is whole or not there.

    Several processes make a video together, and the first one writes it. Programs are compiled once for each shape,
    as long as the model's spec stays the same.
    """
    for number, arguments in enumerate(wanted):
        video = generate(model, **arguments, progress=False)
        if first_process():
            with tempfile.TemporaryDirectory() as here:
                file = Path(here) / f"{number:02}.mp4"
                video.save(file)
                write_whole(folder / file.name, file.read_bytes())
