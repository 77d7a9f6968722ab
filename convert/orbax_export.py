"""A model, wherever it can be loaded from, to a folder or bucket of Orbax checkpoints; see `convert.orbax`."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from cogvx_jax.configs import Distilled, ModelSpec
from cogvx_jax.convert.checkpoint import load_params
from cogvx_jax.convert.config import write_configs
from cogvx_jax.convert.finite import check_finite
from cogvx_jax.convert.orbax import BLOCK_BYTES, DIGESTS, FORMAT, array_digest, check_target
from cogvx_jax.convert.orbax_writes import orbax_writes
from cogvx_jax.convert.quantized_layout import MARK, quantization_mark, read_quantization
from cogvx_jax.convert.sources import Place, Source, open_source
from cogvx_jax.convert.tables import COMPONENTS
from cogvx_jax.convert.tokenizer_files import copy_tokenizer
from cogvx_jax.storage import RemoteFiles, check_new, new_folder
from cogvx_jax.temporaries import temporary_folder


def write_orbax(source: Place | Source, target: Place, dtype: str | None = None) -> None:
    """Writes a model; the folder appears under its name only when whole. The host holds a component at a time.

    Args:
      source: a folder in the published layout, or one that this function wrote, or the URL of one; or any `Source`.
      target: a folder that does not exist, or is empty, or the URL of one. What goes below a URL is written to the
        system's temporary folder first, all of it; its digests, without which it is no model, arrive there last.
      dtype: of the transformer and the text encoder; None keeps every array's own.
    Raises: FileExistsError if `target` holds something; ConversionError if `source` is not a whole model; ValueError
      for a URL that tensorstore does not read.
    """
    check_target(target)
    how = read_quantization(source)

    def read(spec: ModelSpec, component: str) -> Mapping[str, Any]:
        return load_params(source, spec, component, None if component == "vae" else dtype)

    with model_to_write(source, target, last=DIGESTS) as (spec, partial):
        write_arrays(partial, functools.partial(read, spec), target)
        if how is not None:
            (partial / MARK).write_text(quantization_mark(how, {}))


@contextlib.contextmanager
def model_to_write(
    source: Place | Source, target: str | Path, *, last: str, distilled: Distilled | None = None
) -> Iterator[tuple[ModelSpec, Path]]:
    """The spec of `source`, and a folder to write its weights to, which has its configurations and its tokenizer.

    The folder gets the name `target` when the block ends well; or its files go below that URL, `last` after all others.
    With a LoRA that is added to it, the model is for what that is `distilled` for.

    Raises: FileExistsError if `target` holds something.
    """
    if isinstance(target, str) and "://" in target:
        place = RemoteFiles(target)
        place.check_empty()
        with temporary_folder() as folder:
            with model_to_write(source, folder / place.name, last=last, distilled=distilled) as made:
                yield made
            place.upload(folder / place.name, last=last)
        return
    check_new(target)
    opened = open_source(source)
    spec = opened.spec().distilled(distilled)
    with new_folder(target) as partial:
        write_configs(spec, partial)
        copy_tokenizer(opened.tokenizer, partial / "tokenizer")
        yield spec, partial


def write_arrays(partial: Path, read: Callable[[str], Mapping[str, Any]], target: str | Path) -> None:
    """Writes each component's parameters, of `read(component)`, one after the other, and the digests of all arrays.

    Raises: OSError, which names `target`; ValueError for numbers that are not finite.
    """
    listed: dict[str, Any] = {}
    for component in COMPONENTS:
        params = read(component)
        flat = traverse_util.flatten_dict(params, sep="/")
        for path, array in flat.items():
            check_finite(f"{component}/{path}", array)
        listed |= {f"{component}/{path}": _describe(array) for path, array in flat.items()}
        split = {path: _blocks(array) for path, array in flat.items()}
        with (
            orbax_writes(partial, target) as held,
            ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False)) as checkpointer,
        ):
            args = ocp.args.PyTreeSave(params, save_args=traverse_util.unflatten_dict(split, sep="/"))
            checkpointer.save(held / component / "orbax", args=args)
    manifest = {"format": FORMAT, "arrays": listed}
    (partial / DIGESTS).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def _blocks(array: np.ndarray) -> ocp.SaveArgs:
    # Of more than two axes, the first mostly counts layers, which are read one at a time.
    return ocp.SaveArgs(chunk_byte_size=BLOCK_BYTES, shard_axes=(0,) if array.ndim > 2 else ())


def _describe(array: np.ndarray) -> dict[str, Any]:
    return {"shape": array.shape, "dtype": str(array.dtype), "sha256": array_digest(iter([array]))}
