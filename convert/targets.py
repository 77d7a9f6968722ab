"""What `cogvx convert` can write: a row of `TARGETS` for each layout. Tensors go one at a time from file to file.

Whatever is written opens again as the same model: its configurations are written, too, where no file of the layout
tells them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from cogvx_jax.configs import ModelSpec
from cogvx_jax.convert.checkpoint import published_tensors
from cogvx_jax.convert.config import write_configs
from cogvx_jax.convert.containers import STEMS
from cogvx_jax.convert.export import METADATA, write_weights
from cogvx_jax.convert.orbax_export import write_orbax
from cogvx_jax.convert.safetensors import Tensor, write_file
from cogvx_jax.convert.sat import PREFIXES, write_sat
from cogvx_jax.convert.sat_folder import LATEST, STATES
from cogvx_jax.convert.sources import Place, Source
from cogvx_jax.convert.tables import COMPONENTS
from cogvx_jax.convert.tokenizer_files import check_tokenizer, copy_tokenizer
from cogvx_jax.convert.torch_writer import write_torch
from cogvx_jax.storage import check_new, new_folder

# (folder, spec, component, its published tensors)
Write = Callable[[Path, ModelSpec, str, list[Tensor]], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A layout to write.

    write: writes one component.
    tokenizer: the folder of the tokenizer's files.
    finish: puts the configurations, which lie as published, where this layout has them.
    """

    write: Write
    tokenizer: str = "tokenizer"
    finish: Callable[[Path], None] = lambda folder: None


def write_model(
    source: Source,
    target: Place,
    layout: str,
    dtype: str | None = None,
    parts: Sequence[str] = COMPONENTS,
) -> None:
    """Writes a model; the folder appears under its name only when whole.

    Args:
      target: a folder that does not exist, or is empty; for "orbax" also the URL of one.
      layout: "orbax", or one of `TARGETS`.
      dtype: of the transformer and the text encoder; None keeps every tensor's own, to the bit.
      parts: components to write.
    Raises: FileExistsError; FileNotFoundError for a part that the source lacks; ConversionError if the source is not
      a whole model; ValueError where the layout cannot hold it, or for a dtype that no part takes.
    """
    if dtype is not None and set(parts) == {"vae"}:
        raise ValueError("dtype is of the transformer and the text encoder, and only the vae is written; leave it out")
    if layout == "orbax":
        if set(parts) != set(COMPONENTS):
            raise ValueError("orbax holds whole models; choose another layout for some parts of one")
        write_orbax(source, target, dtype)
        return
    if isinstance(target, str) and "://" in target:
        raise ValueError(
            f"{layout} is written to a folder of this machine, not to {target}; copy it there, or use orbax"
        )
    check_new(target)
    spec, row = source.spec(), TARGETS[layout]
    tokenizer = source.tokenizer if "text_encoder" in parts else None
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    tensors = {
        component: published_tensors(source, spec, component, None if component == "vae" else dtype)
        for component in parts
    }
    with new_folder(target) as partial:
        write_configs(spec, partial)
        row.finish(partial)
        for component in parts:
            row.write(partial, spec, component, tensors[component])
        if tokenizer is not None:
            copy_tokenizer(tokenizer, partial / row.tokenizer)


def _write_published(folder: Path, spec: ModelSpec, component: str, tensors: list[Tensor]) -> None:
    write_weights(folder / component, STEMS[component], tensors)


def _write_single(folder: Path, spec: ModelSpec, component: str, tensors: list[Tensor]) -> None:
    write_file(folder / f"{component}.safetensors", tensors, METADATA)


T5_FOLDER, SAT_TAG = "t5-v1_1-xxl", "1"


def _write_sat(folder: Path, spec: ModelSpec, component: str, tensors: list[Tensor]) -> None:
    if component == "text_encoder":
        write_weights(folder / T5_FOLDER, STEMS[component], tensors)
        return
    theirs = write_sat(tensors, component, len(spec.vae.channels))
    if component == "vae":
        write_torch(folder / "vae" / "3d-vae.pt", theirs, "state_dict")
        return
    inner = folder / "transformer" / SAT_TAG
    inner.mkdir()
    named = [dataclasses.replace(tensor, key=PREFIXES["transformer"] + tensor.key) for tensor in theirs]
    write_torch(inner / STATES, named, "module")
    (folder / "transformer" / LATEST).write_text(SAT_TAG)


def _finish_single(folder: Path) -> None:
    (folder / "model_index.json").unlink()  # which would make it one of the published layout


def _finish_sat(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    (folder / "text_encoder").rename(folder / T5_FOLDER)


TARGETS = {
    "diffusers": Target(write=_write_published),
    "sat": Target(write=_write_sat, tokenizer=T5_FOLDER, finish=_finish_sat),
    "single": Target(write=_write_single, finish=_finish_single),
}
