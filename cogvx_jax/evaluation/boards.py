"""Public boards of text and image to video: their prompts, how often each is sampled, and the names of the videos.

The prompts are read from a file of the board's own package, which is not imported, or from a path. The names are those
that the board's tools look for.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from cogvx_jax.finishing.packaged import Packaged, packaged_file
from cogvx_jax.json_files import parse_value, quoted
from cogvx_jax.storage import check_place, read_file

BoardName = Literal["vbench", "vbench-i2v", "vbench2"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Board:
    """A board's files and counts.

    Attributes:
      info: the file of its prompts, in the package that brings it, or in none.
      repeats: videos of each prompt.
      more: the same for the prompts of some dimensions.
      folders: whether the videos of each dimension lie in a folder of its name.
      cut: characters of a prompt that its video's name has; None is all.
    """

    name: str
    info: str
    package: str | None
    repeats: int
    more: Mapping[str, int] = dataclasses.field(default_factory=dict)
    folders: bool = False
    cut: int | None = None

    def videos(self, dimensions: tuple[str, ...]) -> int:
        """How often a prompt of these dimensions is sampled."""
        return max(self.repeats, *(self.more.get(dimension, 0) for dimension in dimensions))

    def video(self, prompt: str, dimension: str, index: int) -> str:
        """The name of a video, below the folder of all of them."""
        name = f"{prompt[: self.cut]}-{index}.mp4"
        return f"{dimension}/{name}" if self.folders else name


BOARDS = {
    "vbench": Board(
        name="vbench",
        info="VBench_full_info.json",
        package="vbench",
        repeats=5,
        more={"temporal_flickering": 25},  # a static filter keeps five of them
    ),
    "vbench-i2v": Board(name="vbench-i2v", info="vbench2_i2v_full_info.json", package=None, repeats=5),
    "vbench2": Board(
        name="vbench2",
        info="VBench2_full_info.json",
        package="vbench2",
        repeats=3,
        more={"Diversity": 20},
        folders=True,
        cut=180,
    ),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A prompt of a board, what it is asked for, and the name of its picture."""

    prompt: str
    dimensions: tuple[str, ...]
    image: str | None = None


def read_entries(board: Board, info: Path | None = None) -> list[Entry]:
    """The prompts of a board, in its order.

    Args:
      info: the file of prompts; None is that of the installed package.
    Raises: FileNotFoundError where there is none, with what to install or to give; ValueError, one sentence with the
      file's name, for what is no such file or names a video that no folder can hold.
    """
    path = _found(board, info)
    try:
        found = parse_value(read_file(path))
        if not isinstance(found, list) or not found:
            raise ValueError(f"not a list of prompts, but {quoted(found)}")
        return [_entry(row, number) for number, row in enumerate(found, 1)]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def dimensions_of(entries: list[Entry]) -> list[str]:
    """All dimensions of some prompts, in the order in which they come."""
    return list(dict.fromkeys(dimension for entry in entries for dimension in entry.dimensions))


def is_plain(name: str) -> bool:
    """Whether a text can be the name of a file in the folder that it is meant for."""
    return name not in ("", ".", "..") and not {"/", "\0", "\n"} & set(name)


def _found(board: Board, info: Path | None) -> Path:
    if info is not None:
        check_place(info)
        return info
    if board.package is None:
        raise FileNotFoundError(f"no package brings {board.info}; give it, from the board's repository, as --info")
    if (path := packaged_file(Packaged(((board.package, board.info),)))) is None:
        raise FileNotFoundError(
            f"the prompts of {board.name} come with a package that is not installed: "
            f"pip install --no-deps {board.package}, or give {board.info} as --info"
        )
    return path


def _entry(row: Any, number: int) -> Entry:
    """Raises: ValueError for what is no prompt."""
    fields: dict[str, Any] = row if isinstance(row, dict) else {}
    prompt, image = fields.get("prompt_en"), fields.get("image_name")
    dimensions: Any = fields.get("dimension")
    if isinstance(dimensions, str):
        dimensions = [dimensions]
    told = isinstance(dimensions, list) and dimensions and all(isinstance(one, str) for one in dimensions)
    if not isinstance(prompt, str) or not prompt.strip() or not told or not all(map(is_plain, dimensions)):
        raise ValueError(f"its prompt {number} has no text prompt_en with a list of dimensions: {quoted(row)}")
    if not is_plain(prompt) or not (image is None or (isinstance(image, str) and is_plain(image))):
        raise ValueError(f"its prompt {number} cannot be the name of a file: {quoted(row)}")
    return Entry(prompt, tuple(dimensions), image)
