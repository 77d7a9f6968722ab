"""CogVideo (2022) in its makers' names, both ways: SAT's of the three transformers, icetk's of the image tokenizer.

SAT keeps queries, keys and values of a layer in one tensor, in thirds. `split_thirds` gives them names of their own,
which are ranges of the same file, and `joined_thirds` is its inverse.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.convert.quantized_layout import quantized_rows
from cogvx_jax.convert.safetensors import Tensor
from cogvx_jax.convert.tables import CONV2D, POINTWISE2D, TRANSPOSE, Parameter, Row, resolve, under
from cogvx_jax.convert.tensors import Entry, Renamed, Tensors, Unreadable
from cogvx_jax.models.abstract import quantized
from cogvx_jax.models.cogvideo2022.abstract import abstract_network
from cogvx_jax.models.cogvideo2022.configs import CogVideo2022Config, ImageTokenizerConfig
from cogvx_jax.models.cogvideo2022.transformer import of_base
from cogvx_jax.quantization import Quantization

LINEAR = (Row("weight", "kernel", TRANSPOSE), Row("bias", "bias"))
NORM = (Row("weight", "scale"), Row("bias", "bias"))
CONV = (Row("weight", "kernel", CONV2D), Row("bias", "bias"))
POINTWISE = (Row("weight", "kernel", POINTWISE2D), Row("bias", "bias"))

LAYER, PLUS = "transformer.layers.{i}", "mixins.attention_plus"
BASE = (  # theirs with thirds apart, ours, change
    Row("transformer.word_embeddings.weight", "words"),
    Row("transformer.position_embeddings.weight", "positions"),
    *under("transformer.final_layernorm", "norm", NORM),
    *under(f"{LAYER}.input_layernorm", "blocks/base/norm1", NORM),
    *under(f"{LAYER}.post_attention_layernorm", "blocks/base/norm2", NORM),
    *under(f"{LAYER}.third_layernorm", "blocks/base/norm3", NORM),
    *under(f"{LAYER}.fourth_layernorm", "blocks/base/norm4", NORM),
    *(row for part in "qkv" for row in under(f"{LAYER}.attention.{part}", f"blocks/base/{part}", LINEAR)),
    *under(f"{LAYER}.attention.dense", "blocks/base/dense", LINEAR),
    *under(f"{LAYER}.mlp.dense_h_to_4h", "blocks/base/up", LINEAR),
    *under(f"{LAYER}.mlp.dense_4h_to_h", "blocks/base/down", LINEAR),
)
CHANNEL = (
    Row("mixins.extra_position_embedding.position_embeddings.weight", "extra_positions"),
    *(row for part in "qkv" for row in under(f"{PLUS}.{part}.{{i}}", f"blocks/channel/{part}", LINEAR)),
    *under(f"{PLUS}.dense.{{i}}", "blocks/channel/dense", LINEAR),
    Row(f"{PLUS}.attn_distribution.{{i}}", "blocks/channel/gate"),
)

RESNET = (*under("norm{n}", "norm{n}", NORM), *under("conv{n}", "conv{n}", CONV))
SHORTCUT = under("nin_shortcut", "shortcut", POINTWISE)
ATTENTION = (
    *under("norm", "norm", NORM),
    *(row for part in "qkv" for row in under(part, part, POINTWISE)),
    *under("proj_out", "out", POINTWISE),
)
ENDS = (*under("conv_in", "conv_in", CONV), *under("norm_out", "norm_out", NORM), *under("conv_out", "conv_out", CONV))
MIDDLE = (
    *under("mid.block_1", "mid_resnet_0", RESNET),
    *under("mid.attn_1", "mid_attention", ATTENTION),
    *under("mid.block_2", "mid_resnet_1", RESNET),
)
ENCODER = (
    *ENDS,
    *MIDDLE,
    *under("down.{l}.block.{j}", "down_{l}_resnet_{j}", (*RESNET, *SHORTCUT)),
    *under("down.{l}.downsample.conv", "down_{l}_downsample", CONV),
)
DECODER = (
    *ENDS,
    *MIDDLE,
    *under("up.{l}.block.{j}", "up_{l}_resnet_{j}", (*RESNET, *SHORTCUT)),
    *under("up.{l}.attn.{j}", "up_{l}_attention_{j}", ATTENTION),
    *under("up.{l}.upsample.conv", "up_{l}_upsample", CONV),
)
BUFFERS = re.compile(r"quantize\.(cluster_size|embed_avg)")  # of training alone

FUSED = re.compile(
    rf"(?P<head>transformer\.layers\.\d+\.attention\.|{re.escape(PLUS)}\.)query_key_value(?P<tail>(\.\d+)?\.(weight|bias))"
)
THIRD = re.compile(
    rf"(?P<head>transformer\.layers\.\d+\.attention\.|{re.escape(PLUS)}\.)(?P<part>[qkv])(?P<tail>(\.\d+)?\.(weight|bias))"
)


def image_tokenizer_rows(cfg: ImageTokenizerConfig) -> tuple[Row, ...]:
    """The image tokenizer's table: theirs counts decoders from the coarsest."""
    decoders = (under(f"decs.{place}", f"decoder_{rate}", DECODER) for place, rate in enumerate(cfg.rates))
    return (
        *under("enc", "encoder", ENCODER),
        *(row for decoder in decoders for row in decoder),
        *under("down_samplers.{l}.conv_down_sampler.conv", "halve_{l}", CONV),
        *under("quantize.proj", "project", POINTWISE),
        Row("quantize.embed.weight", "codebook"),
    )


def network_parameters(
    cfg: CogVideo2022Config, *, base: bool = True, channel: bool = True, how: Quantization | None = None
) -> list[Parameter]:
    """Every parameter of a stage, of its base or of its channel, with the tensors that it is made of.

    Args:
      how: kernels are quantised; None is as the makers store them.
    """
    shapes = {path: own.shape for path, own in quantized(abstract_network(cfg), how).items()}
    wanted = {path: shape for path, shape in shapes.items() if (base if of_base(path) else channel)}
    return resolve(quantized_rows((*BASE, *CHANNEL), how), wanted)


def image_tokenizer_parameters(cfg: ImageTokenizerConfig) -> list[Parameter]:
    """Every parameter of the image tokenizer with its tensor."""
    return resolve(image_tokenizer_rows(cfg), {path: own.shape for path, own in abstract_network(cfg).items()})


def split_thirds(tensors: Tensors) -> Tensors:
    """SAT's tensors with queries, keys and values apart; nothing is read."""
    found = Renamed()
    for name, entry in tensors.items():
        match = FUSED.fullmatch(name)
        if match is None or isinstance(entry, Unreadable) or not entry.shape or entry.shape[0] % 3:
            found.add(name, entry, name)
            continue
        size = entry.shape[0] // 3
        for place, part in enumerate("qkv"):
            third = entry.rows(place * size, (place + 1) * size)
            found.add(f"{match['head']}{part}{match['tail']}", third, name)
    return tensors.of(found)


def joined_thirds(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of `split_thirds`, of tensors to write.

    Raises: ConversionError for tensors that lack one of the three, or whose types differ.
    """
    fused: dict[str, dict[str, Tensor]] = {}
    written, problems = [], []
    for tensor in tensors:
        match = THIRD.fullmatch(tensor.key)
        if match is None:
            written.append(tensor)
        else:
            fused.setdefault(f"{match['head']}query_key_value{match['tail']}", {})[match["part"]] = tensor
    for name, parts in fused.items():
        if set(parts) != set("qkv") or len({part.dtype for part in parts.values()}) > 1:
            problems.append(f"{name}: there is {', '.join(f'{p} of {t.dtype}' for p, t in sorted(parts.items()))}")
        else:
            written.append(_joined(name, [parts[part] for part in "qkv"]))
    if problems:
        raise ConversionError("SAT keeps queries, keys and values in one tensor", problems)
    return written


def without_buffers(tensors: Tensors) -> Tensors:
    """The image tokenizer's tensors without those that training alone uses."""
    found: Mapping[str, Entry] = {name: entry for name, entry in tensors.items() if not BUFFERS.fullmatch(name)}
    return tensors.of(found)


def _joined(name: str, parts: list[Tensor]) -> Tensor:
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return Tensor(name, shape, parts[0].dtype, lambda: np.concatenate([part.make() for part in parts]))
