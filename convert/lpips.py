"""The weights of LPIPS from a file in the names of the package `lpips`, which writes it:

python -c "import lpips, safetensors.torch as s; s.save_model(lpips.LPIPS(net='vgg'), 'lpips_vgg.safetensors')"
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from cogvx_jax.convert.checkpoint import compare
from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.convert.safetensors import read_header
from cogvx_jax.convert.tables import CONV2D, Change, Row, resolve
from cogvx_jax.convert.tensors import is_floating, unwarned
from cogvx_jax.metrics.lpips import DEPTHS, DEVIATION, LPIPS, MEAN
from cogvx_jax.storage import NOTHING, LocalFiles, check_place, kind_of

HEAD = Change("head", lambda x: x[0, :, 0, 0], lambda x: x[None, :, None, None])  # (1, C, 1, 1) -> (C,)
COLOURS = {"scaling_layer.shift": MEAN, "scaling_layer.scale": DEVIATION}  # constants of the graph


def _table() -> tuple[Row, ...]:
    rows: list[Row] = []
    place = 0  # of a layer in VGG16, where ReLU and pooling count, too
    for stage, depth in enumerate(DEPTHS):
        for i in range(depth):
            theirs, ours = f"net.slice{stage + 1}.{place}", f"conv_{stage}_{i}"
            rows += [Row(f"{theirs}.weight", f"{ours}/kernel", CONV2D), Row(f"{theirs}.bias", f"{ours}/bias")]
            place += 2
        rows.append(Row(f"lin{stage}.model.1.weight", f"weight_{stage}", HEAD))
        place += 1
    return tuple(rows)


TABLE = _table()


def read_lpips(path: str | Path) -> tuple[LPIPS, dict[str, Any]]:
    """The network that a file holds and its float32 parameters.

    Raises: FileNotFoundError; ValueError for a file that cannot be read; ConversionError listing every missing,
      spare or misshapen tensor.
    """
    path = Path(path)
    if kind_of(path) == NOTHING:
        raise FileNotFoundError(f"there is no file {path}; it is written by the command in cogvx_jax/convert/lpips.py")
    check_place(path)
    files = LocalFiles(path.parent)
    try:
        found = read_header(files, path.name)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as weights of LPIPS: {error}") from None

    def read(key: str) -> np.ndarray:
        stored = found[key]
        with unwarned():
            return stored.read(files).astype(np.float32)

    keys = [f"lin{stage}.model.1.weight" for stage in range(len(DEPTHS))]
    missing = [f"missing: {key} (1, C, 1, 1)" for key in keys if key not in found or len(found[key].shape) != 4]
    if missing:
        raise ConversionError(f"{path} does not hold LPIPS with VGG16", missing)
    network = LPIPS(tuple(found[key].shape[1] for key in keys))
    picture = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    shapes = nn.unbox(jax.eval_shape(lambda x: network.init(jax.random.key(0), x, x), picture))["params"]
    flat = traverse_util.flatten_dict(shapes, sep="/")
    parameters = resolve(TABLE, {name: leaf.shape for name, leaf in flat.items()})
    problems = compare(parameters, {key: stored for key, stored in found.items() if key not in COLOURS}, {})
    problems += [f"of another type: {key} is {found[key].dtype}" for key in found if not is_floating(found[key].dtype)]
    for key, constant in COLOURS.items():
        if key in found and not np.allclose(read(key).reshape(-1), constant, rtol=0, atol=1e-6):
            problems.append(f"{key} is {read(key).reshape(-1)}, not {constant}")
    if problems:
        raise ConversionError(f"{path} does not hold LPIPS with VGG16", problems)
    params = {p.path: jax.device_put(np.array(p.change.read(read(p.keys[0])))) for p in parameters}
    return network, traverse_util.unflatten_dict(params, sep="/")
