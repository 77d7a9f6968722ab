"""What a model can be loaded from: a row of `LAYOUTS` for each way in which its files may lie.

A source gives the model's spec, its components' tensors under their published names, and where its tokenizer is.
Whatever reads a model, in whole or in part, asks here and nowhere else.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cogvx_jax.configs import ModelSpec
from cogvx_jax.convert.config import read_configs
from cogvx_jax.convert.containers import Checkpoint
from cogvx_jax.convert.tensors import Tensors
from cogvx_jax.storage import below, open_files

Place = str | Path  # a folder or file, or the URL of one


class Source(Protocol):
    """A model in files; opening it reads nothing yet."""

    @property
    def place(self) -> Place: ...

    @property
    def tokenizer(self) -> Place:
        """The folder of its files."""

    def spec(self) -> ModelSpec:
        """Raises: ConversionError listing everything that is missing or not supported."""

    def tensors(self, component: str) -> Tensors:
        """By published names. Raises: ConversionError; ValueError, one sentence."""

    def inferred(self) -> list[str]:
        """A line for everything in the spec that no file says."""


@dataclasses.dataclass(frozen=True)
class PublishedFolder:
    """`Source` in the layout of diffusers, or of `cogvx convert`, whose configurations lie in the same places."""

    place: Place

    @property
    def tokenizer(self) -> Place:
        return below(self.place, "tokenizer")

    def spec(self) -> ModelSpec:
        return read_configs(self.place)

    def tensors(self, component: str) -> Tensors:
        return Checkpoint(below(self.place, component))

    def inferred(self) -> list[str]:
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """A way in which the files of a model may lie.

    name: for messages.
    fits: whether a place is of this layout.
    open: the source there.
    """

    name: str
    fits: Callable[[Place], bool]
    open: Callable[[Place], Source]


LAYOUTS = (
    Layout(
        name="the published layout",
        fits=lambda place: open_files(place).exists("model_index.json"),
        open=PublishedFolder,
    ),
)


def find_layout(place: Place) -> Layout | None:
    """The row of `LAYOUTS` that a place is of."""
    return next((layout for layout in LAYOUTS if layout.fits(place)), None)


def open_source(place: "Place | Source") -> Source:
    """The model in a place; of no known layout, it is taken for the published one, whose errors say what is missing."""
    if not isinstance(place, str | Path):
        return place
    return (find_layout(place) or LAYOUTS[0]).open(place)


def read_spec(place: "Place | Source") -> ModelSpec:
    """The spec of the model in a place, with float32 activations; see `Source.spec`."""
    return open_source(place).spec()
