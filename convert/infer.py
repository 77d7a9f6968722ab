"""A component's published configuration out of the shapes of its tensors, by their published names.

What shapes cannot tell, such as the kind of positions, is that of the published model they are most like. Every value
is checked afterwards as one out of a file would be; see `convert.config`.
"""

import re
from collections.abc import Mapping

from cogvx_jax.configs import ModelSpec
from cogvx_jax.convert.config import documents_of
from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.convert.tensors import Entry, Unreadable
from cogvx_jax.json_files import Json
from cogvx_jax.presets import PRESETS

TRANSFORMER, VAE, TEXT_ENCODER = (f"{part}/config.json" for part in ("transformer", "vae", "text_encoder"))
SCHEDULE = "scheduler/scheduler_config.json"
WIDTHS = {1920: "2b", 3072: "5b"}  # of the models whose files do not tell the kind of their positions
POSITIONS = "sincos", "rope"


def infer_transformer(found: Mapping[str, Entry], position: str | None = None) -> tuple[Json, ModelSpec]:
    """What transformer/config.json would say, and the published model that the rest is taken from.

    Args:
      position: "sincos" or "rope", for a width that no published model has.
    Raises: ConversionError for missing or misshapen tensors; ValueError where `position` is needed.
    """
    shape = Shapes(found, "transformer")
    proj = shape.of("patch_embed.proj.weight", 2, 4)
    out = shape.of("proj_out.weight", 2)[0]
    text = shape.of("patch_embed.text_proj.weight", 2)[1]
    head = shape.of("transformer_blocks.0.attn1.norm_q.weight", 1)[0]
    time = shape.of("time_embedding.linear_1.weight", 2)[0]
    shape.check()
    like = _like(proj, "patch_embed.pos_embedding" in found, "ofs_embedding.linear_1.weight" in found, position)
    cfg = like.transformer
    patches = cfg.patch**2 * (cfg.patch_t or 1) if len(proj) == 2 else proj[2] * proj[3]
    document = documents_of(like)[TRANSFORMER] | {
        "num_layers": count_blocks(found, r"transformer_blocks\.(\d{1,4})\."),
        "num_attention_heads": proj[0] // max(head, 1),
        "attention_head_dim": head,
        "in_channels": proj[1] if len(proj) == 4 else proj[1] // patches,
        "out_channels": out // max(patches, 1),
        "text_embed_dim": text,
        "time_embed_dim": time,
    }
    if len(proj) == 4:
        document["patch_size"] = proj[2]
    if cfg.ofs_dim is not None:
        document["ofs_embed_dim"] = shape.of("ofs_embedding.linear_1.weight", 2)[1]
        shape.check()
    return document, like


def infer_vae(found: Mapping[str, Entry], like: ModelSpec) -> Json:
    """What vae/config.json would say; scaling and groups are those of `like`. Raises: ConversionError."""
    shape = Shapes(found, "vae")
    levels = count_blocks(found, r"encoder\.down_blocks\.(\d{1,2})\.")
    widths = [shape.of(f"encoder.down_blocks.{level}.resnets.0.conv1.conv.weight", 5)[0] for level in range(levels)]
    latent = shape.of("decoder.conv_in.conv.weight", 5)[1]
    shape.check()
    return documents_of(like)[VAE] | {
        "block_out_channels": widths,
        "down_block_types": ["CogVideoXDownBlock3D"] * levels,
        "up_block_types": ["CogVideoXUpBlock3D"] * levels,
        "layers_per_block": count_blocks(found, r"encoder\.down_blocks\.0\.resnets\.(\d{1,2})\."),
        "latent_channels": latent,
    }


def infer_text_encoder(found: Mapping[str, Entry], like: ModelSpec) -> Json:
    """What text_encoder/config.json would say. Raises: ConversionError."""
    shape = Shapes(found, "text encoder")
    first = "encoder.block.0.layer"
    vocab, width = shape.of("shared.weight", 2)
    buckets, heads = shape.of(f"{first}.0.SelfAttention.relative_attention_bias.weight", 2)
    inner = shape.of(f"{first}.0.SelfAttention.q.weight", 2)[0]
    mlp = shape.of(f"{first}.1.DenseReluDense.wi_0.weight", 2)[0]
    shape.check()
    return documents_of(like)[TEXT_ENCODER] | {
        "num_layers": count_blocks(found, r"encoder\.block\.(\d{1,4})\."),
        "d_model": width,
        "num_heads": heads,
        "d_kv": inner // max(heads, 1),
        "d_ff": mlp,
        "vocab_size": vocab,
        "relative_attention_num_buckets": buckets,
    }


def _like(proj: tuple[int, ...], learned: bool, has_ofs: bool, position: str | None) -> ModelSpec:
    """The published model whose settings a transformer is taken to have."""
    if len(proj) == 2:
        return PRESETS["1.5-5b-i2v" if has_ofs else "1.5-5b"]
    if learned:
        return PRESETS["5b-i2v"]
    if position is None and proj[0] not in WIDTHS:
        raise ValueError(
            f"its width {proj[0]} is that of no published model, so the kind of its positions is not known; "
            f"give position, {' or '.join(POSITIONS)}, or a config.json beside the file"
        )
    return PRESETS[WIDTHS[proj[0]] if position is None else "2b" if position == "sincos" else "5b"]


class Shapes:
    """Shapes of tensors by name; what is missing is listed by `check`."""

    def __init__(self, found: Mapping[str, Entry], what: str):
        self._found, self._what, self._problems = found, what, list[str]()

    def of(self, name: str, *axes: int) -> tuple[int, ...]:
        """The shape; zeros where the tensor is missing or does not have one of these numbers of axes."""
        if name not in self._found:
            self._problems.append(f"missing: {name}")
        elif isinstance(entry := self._found[name], Unreadable):
            self._problems.append(f"unreadable: {name}: {entry.problem}")
        elif len(entry.shape) not in axes:
            self._problems.append(f"misshapen: {name} is {entry.shape}")
        else:
            return entry.shape
        return (0,) * axes[0]

    def check(self) -> None:
        if self._problems:
            where = getattr(self._found, "where", "it")
            raise ConversionError(f"{where} does not tell the sizes of the {self._what}", self._problems)


def count_blocks(found: Mapping[str, Entry], pattern: str) -> int:
    """One more than the highest number that names begin with."""
    compiled = re.compile(pattern)
    return 1 + max((int(match[1]) for name in found if (match := compiled.match(name))), default=-1)
