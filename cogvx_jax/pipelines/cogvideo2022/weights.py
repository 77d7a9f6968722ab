"""Where parameters of CogVideo (2022) lie, and reading them to there. Those of the base lie on the devices once."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util
from jax import ShapeDtypeStruct
from jax.sharding import Mesh

from cogvx_jax import sharding
from cogvx_jax.convert.cogvideo2022_folder import Parts, read_stages
from cogvx_jax.convert.finite import not_finite
from cogvx_jax.models.abstract import Abstract, quantized
from cogvx_jax.models.cogvideo2022.abstract import abstract_network
from cogvx_jax.models.cogvideo2022.configs import CogVideo2022Config
from cogvx_jax.models.cogvideo2022.transformer import of_base
from cogvx_jax.nn.quantized import Kernel
from cogvx_jax.pipelines.weights import bad_block
from cogvx_jax.quantization import COLUMNS, SCALE, Quantization

AXES = ("data", "fsdp", "tensor")  # of a mesh that split something here


def check_axes(mesh: Mesh | None) -> None:
    """Raises ValueError for a mesh with an axis that splits nothing here: its devices would do the same work."""
    for axis, size in {} if mesh is None else dict(mesh.shape).items():
        if size > 1 and axis not in AXES:
            raise ValueError(f"{axis}={size} splits nothing of CogVideo (2022); its axes are {', '.join(AXES)}")


def load_stages(
    parts: Parts, dtype: str, mesh: Mesh | None = None, quantize: Quantization | None = None
) -> dict[str, dict[str, Any]]:
    """The parameters of all stages on their devices, in `dtype`.

    Args:
      quantize: how to quantise them while they are read; a folder that is quantised is read as it is.
    Raises: as `read_stages`; ValueError where a kernel to quantise holds a number that is not finite.
    """
    types: dict[str, Abstract] = {}
    for cfg in parts.stages.values():
        types |= quantized(abstract_network(cfg), quantize or parts.how)

    def put(path: str, shape: tuple[int, ...], kind: np.dtype, part: Callable[..., np.ndarray]) -> Any:
        own = {name: types[name] for name in (path, path + SCALE) if name in types}
        own[path] = own[path]._replace(shape=shape)  # that of extra positions differs between stages
        where, storage = sharding.shardings(own, mesh), None if quantize is None else quantize.storage(path)
        if storage is None:
            return sharding.put(part, shape, kind, where[path], stacked=own[path].stacked)
        made = sharding.put_quantized(part, shape, storage, where[path], where[path + SCALE])
        if (bad := bad_block(made.scale, mesh)) is not None:
            raise not_finite(parts.place, f"{path} of block {bad}, and cannot be quantised", with_loras=False)
        return made

    read = read_stages(parts, dtype, put=put, own=set(COLUMNS) if quantize is not None else set())
    return {stage: _apart(params) for stage, params in read.items()}


def _apart(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with integers and scales of quantised kernels under names of their own."""
    flat: dict[str, Any] = {}
    for path, value in traverse_util.flatten_dict(params, sep="/").items():
        flat |= {path: value.values, path + SCALE: value.scale} if isinstance(value, Kernel) else {path: value}
    return traverse_util.unflatten_dict(flat, sep="/")


def abstract_stages(
    stages: Mapping[str, CogVideo2022Config], dtype: str, mesh: Mesh | None = None, how: Quantization | None = None
) -> dict[str, dict[str, Any]]:
    """The same without their numbers: shapes, types and places. The base's are the same objects in all stages."""
    base: dict[str, ShapeDtypeStruct] = {}
    found = {}
    for stage, cfg in stages.items():
        types, flat = quantized(abstract_network(cfg), how), dict[str, Any]()
        where = sharding.shardings(types, mesh)
        for path, own in types.items():
            made = ShapeDtypeStruct(own.shape, np.dtype(own.dtype or dtype), sharding=where[path])
            flat[path] = base.setdefault(path, made) if of_base(path) else made
        found[stage] = traverse_util.unflatten_dict(flat, sep="/")
    return found
