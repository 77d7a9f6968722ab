"""Videos that a run makes on its way, of the same prompts and seeds each time: what training changes can be seen."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from cogvx_jax.pipelines.finite import NotFiniteError
from cogvx_jax.pipelines.generate import generate
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.request import Request
from cogvx_jax.sharding import first_process
from cogvx_jax.storage import StoragePath, write_whole
from cogvx_jax.train.progress import say


def write_videos(model: Model, wanted: Sequence[Request], folder: StoragePath) -> None:
    """Makes FOLDER/00.mp4, 01.mp4 and so on, one of each request; a file is whole or not there.

    Several processes make a video together, and the first one writes it. Programs are compiled once for each shape,
    as long as the model's spec stays the same. A video whose numbers are not finite is left out with a word: it does
    not end the run.
    """
    for number, request in enumerate(wanted):
        name = f"{number:02}.mp4"
        try:
            video = generate(model, request, progress=False)
        except NotFiniteError as error:
            say(f"no video {folder / name}: {error}")
            continue
        if first_process():
            with tempfile.TemporaryDirectory() as here:
                file = Path(here) / name
                video.save(file)
                write_whole(folder / name, file.read_bytes())
