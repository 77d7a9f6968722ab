"""A model, wherever it can be loaded from, to a folder or bucket of Orbax checkpoints; see `convert.orbax`."""

import json
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from cogvx_jax.convert.checkpoint import load_params
from cogvx_jax.convert.config import write_configs
from cogvx_jax.convert.orbax import BLOCK_BYTES, DIGESTS, FORMAT, array_digest
from cogvx_jax.convert.orbax_writes import orbax_writes
from cogvx_jax.convert.sources import Place, Source, copy_tokenizer, open_source
from cogvx_jax.convert.tables import COMPONENTS
from cogvx_jax.storage import RemoteFiles, check_new, new_folder
from cogvx_jax.temporaries import temporary_folder


def write_orbax(source: Place | Source, target: Place, dtype: str | None = None) -> None:
    """Writes a model; the folder appears under its name only when whole. The host holds a component at a time.

    Args:
      source: a folder in the published layout, or one that this function wrote, or the URL of one; or any `Source`.
      target: a folder that does not exist, or is empty, or the URL of one. What goes below a URL is written to the
        system's temporary folder first, all of it; its digests, without which it is no model, arrive there last.
      dtype: of the transformer and the text encoder; None keeps every array's own.
    Raises: FileExistsError if `target` holds something; ConversionError if `source` is not a whole model.
    """
    if isinstance(target, str) and "://" in target:
        place = RemoteFiles(target)
        place.check_empty()
        with temporary_folder() as folder:
            write_orbax(source, folder / place.name, dtype)
            place.upload(folder / place.name, last=DIGESTS)
        return
    check_new(target)
    opened = open_source(source)
    spec = opened.spec()
    with new_folder(target) as partial:
        write_configs(spec, partial)
        copy_tokenizer(opened.tokenizer, partial / "tokenizer")
        listed: dict[str, Any] = {}
        for component in COMPONENTS:
            params = load_params(opened, spec, component, None if component == "vae" else dtype)
            flat = traverse_util.flatten_dict(params, sep="/")
            listed |= {f"{component}/{path}": _describe(array) for path, array in flat.items()}
            split = {path: _blocks(array) for path, array in flat.items()}
            with (
                orbax_writes(target),
                ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False)) as checkpointer,
            ):
                args = ocp.args.PyTreeSave(params, save_args=traverse_util.unflatten_dict(split, sep="/"))
                checkpointer.save(partial / component / "orbax", args=args)
        manifest = {"format": FORMAT, "arrays": listed}
        (partial / DIGESTS).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def _blocks(array: np.ndarray) -> ocp.SaveArgs:
    # Of more than two axes, the first mostly counts layers, which are read one at a time.
    return ocp.SaveArgs(chunk_byte_size=BLOCK_BYTES, shard_axes=(0,) if array.ndim > 2 else ())


def _describe(array: np.ndarray) -> dict[str, Any]:
    return {"shape": array.shape, "dtype": str(array.dtype), "sha256": array_digest(iter([array]))}
