"""ControlNets in TheDenk's layout, both ways: config.json beside the weights, or a file of weights alone."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from cogvx_jax.configs import ControlNetConfig
from cogvx_jax.convert.checkpoint import Published
from cogvx_jax.convert.config import Document, parse_fields
from cogvx_jax.convert.containers import STEMS, has_weights, open_tensors
from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.convert.export import METADATA, tensors_of
from cogvx_jax.convert.infer import Shapes, count_blocks
from cogvx_jax.convert.packed import unpacked
from cogvx_jax.convert.safetensors import write_file
from cogvx_jax.convert.tables import Parameter, controlnet_table, resolve
from cogvx_jax.convert.tensors import Tensors
from cogvx_jax.json_files import MAX_BYTES, Json, parse_json, quoted
from cogvx_jax.models.abstract import abstract_params
from cogvx_jax.storage import new_folder, open_files

CONFIG = "config.json"
MARK = "controlnet_encode_first.0.weight"  # no other network has it
DOCUMENT = Document(
    path=CONFIG,
    part="controlnet",
    config=ControlNetConfig,
    classes=("CogVideoXControlnet",),
    fields={
        "num_layers": "layers",
        "num_attention_heads": "heads",
        "attention_head_dim": "head_dim",
        "vae_channels": "latent_channels",
        "downscale_coef": "downscale",
        "patch_size": "patch",
        "text_embed_dim": "text_dim",  # ours; the reference knows 4096 alone
        "time_embed_dim": "time_dim",
        "out_proj_dim": "out_dim",
        "spatial_interpolation_scale": "spatial_interpolation",
        "temporal_interpolation_scale": "temporal_interpolation",
        "norm_eps": "norm_eps",
    },
    fixed={
        "in_channels": 3,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "norm_elementwise_affine": True,
        "temporal_compression_ratio": 4,
        "timestep_activation_fn": "silu",
        "use_learned_positional_embeddings": False,
    },
    # Positions are the same for every native size, and text has none. Nothing is dropped where nothing is trained.
    unread={
        "dropout": 0.0,
        "max_text_seq_length": 226,
        "sample_height": 60,
        "sample_width": 90,
        "sample_frames": 49,
    },
)
ROTARY = "use_rotary_positional_embeddings"  # without it, it adds sincos positions


class Held:
    """Parameters that are in memory, as `Published` has those of files."""

    def __init__(self, params: Mapping[str, Any]):
        self._flat = traverse_util.flatten_dict(dict(params), sep="/")

    def __iter__(self) -> Iterator[str]:
        return iter(self._flat)

    def shape(self, path: str) -> tuple[int, ...]:
        return self._flat[path].shape

    def read(self, path: str, dtype: np.dtype, index: tuple[slice, ...]) -> np.ndarray:
        return np.asarray(self._flat[path][index], dtype)

    def release(self) -> None:
        pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredControlNet:
    """A ControlNet in a file, its sizes, and its parameters unread; or one that is held."""

    cfg: ControlNetConfig
    parameters: Published | Held

    def read(self, dtype: str = "float32") -> dict[str, Any]:
        """The parameters, numpy arrays."""
        flat = {}
        for path in self.parameters:
            whole = tuple(slice(n) for n in self.parameters.shape(path))
            flat[path] = self.parameters.read(path, np.dtype(dtype), whole)
            self.parameters.release()
        return traverse_util.unflatten_dict(flat, sep="/")


def holds_controlnet(tensors: Tensors) -> bool:
    """Whether tensors are a ControlNet's, by their names."""
    return any(name.endswith(MARK) for name in tensors)


def open_controlnet(place: str | Path) -> StoredControlNet:
    """A ControlNet, of which no numbers are read.

    Args:
      place: a folder, or a file of weights, beside which no configuration is looked for; or the URL of either.
    Raises: FileNotFoundError; ValueError for another file; ConversionError listing every value that is not supported,
      or every missing, spare or misshapen tensor.
    """
    files = open_files(place)
    said: Json = {}
    if files.is_folder():
        if not files.exists(CONFIG) or not has_weights(place):
            raise FileNotFoundError(
                f"{place} holds no ControlNet: there is no {CONFIG} beside {STEMS['transformer']}.safetensors"
            )
        try:
            said = parse_json(files.bytes(CONFIG, MAX_BYTES))
        except ValueError as error:
            raise ValueError(f"{place}/{CONFIG}: {error}") from None
    tensors = unpacked(open_tensors(place))
    if not holds_controlnet(tensors):
        raise ValueError(f"{place} holds no ControlNet of TheDenk's: it has no {MARK}")
    cfg = _config(tensors, said, place)
    what = f"a ControlNet of {cfg.layers} blocks of {cfg.heads} x {cfg.head_dim}"
    return StoredControlNet(
        cfg=cfg, parameters=Published(tensors, controlnet_parameters(cfg), abstract_params(cfg), what)
    )


def _config(tensors: Tensors, said: Json, place: str | Path) -> ControlNetConfig:
    """Sizes as the configuration says, with which shapes are then compared; the rest is told by the shapes."""
    problems: list[str] = []
    values = parse_fields(DOCUMENT, infer_controlnet(tensors) | said, problems)
    rotary = said.get(ROTARY, False)
    if not isinstance(rotary, bool):
        problems.append(f"{CONFIG}: {ROTARY} {quoted(rotary)} is not supported, only true and false are")
    if problems:
        raise ConversionError(f"{place} is not a ControlNet that is supported", problems)
    return ControlNetConfig(**values, adds_positions=not rotary)


def infer_controlnet(tensors: Tensors) -> Json:
    """What config.json would say, as far as shapes tell. Raises: ConversionError for missing or misshapen tensors."""
    prefix = next(name for name in tensors if name.endswith(MARK)).removesuffix(MARK)
    found = tensors.of({name.removeprefix(prefix): tensors[name] for name in tensors})
    shape = Shapes(found, "ControlNet")
    width, channels, patch, _ = shape.of("patch_embed.proj.weight", 4)
    pixels = shape.of(MARK, 4)[1]
    head = shape.of("transformer_blocks.0.attn1.norm_q.weight", 1)[0]
    document = {
        "num_layers": count_blocks(found, r"transformer_blocks\.(\d{1,4})\."),
        "num_attention_heads": width // max(head, 1),
        "attention_head_dim": head,
        "vae_channels": channels - pixels // 4,
        "downscale_coef": round((pixels / 3) ** 0.5),
        "patch_size": patch,
        "text_embed_dim": shape.of("patch_embed.text_proj.weight", 2)[1],
        "time_embed_dim": shape.of("time_embedding.linear_1.weight", 2)[0],
    }
    if "out_projectors.0.weight" in found:
        document["out_proj_dim"] = shape.of("out_projectors.0.weight", 2)[0]
    shape.check()
    return document


def controlnet_parameters(cfg: ControlNetConfig) -> list[Parameter]:
    """Every parameter with the tensors that it is made of."""
    shapes = {path: parameter.shape for path, parameter in abstract_params(cfg).items()}
    return resolve(controlnet_table(cfg), shapes)


def write_controlnet(folder: str | Path, cfg: ControlNetConfig, params: Mapping[str, Any]) -> None:
    """Writes a ControlNet; the folder appears under its name only when whole.

    Args:
      params: nested dict of arrays, as `StoredControlNet.read` gives them.
    Raises: FileExistsError; ConversionError for other parameters; ValueError for numbers that are not finite.
    """
    problems: list[str] = []
    leaves = traverse_util.flatten_dict(dict(params), sep="/")
    tensors = tensors_of(controlnet_parameters(cfg), leaves, "controlnet", None, problems)
    if problems:
        raise ConversionError("these are not the parameters of this ControlNet", problems)
    said = {theirs: getattr(cfg, ours) for theirs, ours in DOCUMENT.fields.items()}
    said |= dict(DOCUMENT.fixed) | dict(DOCUMENT.unread) | {ROTARY: not cfg.adds_positions}
    with new_folder(folder) as partial:
        text = json.dumps({"_class_name": DOCUMENT.classes[0]} | said, indent=2, sort_keys=True)
        (partial / CONFIG).write_text(text + "\n")
        write_file(partial / f"{STEMS['transformer']}.safetensors", tensors, METADATA)
