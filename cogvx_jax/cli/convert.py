"""The verbs of `cogvx` that store models: convert and verify."""

import time
from pathlib import Path
from typing import Annotated, Literal

import tyro

# What jax and flax need seconds to import comes inside, after the arguments are known to be sound.


def convert(
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")],
    target: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DST")],
    /,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
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


def verify(folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")], /) -> None:
    """Reads all of a model that `cogvx convert` wrote and compares every array with its digest.

    Args:
      folder: of the model, or its URL.
    """
    from cogvx_jax.convert import verify as check
    from cogvx_jax.pipelines.model import resolve

    began = time.monotonic()
    check(resolve(folder))
    print(f"{folder}: every array is what was written; {time.monotonic() - began:.1f} s")


def _gigabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9
