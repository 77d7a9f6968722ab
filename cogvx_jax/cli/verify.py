"""`cogvx verify`: compares a stored model with its digests."""

import time
from typing import Annotated

import tyro

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.


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
