"""`cogvx inspect`: what a file is, and how to use it."""

import os
from pathlib import Path
from typing import Annotated

import tyro

from cogvx_jax.cli.options import GivenFlags, ModelFlags, print_facts
from cogvx_jax.presets import SHIPPED, SHIPPED_2022

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.


def inspect(
    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")],
    /,
    *,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
    given: ModelFlags = GivenFlags(),  # noqa: B008
) -> None:
    """Prints what a file or folder is, whoever made it: format, naming, quantisation, model, and commands that use it.

    Args:
      file: a file or folder of weights, of a model, a part of one or a LoRA; or what a verb of this program wrote, such
        as a run. "tiny", "tiny-inp" and "tiny2022" are models that ship with this program, "tiny-fast" a LoRA.
      as_json: print JSON.
    """
    if not file:
        raise ValueError("the name of the file or folder is empty")
    import jax

    jax.config.update("jax_platforms", "cpu")  # nothing is computed, so an accelerator that does not work is no matter
    from cogvx_jax.cli.cogvideo2022_files import KINDS
    from cogvx_jax.cli.own_files import OWN
    from cogvx_jax.convert.cogvideo2022_folder import place_of
    from cogvx_jax.convert.file_kinds import Asked
    from cogvx_jax.convert.inspection import inspect as inspect_place
    from cogvx_jax.convert.lora_file import SHIPPED as LORAS
    from cogvx_jax.convert.lora_file import shipped
    from cogvx_jax.pipelines.model import load_spec, resolve

    ships = file in (*SHIPPED, *SHIPPED_2022, *LORAS) and not os.path.lexists(file)
    if ships:
        place = place_of(file) if file in SHIPPED_2022 else Path(shipped(file)) if file in LORAS else resolve(file)
    else:
        place = file if "://" in file else Path(file)
    models = {name: load_spec(name) for name in SHIPPED}
    asked = Asked(place=place, name=file if ships else None, given=given.checked(), models=models)
    print_facts(inspect_place(asked, (*OWN, *KINDS)), as_json)
