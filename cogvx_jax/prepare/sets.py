"""The lists of a set, in its folder."""

from pathlib import Path

from cogvx_jax.json_files import read_json
from cogvx_jax.prepare.rows import Row, read_rows

FILMS, CLIPS, ABOUT = "films.jsonl", "clips.jsonl", "set.json"
FORMAT = 1


def read_set(folder: Path) -> list[Row]:
    """The clips of a set. Raises: FileNotFoundError; ValueError for a folder of another version or kind."""
    if not (folder / ABOUT).is_file():
        raise FileNotFoundError(f"{folder} holds no set of `cogvx prepare`, or it was not finished: run that again")
    version = read_json(folder / ABOUT).get("format")
    if version != FORMAT:
        raise ValueError(f"{folder} is a set of version {version}, and this program knows {FORMAT}: prepare it again")
    return read_rows(folder / CLIPS)
