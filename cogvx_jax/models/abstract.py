"""Every parameter of a model by its path, with its shape and the meaning of its axes; nothing is computed."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
from flax import linen as nn
from flax import traverse_util

from cogvx_jax.axes import Names
from cogvx_jax.configs import T5Config, TransformerConfig, VAEConfig
from cogvx_jax.models.t5 import T5Encoder
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.models.vae import VAE


class Abstract(NamedTuple):
    """A parameter but for its numbers."""

    shape: tuple[int, ...]
    names: Names  # of `cogvx_jax.axes`, one per axis


@functools.cache  # tracing the VAE takes seconds
def abstract_params(cfg: TransformerConfig | VAEConfig | T5Config) -> Mapping[str, Abstract]:
    """The parameters of a model by path, such as "blocks/mlp/up/kernel"."""
    if isinstance(cfg, TransformerConfig):
        # The smallest input there is: parameters depend on its size only where positions are learned.
        frames, height, width = cfg.patch_t or 1, cfg.patch, cfg.patch
        if cfg.position == "rope+learned":
            frames, height, width = cfg.sample_latent_frames, cfg.sample_height, cfg.sample_width
        latents, text = (1, frames, height, width, cfg.in_channels), (1, cfg.text_length, cfg.text_dim)
        module: nn.Module = Transformer(cfg)
        inputs = [jax.ShapeDtypeStruct(s, "float32") for s in (latents, text, (1,))]
    elif isinstance(cfg, VAEConfig):
        pixels = (1, 1, cfg.spatial_compression, cfg.spatial_compression, 3)
        module = VAE(cfg)
        inputs = [jax.ShapeDtypeStruct(pixels, "float32")]
    else:
        module = T5Encoder(cfg)
        inputs = [jax.ShapeDtypeStruct((1, 1), "int32")]
    # The key, too, is made inside: a mesh to compile for may be active, whose devices compute nothing.
    variables = jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x), *inputs)
    boxes = traverse_util.flatten_dict(variables["params"], sep="/")
    return {path: Abstract(box.value.shape, box.names) for path, box in boxes.items()}
