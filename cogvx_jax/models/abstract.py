"""Every parameter of a model by its path, with its shape and the meaning of its axes; nothing is computed."""

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from cogvx_jax.axes import Names
from cogvx_jax.configs import Compute, ControlNetConfig, ModelSpec, T5Config, ToraConfig, TransformerConfig, VAEConfig
from cogvx_jax.models.controlnet import ControlBranch
from cogvx_jax.models.t5 import T5Encoder
from cogvx_jax.models.taehv import vae_of
from cogvx_jax.models.tora import Tora
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.nn.backend import PLAIN, using
from cogvx_jax.quantization import GROUP, SCALE, Quantization

BITS = {"int4": 4}  # of types that devices pack and numpy does not


class Abstract(NamedTuple):
    """A parameter but for its numbers."""

    shape: tuple[int, ...]
    names: Names  # of `cogvx_jax.axes`, one per axis
    dtype: str | None = None  # None: that of its component

    @property
    def stacked(self) -> bool:
        """Whether the leading axis counts layers."""
        return "layers" in self.names

    def bytes(self, shape: tuple[int, ...], dtype: str) -> int:
        """Of a part of this shape on a device; `dtype` is the component's."""
        own = self.dtype or dtype
        return -(-math.prod(shape) * BITS.get(own, 8 * np.dtype(own).itemsize) // 8)


@functools.cache  # tracing the VAE takes seconds
def abstract_params(
    cfg: TransformerConfig | ControlNetConfig | ToraConfig | VAEConfig | T5Config,
) -> Mapping[str, Abstract]:
    """The parameters of a model by path, such as "blocks/mlp/up/kernel"."""
    if isinstance(cfg, TransformerConfig):
        # The smallest input there is: parameters depend on its size only where positions are learned.
        frames, height, width = cfg.patch_t or 1, cfg.patch, cfg.patch
        if cfg.position == "rope+learned":
            frames, height, width = cfg.sample_latent_frames, cfg.sample_height, cfg.sample_width
        latents, text = (1, frames, height, width, cfg.in_channels), (1, cfg.text_length, cfg.text_dim)
        module: nn.Module = Transformer(cfg)
        inputs = [jax.ShapeDtypeStruct(s, "float32") for s in (latents, text, (1,))]
    elif isinstance(cfg, ControlNetConfig):
        patch, side = cfg.patch, cfg.patch * cfg.downscale
        latents, text = (1, 1, patch, patch, cfg.latent_channels), (1, cfg.transformer.text_length, cfg.text_dim)
        module = ControlBranch(cfg, cfg.transformer)
        inputs = [jax.ShapeDtypeStruct(s, "float32") for s in (latents, (1, 1, side, side, 3), text, (1,))]
    elif isinstance(cfg, ToraConfig):
        module = Tora(cfg)
        shapes = (1, 1, cfg.patch, cfg.patch, cfg.latent_channels), (1, 1, 1, 1, cfg.width)
        inputs = [jax.ShapeDtypeStruct(s, "float32") for s in shapes]
    elif isinstance(cfg, VAEConfig):
        pixels = (1, 1, cfg.spatial_compression, cfg.spatial_compression, 3)
        module = vae_of(cfg, Compute())
        inputs = [jax.ShapeDtypeStruct(pixels, "float32")]
    else:
        module = T5Encoder(cfg)
        inputs = [jax.ShapeDtypeStruct((1, 1), "int32")]
    # The key, too, is made inside: a mesh to compile for may be active, whose devices compute nothing.
    # All formulations have the same parameters; the definitions are traced in half the time.
    with using(PLAIN):
        variables = jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x), *inputs)
    boxes = traverse_util.flatten_dict(variables["params"], sep="/")
    return {path: Abstract(box.value.shape, box.names) for path, box in boxes.items()}


def quantized(parameters: Mapping[str, Abstract], how: Quantization | None) -> dict[str, Abstract]:
    """The parameters of a model that is quantised: kernels of integers, and beside each its scales.

    Scales have the axes of their kernel, groups in place of inputs, and so lie on a mesh as it does.
    Raises: ValueError where groups do not divide a kernel's inputs.
    """
    found = {}
    for path, parameter in parameters.items():
        storage = None if how is None else how.storage(path)
        if storage is None:
            found[path] = parameter
            continue
        *layers, features, out = parameter.shape
        groups = storage.groups(features)
        found[path] = parameter._replace(dtype=storage.dtype)
        found[path + SCALE] = Abstract((*layers, groups, out), parameter.names, "float32")
    return found


def check_groups(spec: ModelSpec, how: Quantization) -> None:
    """Raises ValueError where groups do not divide a kernel's inputs, and says which would."""
    stored = {**abstract_params(spec.transformer), **abstract_params(spec.text_encoder)}
    sizes = {path: p.shape[-2] for path, p in stored.items() if (s := how.storage(path)) and s.group is not None}
    group = how.products.group
    for path, features in sizes.items():
        if group and features % group:
            common = math.gcd(*sizes.values())
            fits = max(n for n in range(1, GROUP + 1) if common % n == 0)
            raise ValueError(
                f"{how.name}'s groups of {group} do not divide the {features} inputs of {path}; int4:{fits} fits"
            )
