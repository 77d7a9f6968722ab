"""CogVideo (2022) with kernels of integers, as a folder like `write_shared`'s; see `convert.quantized_layout`."""

from pathlib import Path

import numpy as np

from cogvx_jax.convert.cogvideo2022 import network_parameters
from cogvx_jax.convert.cogvideo2022_folder import BASE, Parts, compare_bases, published, write_beside
from cogvx_jax.convert.export import METADATA
from cogvx_jax.convert.quantize import check_scales, leaf_tensors, quantize_on_host
from cogvx_jax.convert.quantized_layout import MARK, quantization_mark
from cogvx_jax.convert.safetensors import write_file
from cogvx_jax.models.cogvideo2022.configs import CogVideo2022Config
from cogvx_jax.models.cogvideo2022.transformer import of_base
from cogvx_jax.quantization import SCALE, Quantization
from cogvx_jax.storage import new_folder


def write_quantized_parts(parts: Parts, folder: str | Path, how: Quantization) -> None:
    """Writes our folder, quantised; it appears under its name only when whole.

    The host holds the integers of the base, or of a stage's own channel, at a time. The rest keeps its type.

    Raises: ValueError for a folder that is quantised already, a way that it cannot have, or numbers that are not
      finite; FileExistsError; as `compare_bases`.
    """
    check_quantization(parts, how)
    compare_bases(parts)
    with new_folder(folder) as target:
        first = next(iter(parts.stages))
        _write(parts, first, how, target / BASE, base=True)
        for stage in parts.stages:
            _write(parts, stage, how, target / f"{stage}.safetensors", base=False)
        (target / MARK).write_text(quantization_mark(how, {}))
        write_beside(parts, target)


def check_quantization(parts: Parts, how: Quantization | None) -> None:
    """Raises ValueError where the transformers cannot be quantised so."""
    if how is None:
        return
    if parts.how is not None:
        raise ValueError(f"{parts.place} is quantised already, to {parts.how.name}: give the original")
    if how.tokens:
        raise ValueError(f"CogVideo (2022) is quantised to int8 or int4; {how.name} is for activations, too")
    for cfg in parts.stages.values():
        check_groups(cfg, how)


def check_groups(cfg: CogVideo2022Config, how: Quantization) -> None:
    """Raises ValueError where groups do not divide a kernel's inputs."""
    for features in (cfg.width, cfg.mlp):
        how.products.groups(features)


def _write(parts: Parts, stage: str, how: Quantization, file: Path, *, base: bool) -> None:
    source, leaves = published(parts, stage), dict[str, np.ndarray]()
    for path in (path for path in source if of_base(path) == base):
        shape, kind, storage = source.shape(path), source.dtype(path), how.storage(path)
        if storage is None:
            leaves[path] = source.read(path, kind, tuple(slice(n) for n in shape))
        else:

            def read(index: tuple[slice, ...], path: str = path) -> np.ndarray:
                return source.read(path, np.dtype("float32"), index)

            leaves[path], leaves[path + SCALE] = quantize_on_host(read, shape, storage)
            check_scales(parts.place, path, leaves[path + SCALE])
        source.release()
    parameters = network_parameters(parts.stages[stage], base=base, channel=not base, how=how)
    write_file(file, [tensor for p in parameters for tensor in leaf_tensors(p, leaves[p.path])], METADATA)
