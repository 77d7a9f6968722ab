"""`cogvx inspect`: what a file is, and how to use it."""

from pathlib import Path
from typing import Annotated

import tyro

from cogvx_jax.cli.options import GivenFlags, ModelFlags, print_facts

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.


def inspect(
    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")],
    /,
    *,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
    given: ModelFlags = GivenFlags(),  # noqa: B008
) -> None:
    """Prints what a file of weights is, whoever made it: its format, naming, quantisation, model, and how to use it.

    Args:
      file: a file or folder of weights, of a model, a part of one or a LoRA.
      as_json: print JSON.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")  # nothing is computed, so an accelerator that does not work is no matter
    from cogvx_jax.convert.inspection import inspect as inspect_place

    print_facts(inspect_place(file if "://" in file else Path(file), given.checked()), as_json)
