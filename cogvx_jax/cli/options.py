"""What several verbs share: kinds of options, and how their text is read."""

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from cogvx_jax.configs import DType as DType  # the verbs take it from here
from cogvx_jax.diffusion.samplers import SAMPLERS

if TYPE_CHECKING:
    SamplerName = str
else:
    SamplerName = Literal[tuple(SAMPLERS)]
Size = Annotated[str | None, tyro.conf.arg(metavar="HxW")]
MeshText = Annotated[str | None, tyro.conf.arg(metavar="AXIS=N,...")]
FolderText = Annotated[str, tyro.conf.arg(metavar="PATH|URL")]  # a folder, or one in a bucket


def parse_size(size: str | None) -> tuple[int | None, int | None]:
    """Height and width of "480x720"."""
    if size is None:
        return None, None
    parts = size.lower().split("x")
    if len(parts) != 2 or not all(p.isdecimal() for p in parts):
        raise ValueError(f"size must be HEIGHTxWIDTH in pixels, such as 480x720, got {size!r}")
    return int(parts[0]), int(parts[1])


def parse_lora(text: str) -> tuple[str, float]:
    """Path and weight of "PATH:WEIGHT" or "PATH"; a colon without a number after it belongs to the path."""
    path, _, weight = text.rpartition(":")
    try:
        return (path, float(weight)) if path else (text, 1.0)
    except ValueError:
        return text, 1.0


def report(line: str) -> None:
    """Prints a line beside what the command is asked for."""
    print(f"cogvx: {line}", file=sys.stderr, flush=True)
