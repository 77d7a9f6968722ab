"""What a row of the table of `cogvx inspect` is, a kind of file or folder, and how a place is told by such rows."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from cogvx_jax.configs import ModelSpec
from cogvx_jax.convert.commands import command, given_words, model_word, path_word, replacements
from cogvx_jax.convert.containers import READERS
from cogvx_jax.convert.loose import Place
from cogvx_jax.given import NOTHING, Given
from cogvx_jax.storage import check_place, open_files, parent_and_name

Facts = dict[str, str | list[str]]
UP = 3  # folders above a file of which it may be a part


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked about.

    place: a path or a URL.
    name: how a command calls it, of a model or a LoRA that ships with this program; None is by its place.
    given: as for a model, where the files do not tell it.
    models: further models that a LoRA may be for, by the names that commands call them.
    """

    place: Place
    name: str | None = None
    given: Given = NOTHING
    models: Mapping[str, ModelSpec] = dataclasses.field(default_factory=dict)

    @property
    def is_folder(self) -> bool:
        return open_files(self.place).is_folder()

    def at(self, place: Place) -> "Asked":
        return dataclasses.replace(self, place=place, name=None)

    @property
    def model(self) -> str:
        """How a command calls it as a model."""
        return self.name or model_word(self.place)

    def as_model(self) -> list[str]:
        """The options of a command that use it as a model, with what is given."""
        return ["--model", self.model, *given_words(self.given)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileKind:
    """A kind of file or folder.

    name: with its article, for messages.
    fits: whether a place is of this kind. Raises: ValueError for one that is, and is damaged.
    tell: facts by name; those under "use" are commands. Raises: as `fits`.
    is_model: whether it is of a model, of which more may be said.
    encloses: whether whatever lies in such a folder is a part of it.
    """

    name: str
    fits: Callable[[Asked], bool]
    tell: Callable[[Asked], Facts]
    is_model: bool = False
    encloses: bool = True


class NothingKnown(ValueError):
    """Of a place that is of no known kind by itself; it may be a part of something."""


def tell(asked: Asked, kinds: Sequence[FileKind]) -> Facts:
    """What `cogvx inspect` prints, by name; under "use" are commands, and under "replace" what their `WORDS` mean.

    Args:
      kinds: the first that fits counts.
    Raises: FileNotFoundError; ValueError, one sentence, for what is damaged or of no known kind.
    """
    place = asked.place
    check_place(place)
    is_folder, (parent, name) = asked.is_folder, parent_and_name(place)
    if not is_folder and not open_files(parent).exists(name):
        raise FileNotFoundError(f"there is no file or folder {place}")
    kind = next((kind for kind in kinds if kind.fits(asked)), None)
    if kind is None or not kind.is_model:
        check_nothing_said(asked)
    try:
        if kind is None:
            raise NothingKnown(_unknown(asked))
        facts = kind.tell(asked)
    except NothingKnown:
        part = _part_of(asked, kinds)
        if part is None:
            raise
        facts = part
    use = list(facts.pop("use", []))
    found: Facts = {"folder" if is_folder else "file": str(place), **facts}
    if use:
        found["use"] = use
    if words := replacements(use):
        found["replace"] = words
    return found


def check_nothing_said(asked: Asked) -> None:
    """Raises ValueError, one sentence, where something is said of a model and the place is none."""
    if asked.given:
        raise ValueError(
            f"{asked.given.said()[0]} tells about a CogVideoX model, and {asked.place} is none; leave it out"
        )


def _unknown(asked: Asked) -> str:
    if asked.is_folder:
        names = open_files(asked.place).names()
        there = ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])])
        return f"{asked.place} is a folder of no known kind; there is {there or 'nothing'}"
    known = ", ".join(f"{reader.name} ({', '.join(reader.suffixes)})" for reader in READERS)
    return f"{asked.place} is a file of no known kind; files of weights are {known}"


def _part_of(asked: Asked, kinds: Sequence[FileKind]) -> Facts | None:
    """Of what lies in a folder of a known kind, such as a model's scheduler; None where that is not so."""
    for above in folders_above(asked.place):
        kind = next((kind for kind in kinds if _fits(kind, asked.at(above))), None)
        if kind is not None and kind.encloses:
            return {"holds": f"a part of {above}, {kind.name}", "use": [command("inspect", path_word(above))]}
    return None


def _fits(kind: FileKind, asked: Asked) -> bool:
    with contextlib.suppress(ValueError, OSError):  # of a damaged one, or of folders that are no user's own
        return kind.fits(asked)
    return False


def folders_above(place: Place) -> Iterator[Path]:
    """The folders that a path lies in as it is written, the next one first; none of a URL."""
    if "://" not in str(place):
        yield from list(Path(place).parents)[:UP]
