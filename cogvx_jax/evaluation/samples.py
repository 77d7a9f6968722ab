"""The videos that a board asks for: lines of a prompts file, which `cogvx batch` makes, and `cogvx eval` reads again.

Each line has all of one video: what is sampled, its name and seed, and under "board", which nobody else reads, the
board's own prompt and the dimensions that it counts for. So a file may be split, and its parts be made elsewhere.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cogvx_jax.data.text_lines import read_json_lines, read_lines, refuse
from cogvx_jax.evaluation.boards import Board, Entry
from cogvx_jax.json_files import quoted

MAX_NAME = 220  # bytes of a video's name, as of a prompts file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One video of a board.

    Attributes:
      name: of its file, below the folder of all videos.
      prompt: the board's own.
      dimensions: that it counts for.
      index: of it among those of the prompt.
      sampled: what the model is given; the prompt itself, or a longer one.
      image: the picture that it begins with.
    """

    name: str
    prompt: str
    dimensions: tuple[str, ...]
    index: int
    board: str
    seed: int
    sampled: str
    image: str | None = None

    def line(self) -> str:
        """As JSON, for a prompts file."""
        about = {"name": self.board, "prompt": self.prompt, "index": self.index, "dimensions": self.dimensions}
        picture = {} if self.image is None else {"image": self.image}
        whole = {"prompt": self.sampled, "out": self.name, "seed": self.seed, **picture, "board": about}
        return json.dumps(whole, ensure_ascii=False)


@dataclasses.dataclass(frozen=True)
class Shared:
    """Two entries of a board whose videos have the same names: they are made once, for the dimensions of both."""

    prompt: str
    differ: bool  # whether they had two longer prompts, of which the first is taken

    def told(self) -> str:
        more = "; of its two longer prompts the first is sampled" if self.differ else ""
        return f"two entries have the prompt {self.prompt[:60]!r} and share their videos{more}"


def all_samples(
    board: Board,
    entries: Sequence[Entry],
    *,
    seed: int = 0,
    longer: Mapping[int, str] | None = None,
    images: Path | None = None,
) -> tuple[list[Sample], list[Shared]]:
    """Every video of a board, each with a seed of its own: `seed` for the first, and one more for each next.

    Args:
      longer: what is sampled in place of the prompts, by the place of the entry.
      images: the folder of the board's pictures.
    Returns: the videos in the board's order, and which entries share theirs.
    Raises: FileNotFoundError for a picture that is not there; ValueError where a board needs pictures and has none,
      or a name is too long.
    """
    _check_images(board, entries, images)
    found, shared = dict[str, Sample](), list[Shared]()
    for place, entry in enumerate(entries):
        sampled = entry.prompt if longer is None else longer[place]
        for index in range(board.videos(entry.dimensions)):
            name = board.video(entry.prompt, entry.dimensions[0], index)
            if (first := found.get(name)) is not None:
                dimensions = tuple(dict.fromkeys((*first.dimensions, *entry.dimensions)))
                found[name] = dataclasses.replace(first, dimensions=dimensions)
                if not index:
                    shared.append(Shared(entry.prompt, first.sampled != sampled))
                continue
            found[name] = Sample(
                name=name,
                prompt=entry.prompt,
                dimensions=entry.dimensions,
                index=index,
                board=board.name,
                seed=seed + len(found),
                sampled=sampled,
                image=None if images is None or entry.image is None else str(images / entry.image),
            )
    long = [name for name in found if len(Path(name).name.encode()) > MAX_NAME]
    refuse(board.name, long, len(found), f"names are longer than {MAX_NAME} bytes")
    return list(found.values()), shared


def choose(
    samples: Sequence[Sample], dimensions: Sequence[str] = (), prompts: int | None = None, videos: int | None = None
) -> list[Sample]:
    """Those of some dimensions, of each the first prompts, and of each prompt the first videos.

    Seeds stay: a part of a board has the videos of the whole.
    Raises: ValueError for a dimension that the board has not, and for counts below 1.
    """
    known = dict.fromkeys(dimension for sample in samples for dimension in sample.dimensions)
    if unknown := [dimension for dimension in dimensions if dimension not in known]:
        raise ValueError(f"there is no dimension {unknown[0]}; they are {', '.join(known)}")
    for name, count in (("--limit", prompts), ("--repeats", videos)):
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    kept = set[tuple[str, tuple[str, ...]]]()
    for dimension in dimensions or known:
        of = dict.fromkeys((one.prompt, one.dimensions) for one in samples if dimension in one.dimensions)
        kept |= set(list(of)[:prompts])
    return [one for one in samples if (one.prompt, one.dimensions) in kept and (videos is None or one.index < videos)]


def read_longer(entries: Sequence[Entry], longer: Path, originals: Path | None = None) -> dict[int, str]:
    """What is sampled in place of each entry's prompt, by the entry's place.

    Args:
      longer: a prompt on each line.
      originals: the prompts that these are of, line by line; None means that lines are as the entries are.
    Raises: FileNotFoundError; ValueError where counts differ, a line is empty, or a prompt has no line.
    """
    lines = [line.strip() for line in read_lines(longer)]
    refuse(longer, [f"line {i}" for i, line in enumerate(lines, 1) if not line], len(lines), "lines are empty")
    if originals is None:
        if len(lines) != len(entries):
            raise ValueError(
                f"{longer} has {len(lines)} lines and the board {len(entries)} prompts; where they are in another "
                "order, give the prompts that they are of, line by line, as --originals"
            )
        return dict(enumerate(lines))
    own = [line.strip() for line in read_lines(originals)]
    if len(own) != len(lines):
        raise ValueError(f"{originals} has {len(own)} lines and {longer} {len(lines)}; they go together line by line")
    of = dict(zip(reversed(own), reversed(lines), strict=True))  # of a prompt that stands there twice, the first
    missing = [repr(entry.prompt[:60]) for entry in entries if entry.prompt.strip() not in of]
    refuse(originals, missing, len(entries), "prompts of the board are not in it")
    return {place: of[entry.prompt.strip()] for place, entry in enumerate(entries)}


def read_samples(jobs: Path) -> list[Sample]:
    """The videos of a prompts file that `cogvx eval prepare` wrote, or of a part of it.

    Raises: FileNotFoundError; ValueError, naming file and line, for what is no such line.
    """
    found = dict[str, Sample]()
    for number, row in read_json_lines(jobs).items():
        try:
            sample = _sample(row)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{jobs}, line {number} is no line of `cogvx eval prepare`: {quoted(row)} ({error!r:.80})"
            ) from None
        found.setdefault(sample.name, sample)
    if not found:
        raise ValueError(f"{jobs} has no lines; `cogvx eval prepare` writes it")
    return list(found.values())


def _sample(row: Mapping[str, Any]) -> Sample:
    about = row["board"]
    sample = Sample(
        name=row["out"],
        prompt=about["prompt"],
        dimensions=tuple(about["dimensions"]),
        index=about["index"],
        board=about["name"],
        seed=row.get("seed", 0),
        sampled=row["prompt"],
        image=row.get("image"),
    )
    texts = (sample.name, sample.prompt, sample.board, sample.sampled, *sample.dimensions)
    if not all(isinstance(text, str) for text in texts) or not isinstance(sample.index, int):
        raise ValueError("a field is of another type")
    if Path(sample.name).is_absolute() or ".." in Path(sample.name).parts:
        raise ValueError("its video lies outside the folder")
    return sample


def _check_images(board: Board, entries: Sequence[Entry], images: Path | None) -> None:
    """Raises: see `all_samples`."""
    needed = list(dict.fromkeys(entry.image for entry in entries if entry.image is not None))
    if not needed:
        if images is not None:
            raise ValueError(f"{board.name} has no pictures; leave --images out")
        return
    if images is None:
        raise ValueError(f"{board.name} begins with {len(needed)} pictures; give their folder as --images")
    missing = [repr(name) for name in needed if not (images / name).is_file()]
    refuse(images, missing, len(needed), "pictures are not there", FileNotFoundError)
