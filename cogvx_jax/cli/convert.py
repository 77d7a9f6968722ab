"""`cogvx convert`: stores a model as Orbax checkpoints."""

import time
from pathlib import Path
from typing import Annotated

import tyro

from cogvx_jax.cli.options import DType

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.


def convert(
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")],
    target: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DST")],
    /,
    *,
    dtype: DType | None = None,
) -> None:
    """Writes a model as Orbax checkpoints, which restore onto any mesh; DST is then a model like any other.

    It has the numbers in blocks that a device reads without the rest, and a digest of every array.

    Args:
      source: a model as for `generate`.
      target: the folder to write, or its URL, such as gs://bucket/model; it must not exist, or be empty.
      dtype: of the transformer and the text encoder; None keeps every array's own.
    """
    from cogvx_jax.convert import write_orbax
    from cogvx_jax.pipelines.model import resolve

    began = time.monotonic()
    write_orbax(resolve(source), target, dtype)
    size = "" if "://" in target else f"{_gigabytes(Path(target)):.2f} GB "
    print(f"{target}: {size}in {time.monotonic() - began:.1f} s")


def _gigabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9
