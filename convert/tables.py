"""Tensors of the published checkpoints and parameters of ours: one table per component, read both ways.

A row stands for every parameter of the model that its middle column fits, so options need no rows of
their own: where the model has no `ofs`, those rows are idle. `{l}`, `{j}` and `{n}` are numbers and
the same on both sides; `{i}` counts blocks and becomes the leading axis of a stacked parameter.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np

from cogvx_jax.configs import ControlNetConfig, ModelSpec
from cogvx_jax.convert.errors import ConversionError


@dataclasses.dataclass(frozen=True)
class Change:
    """How a tensor differs from our parameter: `read` turns theirs into ours, `write` is its inverse."""

    name: str
    read: Callable[[np.ndarray], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]


def permute(name: str, *axes: int) -> Change:
    """Our axes are their axes in this order."""
    back = np.argsort(axes)
    return Change(name, lambda x: x.transpose(axes), lambda x: x.transpose(back))


def patch_conv(patch: int) -> Change:
    """Of 1.0's patches: convolution (D, C, p, p) <-> matrix (C * p * p, D)."""
    return Change(
        f"patch_conv({patch})",
        lambda x: x.reshape(len(x), -1).T,
        lambda x: x.T.reshape(x.shape[1], -1, patch, patch),
    )


SAME = Change("same", lambda x: x, lambda x: x)
TRANSPOSE = permute("transpose", 1, 0)  # of Linear: (out, in) -> (in, out)
CONV2D = permute("conv2d", 2, 3, 1, 0)  # (out, in, h, w) -> (h, w, in, out)
CONV1D = permute("conv1d", 2, 1, 0)  # (out, in, t) -> (t, in, out)
CONV3D = permute("conv3d", 2, 3, 4, 1, 0)  # (out, in, t, h, w) -> (t, h, w, in, out)
POINTWISE3D = Change("pointwise3d", lambda x: x[:, :, 0, 0, 0].T, lambda x: x.T[:, :, None, None, None])
POINTWISE2D = Change("pointwise2d", lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])
DROP_LEADING = Change("drop_leading", lambda x: x[0], lambda x: x[None])  # (1, S, D) -> (S, D)


@dataclasses.dataclass(frozen=True)
class Row:
    theirs: str
    ours: str
    change: Change = SAME


def under(theirs: str, ours: str, rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """The rows of a part, below the part's names."""
    return tuple(Row(f"{theirs}.{row.theirs}", f"{ours}/{row.ours}", row.change) for row in rows)


TRANSFORMER = (  # theirs, ours, change; but for patch_embed.proj.weight, see `table`
    Row("patch_embed.proj.bias", "patch/bias"),
    Row("patch_embed.text_proj.weight", "text/kernel", TRANSPOSE),
    Row("patch_embed.text_proj.bias", "text/bias"),
    Row("patch_embed.pos_embedding", "position", DROP_LEADING),
    Row("time_embedding.linear_1.weight", "time/up/kernel", TRANSPOSE),
    Row("time_embedding.linear_1.bias", "time/up/bias"),
    Row("time_embedding.linear_2.weight", "time/down/kernel", TRANSPOSE),
    Row("time_embedding.linear_2.bias", "time/down/bias"),
    Row("ofs_embedding.linear_1.weight", "ofs/up/kernel", TRANSPOSE),
    Row("ofs_embedding.linear_1.bias", "ofs/up/bias"),
    Row("ofs_embedding.linear_2.weight", "ofs/down/kernel", TRANSPOSE),
    Row("ofs_embedding.linear_2.bias", "ofs/down/bias"),
    Row("transformer_blocks.{i}.norm1.linear.weight", "blocks/norm1/modulation/kernel", TRANSPOSE),
    Row("transformer_blocks.{i}.norm1.linear.bias", "blocks/norm1/modulation/bias"),
    Row("transformer_blocks.{i}.norm1.norm.weight", "blocks/norm1/norm/scale"),
    Row("transformer_blocks.{i}.norm1.norm.bias", "blocks/norm1/norm/bias"),
    Row("transformer_blocks.{i}.attn1.norm_q.weight", "blocks/attention/norm_q/scale"),
    Row("transformer_blocks.{i}.attn1.norm_q.bias", "blocks/attention/norm_q/bias"),
    Row("transformer_blocks.{i}.attn1.norm_k.weight", "blocks/attention/norm_k/scale"),
    Row("transformer_blocks.{i}.attn1.norm_k.bias", "blocks/attention/norm_k/bias"),
    Row("transformer_blocks.{i}.attn1.to_q.weight", "blocks/attention/q/kernel", TRANSPOSE),
    Row("transformer_blocks.{i}.attn1.to_q.bias", "blocks/attention/q/bias"),
    Row("transformer_blocks.{i}.attn1.to_k.weight", "blocks/attention/k/kernel", TRANSPOSE),
    Row("transformer_blocks.{i}.attn1.to_k.bias", "blocks/attention/k/bias"),
    Row("transformer_blocks.{i}.attn1.to_v.weight", "blocks/attention/v/kernel", TRANSPOSE),
    Row("transformer_blocks.{i}.attn1.to_v.bias", "blocks/attention/v/bias"),
    Row("transformer_blocks.{i}.attn1.to_out.0.weight", "blocks/attention/out/kernel", TRANSPOSE),
    Row("transformer_blocks.{i}.attn1.to_out.0.bias", "blocks/attention/out/bias"),
    Row("transformer_blocks.{i}.norm2.linear.weight", "blocks/norm2/modulation/kernel", TRANSPOSE),
    Row("transformer_blocks.{i}.norm2.linear.bias", "blocks/norm2/modulation/bias"),
    Row("transformer_blocks.{i}.norm2.norm.weight", "blocks/norm2/norm/scale"),
    Row("transformer_blocks.{i}.norm2.norm.bias", "blocks/norm2/norm/bias"),
    Row("transformer_blocks.{i}.ff.net.0.proj.weight", "blocks/mlp/up/kernel", TRANSPOSE),
    Row("transformer_blocks.{i}.ff.net.0.proj.bias", "blocks/mlp/up/bias"),
    Row("transformer_blocks.{i}.ff.net.2.weight", "blocks/mlp/down/kernel", TRANSPOSE),
    Row("transformer_blocks.{i}.ff.net.2.bias", "blocks/mlp/down/bias"),
    Row("norm_final.weight", "norm_final/scale"),
    Row("norm_final.bias", "norm_final/bias"),
    Row("norm_out.linear.weight", "modulation_out/kernel", TRANSPOSE),
    Row("norm_out.linear.bias", "modulation_out/bias"),
    Row("norm_out.norm.weight", "norm_out/scale"),
    Row("norm_out.norm.bias", "norm_out/bias"),
    Row("proj_out.weight", "out/kernel", TRANSPOSE),
    Row("proj_out.bias", "out/bias"),
)

# Beside those of the transformer's rows that a ControlNet of TheDenk has; see `controlnet_table`.
CONTROLNET = (
    Row("controlnet_encode_first.0.weight", "encoder/first/kernel", POINTWISE2D),
    Row("controlnet_encode_first.0.bias", "encoder/first/bias"),
    Row("controlnet_encode_first.1.weight", "encoder/first_norm/scale"),
    Row("controlnet_encode_first.1.bias", "encoder/first_norm/bias"),
    Row("controlnet_encode_second.0.weight", "encoder/second/kernel", POINTWISE2D),
    Row("controlnet_encode_second.0.bias", "encoder/second/bias"),
    Row("controlnet_encode_second.1.weight", "encoder/second_norm/scale"),
    Row("controlnet_encode_second.1.bias", "encoder/second_norm/bias"),
    Row("out_projectors.{i}.weight", "projectors/kernel", TRANSPOSE),
    Row("out_projectors.{i}.bias", "projectors/bias"),
)

# Of Tora's two files.
TORA = (
    Row("conv_in.weight", "extractor/conv_in/kernel", CONV2D),
    Row("conv_in.bias", "extractor/conv_in/bias"),
    Row("body.{i}.block{n}.weight", "extractor/blocks/conv{n}/kernel", CONV2D),
    Row("body.{i}.block{n}.bias", "extractor/blocks/conv{n}/bias"),
    Row("body.{i}.bn{n}.weight", "extractor/blocks/norm{n}/scale"),
    Row("body.{i}.bn{n}.bias", "extractor/blocks/norm{n}/bias"),
    Row("body.{i}.bn{n}.running_mean", "extractor/blocks/norm{n}/mean"),
    Row("body.{i}.bn{n}.running_var", "extractor/blocks/norm{n}/variance"),
    Row("{i}.flow_gamma_spatial.weight", "fusers/gamma_spatial/kernel", CONV2D),
    Row("{i}.flow_gamma_spatial.bias", "fusers/gamma_spatial/bias"),
    Row("{i}.flow_gamma_temporal.weight", "fusers/gamma_temporal/kernel", CONV1D),
    Row("{i}.flow_gamma_temporal.bias", "fusers/gamma_temporal/bias"),
    Row("{i}.flow_beta_spatial.weight", "fusers/beta_spatial/kernel", CONV2D),
    Row("{i}.flow_beta_spatial.bias", "fusers/beta_spatial/bias"),
    Row("{i}.flow_beta_temporal.weight", "fusers/beta_temporal/kernel", CONV1D),
    Row("{i}.flow_beta_temporal.bias", "fusers/beta_temporal/bias"),
    Row("{i}.flow_cond_norm.weight", "fusers/norm/scale"),
    Row("{i}.flow_cond_norm.bias", "fusers/norm/bias"),
)

T5 = (
    Row("shared.weight", "embedding"),
    # Only the first block has the table; all blocks use it.
    Row("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "position_bias"),
    Row("encoder.block.{i}.layer.0.layer_norm.weight", "blocks/norm1/scale"),
    Row("encoder.block.{i}.layer.0.SelfAttention.q.weight", "blocks/q/kernel", TRANSPOSE),
    Row("encoder.block.{i}.layer.0.SelfAttention.k.weight", "blocks/k/kernel", TRANSPOSE),
    Row("encoder.block.{i}.layer.0.SelfAttention.v.weight", "blocks/v/kernel", TRANSPOSE),
    Row("encoder.block.{i}.layer.0.SelfAttention.o.weight", "blocks/out/kernel", TRANSPOSE),
    Row("encoder.block.{i}.layer.1.layer_norm.weight", "blocks/norm2/scale"),
    Row("encoder.block.{i}.layer.1.DenseReluDense.wi_0.weight", "blocks/gate/kernel", TRANSPOSE),
    Row("encoder.block.{i}.layer.1.DenseReluDense.wi_1.weight", "blocks/up/kernel", TRANSPOSE),
    Row("encoder.block.{i}.layer.1.DenseReluDense.wo.weight", "blocks/down/kernel", TRANSPOSE),
    Row("encoder.final_layer_norm.weight", "norm/scale"),
)

# Parts of the VAE.
CONV = (Row("conv.weight", "kernel", CONV3D), Row("conv.bias", "bias"))
FRAME_CONV = (Row("conv.weight", "kernel", CONV2D), Row("conv.bias", "bias"))
POINTWISE = (Row("weight", "kernel", POINTWISE3D), Row("bias", "bias"))
GROUP_NORM = (Row("weight", "scale"), Row("bias", "bias"))
SPATIAL_NORM = (
    *under("norm_layer", "norm", GROUP_NORM),
    *under("conv_y.conv", "gain", POINTWISE),
    *under("conv_b.conv", "offset", POINTWISE),
)
ENCODER_RESNET = (*under("norm{n}", "norm{n}", GROUP_NORM), *under("conv{n}", "conv{n}", CONV))
DECODER_RESNET = (*under("norm{n}", "norm{n}", SPATIAL_NORM), *under("conv{n}", "conv{n}", CONV))

VAE = (
    *under("encoder.conv_in", "encoder/conv_in", CONV),
    *under("encoder.down_blocks.{l}.resnets.{j}", "encoder/down_{l}_resnet_{j}", ENCODER_RESNET),
    *under("encoder.down_blocks.{l}.resnets.{j}.conv_shortcut", "encoder/down_{l}_resnet_{j}/shortcut", POINTWISE),
    *under("encoder.down_blocks.{l}.downsamplers.0", "encoder/down_{l}_downsample", FRAME_CONV),
    *under("encoder.mid_block.resnets.{j}", "encoder/mid_resnet_{j}", ENCODER_RESNET),
    *under("encoder.norm_out", "encoder/norm_out", GROUP_NORM),
    *under("encoder.conv_out", "encoder/conv_out", CONV),
    *under("decoder.conv_in", "decoder/conv_in", CONV),
    *under("decoder.mid_block.resnets.{j}", "decoder/mid_resnet_{j}", DECODER_RESNET),
    *under("decoder.up_blocks.{l}.resnets.{j}", "decoder/up_{l}_resnet_{j}", DECODER_RESNET),
    *under("decoder.up_blocks.{l}.resnets.{j}.conv_shortcut", "decoder/up_{l}_resnet_{j}/shortcut", POINTWISE),
    *under("decoder.up_blocks.{l}.upsamplers.0", "decoder/up_{l}_upsample", FRAME_CONV),
    *under("decoder.norm_out", "decoder/norm_out", SPATIAL_NORM),
    *under("decoder.conv_out", "decoder/conv_out", CONV),
)

COMPONENTS = ("transformer", "vae", "text_encoder")  # the folders, and the fields of ModelSpec
# Second names that a file may hold for a tensor; they are not read.
ALIASES = {"text_encoder": {"encoder.embed_tokens.weight": "shared.weight"}}


def table(spec: ModelSpec, component: str) -> tuple[Row, ...]:
    """The rows of one of COMPONENTS. Raises: ValueError for another name."""
    check_component(component)
    if component == "vae":
        return VAE
    if component == "text_encoder":
        return T5
    cfg = spec.transformer
    change = patch_conv(cfg.patch) if cfg.patch_t is None else TRANSPOSE
    return (Row("patch_embed.proj.weight", "patch/kernel", change), *TRANSFORMER)


def controlnet_table(cfg: ControlNetConfig) -> tuple[Row, ...]:
    """The rows of a ControlNet."""
    return (Row("patch_embed.proj.weight", "patch/kernel", patch_conv(cfg.patch)), *TRANSFORMER, *CONTROLNET)


def check_component(name: str) -> None:
    """Raises ValueError if `name` is not one of COMPONENTS."""
    if name not in COMPONENTS:
        raise ValueError(f"component must be one of {', '.join(COMPONENTS)}, got {name!r}")


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One of our parameters and the tensors it is made of: one, or one per block where `stacked`."""

    path: str
    shape: tuple[int, ...]
    keys: tuple[str, ...]
    stacked: bool
    change: Change

    @property
    def their_shape(self) -> tuple[int, ...]:
        """Of each of `keys`."""
        shape = self.shape[1:] if self.stacked else self.shape
        return self.change.write(np.broadcast_to(np.int8(0), shape)).shape


def resolve(rows: tuple[Row, ...], shapes: Mapping[str, tuple[int, ...]]) -> list[Parameter]:
    """Finds every parameter's row.

    Args:
      shapes: of our parameters, by path ("blocks/mlp/up/kernel").
    Raises: ConversionError if a path fits no row or more than one.
    """
    patterns = [(row, re.compile(_pattern(row.ours))) for row in rows]
    parameters, problems = [], []
    for path, shape in shapes.items():
        fits = [(row, match) for row, pattern in patterns if (match := pattern.fullmatch(path))]
        if len(fits) != 1:
            problems.append(f"{path}: {len(fits)} rows")
            continue
        [(row, match)] = fits
        stacked = "{i}" in row.theirs
        keys = tuple(row.theirs.format(i=i, **match.groupdict()) for i in range(shape[0] if stacked else 1))
        parameters.append(Parameter(path, tuple(shape), keys, stacked, row.change))
    if problems:
        raise ConversionError("the table does not fit the model", problems)
    return parameters


def _pattern(ours: str) -> str:
    return re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(ours))
