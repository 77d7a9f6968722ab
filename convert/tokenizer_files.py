"""The files of a tokenizer: where they lie is told by their names, and they go from folder to folder as they are.

`pipelines.tokenizer` reads them.
"""

from pathlib import Path

from cogvx_jax.convert.containers import SUFFIXES
from cogvx_jax.storage import below, copy_files, open_files, parent_and_name

Place = str | Path
SOURCES = ("tokenizer.json", "spiece.model")  # the first that is there is read; the published models have the second


def has_tokenizer(place: Place) -> bool:
    """Whether a folder holds one, maybe with other files."""
    return any(open_files(place).exists(name) for name in SOURCES)


def check_tokenizer(place: Place) -> None:
    """Raises FileNotFoundError, which names the folder, where it holds no tokenizer."""
    if has_tokenizer(place):
        return
    parent, name = parent_and_name(place)
    if not open_files(place).is_folder():
        what = "is a file" if open_files(parent).exists(name) else "is not there"
        raise FileNotFoundError(f"{place} {what}; a tokenizer is a folder with {' or '.join(SOURCES)} of T5")
    raise FileNotFoundError(f"{place} has neither {' nor '.join(SOURCES)}, of which a tokenizer is read")


def find_tokenizer(text_encoder: Place | None, model: Place) -> Place | None:
    """The folder of a tokenizer that lies with a text encoder or beside it, or in a model; None where there is none."""
    near: list[Place] = []
    if text_encoder is not None:
        near = [text_encoder, below(text_encoder, "tokenizer"), below(parent_and_name(text_encoder)[0], "tokenizer")]
    return next((folder for folder in (*near, below(model, "tokenizer")) if has_tokenizer(folder)), None)


def copy_tokenizer(place: Place, target: Path) -> None:
    """Copies the files of a tokenizer's folder, but for the weights of T5 that may lie beside them.

    Raises: FileNotFoundError as `check_tokenizer`.
    """
    check_tokenizer(place)
    names = [
        name
        for name in open_files(place).names()
        if name not in ("config.json",) and not name.endswith((*SUFFIXES, ".index.json"))
    ]
    copy_files(place, target, names)
