"""Every parameter of CogVideo's (2022) networks by its path; nothing is computed."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from cogvx_jax.models.abstract import Abstract
from cogvx_jax.models.cogvideo2022.configs import (
    CogVideo2022Config,
    ImageTokenizerConfig,
    SuperResolutionConfig,
)
from cogvx_jax.models.cogvideo2022.image_tokenizer import ImageTokenizer
from cogvx_jax.models.cogvideo2022.super_resolution import SuperResolution
from cogvx_jax.models.cogvideo2022.transformer import CogVideo2022, Frames, Text


def network_of(cfg: CogVideo2022Config, dtype: str = "float32") -> CogVideo2022 | SuperResolution:
    """The module of a stage."""
    return SuperResolution(cfg, dtype) if isinstance(cfg, SuperResolutionConfig) else CogVideo2022(cfg, dtype)


@functools.cache
def abstract_network(cfg: CogVideo2022Config | ImageTokenizerConfig) -> Mapping[str, Abstract]:
    """The parameters of a network by path, such as "blocks/base/up/kernel"."""
    if isinstance(cfg, ImageTokenizerConfig):
        tokenizer, side = ImageTokenizer(cfg), max(cfg.rates)
        return _by_path(tokenizer, jax.ShapeDtypeStruct((1, side, side, 3), "float32"))
    text = Text(*(jax.ShapeDtypeStruct((1, 1), kind) for kind in ("int32", "bool")))  # type: ignore[arg-type]
    network = network_of(cfg)
    if isinstance(network, SuperResolution):
        return _by_path(network, text, jax.ShapeDtypeStruct((1, cfg.frame_codes), "int32"))
    codes = jax.ShapeDtypeStruct((1, 1, cfg.frame_codes), "int32")
    return _by_path(_OneFrame(network), text, codes, below="network/")


def init_network(cfg: CogVideo2022Config, key: jax.Array) -> dict[str, jax.Array]:
    """Random parameters by path, of a stage that makes codes one after the other."""
    text = Text(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))
    codes = jnp.zeros((1, 1, cfg.frame_codes), jnp.int32)
    made = jax.jit(lambda key: nn.unbox(_OneFrame(CogVideo2022(cfg)).init(key, text, codes))["params"])(key)
    return {p.removeprefix("network/"): x for p, x in traverse_util.flatten_dict(made, sep="/").items()}


class _OneFrame(nn.Module):
    """A pass over one frame, whose only arguments are arrays."""

    network: CogVideo2022

    def __call__(self, text: Text, codes: jax.Array) -> jax.Array:
        return self.network.logits(self.network(text, codes, Frames((0,)))[0][:, -1:])


def _by_path(module: nn.Module, *inputs: object, below: str = "") -> dict[str, Abstract]:
    variables = jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x), *inputs)
    boxes = traverse_util.flatten_dict(variables["params"], sep="/")
    return {path.removeprefix(below): Abstract(box.value.shape, box.names) for path, box in boxes.items()}
