"""Parameters of CogVideo (2022) in memory as the parts of a folder, which `write_shared` then writes."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cogvx_jax.convert.cogvideo2022 import image_tokenizer_parameters, network_parameters
from cogvx_jax.convert.cogvideo2022_folder import Parts
from cogvx_jax.convert.cogvideo2022_sizes import Beside
from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.convert.export import tensors_of
from cogvx_jax.convert.tables import Parameter
from cogvx_jax.convert.tensors import Computed, Tensors
from cogvx_jax.models.cogvideo2022.configs import CogVideo2022Config
from cogvx_jax.models.cogvideo2022.transformer import of_base
from cogvx_jax.storage import Files, open_files

Flat = Mapping[str, Any]  # arrays by path


def made_parts(
    place: str | Path,
    stages: Mapping[str, tuple[CogVideo2022Config, Flat]],
    images: Flat,
    beside: Beside,
    dtype: str,
) -> Parts:
    """A whole model in memory.

    Args:
      place: a folder with the text tokenizer and the table of clusters, which are copied.
      stages: sizes and parameters, whose base is that of the first.
      dtype: of the weights as they are written.
    """
    files = open_files(place)
    base, *_ = (flat for _, flat in stages.values())
    shared = {path: x for path, x in base.items() if of_base(path)}
    return Parts(
        place=place,
        stages={stage: cfg for stage, (cfg, _) in stages.items()},
        tensors={
            stage: _tensors(files, network_parameters(cfg), dict(flat) | shared, stage, dtype)
            for stage, (cfg, flat) in stages.items()
        },
        images=_tensors(files, image_tokenizer_parameters(beside.images), images, "images", dtype),
        image_sizes=beside.images,
        shared=True,
        beside=beside,
    )


def with_stage(parts: Parts, cfg: CogVideo2022Config, flat: Flat, *, base: bool) -> Parts:
    """The parts of a folder with a stage in place of its own, in the type of the folder's words.

    Args:
      base: the stage's base is another than that of the folder, too. Then the other stages are left out.
    """
    first = next(iter(parts.tensors.values()))
    dtype, files = str(first["transformer.word_embeddings.weight"].dtype), open_files(parts.place)
    wanted = network_parameters(cfg, base=base)
    made = _tensors(files, wanted, {p.path: flat[p.path] for p in wanted}, cfg.stage, dtype)
    if base:
        return dataclasses.replace(parts, stages={cfg.stage: cfg}, tensors={cfg.stage: made}, shared=True)
    theirs = {key for p in network_parameters(cfg, channel=False) for key in p.keys}
    own = first.of({key: first[key] for key in theirs} | dict(made))
    return dataclasses.replace(
        parts, stages=dict(parts.stages) | {cfg.stage: cfg}, tensors=dict(parts.tensors) | {cfg.stage: own}
    )


def _tensors(files: Files, parameters: Sequence[Parameter], flat: Flat, where: str, dtype: str) -> Tensors:
    problems: list[str] = []
    tensors = tensors_of(parameters, flat, where, dtype, problems)
    if problems:
        raise ConversionError(f"these are not the parameters of {where} of a CogVideo (2022)", problems)
    entries = {t.key: Computed(t.shape, np.dtype(t.dtype), (), t.make) for t in tensors}
    return Tensors(files, entries, f"{where} in memory")
