"""Weights of CogVideo (2022) that are drawn from the names of its tensors, as for the recorded arrays."""

import zlib

import numpy as np
from flax import traverse_util

from cogvx_jax.convert.cogvideo2022 import (
    image_tokenizer_parameters,
    joined_thirds,
    network_parameters,
    split_thirds,
)
from cogvx_jax.convert.safetensors import Tensor
from cogvx_jax.convert.tensors import Tensors
from cogvx_jax.models.cogvideo2022.configs import CogVideo2022Config, ImageTokenizerConfig, SuperResolutionConfig

SIZES = dict(layers=2, heads=2, head_dim=16, vocab=20_100, start_of_image=20_090)
STAGES = {
    "sequential": CogVideo2022Config(**SIZES),
    "interpolation": CogVideo2022Config(stage="interpolation", **SIZES),
    "four_layers": CogVideo2022Config(stage="interpolation", **SIZES | {"layers": 4}),
    "super_resolution": SuperResolutionConfig(**SIZES),
}


def number_of(name, shape, *, fan_in=False):
    """A tensor's numbers, by the recipe of `golden/cogvideo2022.md`."""
    drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if "embed" in name or "attn_distribution" in name:
        return np.float32(drawn)
    if name.endswith("bias"):
        return np.float32(0.05 * drawn)
    if len(shape) == 1:
        return np.float32(1 + 0.1 * drawn)
    return np.float32(drawn / np.sqrt(np.prod(shape[1:]) if fan_in else shape[-1]))


def sat_tensors(cfg):
    """A stage's tensors under SAT's names."""
    parts = [
        Tensor(key, p.their_shape, np.dtype("float32"), lambda: None) for p in network_parameters(cfg) for key in p.keys
    ]
    return [Tensor.of(t.key, number_of(t.key, t.shape)) for t in joined_thirds(parts)]


def network_params(cfg):
    """The same as parameters of ours, read through the tables."""
    whole = {t.key: _InMemory(t.make()) for t in sat_tensors(cfg)}
    tensors = split_thirds(Tensors(None, whole, "drawn"))
    return _params(network_parameters(cfg), lambda key: tensors[key].array)


def image_tokenizer_params(cfg: ImageTokenizerConfig):
    parameters = image_tokenizer_parameters(cfg)
    shapes = {key: p.their_shape for p in parameters for key in p.keys}
    return _params(parameters, lambda key: number_of(key, shapes[key], fan_in=True))


def _params(parameters, read):
    flat = {}
    for p in parameters:
        arrays = [p.change.read(read(key)) for key in p.keys]
        flat[p.path] = np.stack(arrays) if p.stacked else arrays[0]
    return traverse_util.unflatten_dict(flat, sep="/")


class _InMemory:
    """An `Entry` that no file holds."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def rows(self, start, stop):
        return _InMemory(self.array[start:stop])
