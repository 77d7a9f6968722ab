"""`cogvx convert`: stores a model in another layout."""

import time
from typing import Annotated, Literal

import tyro

from cogvx_jax.cli.families import family_of
from cogvx_jax.cli.options import DType, GivenFlags, ModelFlags, size_words

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.


def convert(
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")],
    target: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DST")],
    /,
    *,
    to: Literal["orbax", "diffusers", "sat", "single"] = "orbax",
    dtype: DType | None = None,
    parts: tyro.conf.UseAppendAction[tuple[Literal["transformer", "vae", "text_encoder"], ...]] = (),
    given: ModelFlags = GivenFlags(),  # noqa: B008
) -> None:
    """Writes a model in another layout; DST is then a model like any other.

    As Orbax checkpoints, it restores onto any mesh: it has the numbers in blocks that a device reads without the rest,
    and a digest of every array.

    Args:
      source: a model as for `generate`, or other makers' files, which docs/files.md lists.
      target: the folder to write, which must not exist, or be empty; of Orbax checkpoints also its URL, such as
        gs://bucket/model.
      to: Orbax checkpoints; the published layout, which diffusers opens; SAT's, with .pt files; or a safetensors file
        for each part.
      dtype: of the transformer and the text encoder; None keeps every array's own.
      parts: what to write, the option once for each part; without it all of them.
    """
    from cogvx_jax.convert.sources import open_source
    from cogvx_jax.convert.tables import COMPONENTS
    from cogvx_jax.convert.targets import write_model
    from cogvx_jax.pipelines.model import report_inferred, resolve
    from cogvx_jax.pipelines.tokenizer import read_tokenizer

    began, about = time.monotonic(), given.checked()
    if (family := family_of(source)) is not None:
        return family.convert(source, target, to, about, {"dtype": dtype, "parts": parts})
    for flag, part in (("tokenizer", "text_encoder"), ("text_encoder", "text_encoder"), ("vae", "vae")):
        if getattr(about, flag) is not None and part not in (parts or COMPONENTS):
            option, name = flag.replace("_", "-"), part.replace("_", " ")
            raise ValueError(f"--{option} goes with the {name}, which --parts leaves out; leave one of them out")
    model = open_source(resolve(source), about)
    report_inferred(model)
    if about.tokenizer is not None:
        read_tokenizer(about.tokenizer, model.spec())  # before the weights, with which it may not fit
    write_model(model, target, to, dtype, parts or COMPONENTS)
    print(f"{target}: {size_words(target)}in {time.monotonic() - began:.1f} s")
