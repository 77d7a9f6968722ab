"""The published configuration files and ModelSpec, both ways."""

import dataclasses
import json
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cogvx_jax.configs import (
    DType,
    GenerationDefaults,
    Kind,
    ModelSpec,
    Position,
    ScheduleConfig,
    T5Config,
    TransformerConfig,
    VAEConfig,
)
from cogvx_jax.convert.bounds import misfits, wrong_size
from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.diffusion.samplers import SAMPLERS
from cogvx_jax.json_files import MAX_BYTES, Json, parse_json, quoted
from cogvx_jax.presets import PRESETS
from cogvx_jax.storage import open_files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """One configuration file and the part of ModelSpec it describes."""

    path: str
    part: str  # field of ModelSpec
    config: type
    classes: tuple[str, ...] = ()  # what `_class_name` may be; the first is written
    fields: Mapping[str, str]  # theirs -> ours
    fixed: Mapping[str, Any]  # the only value that is supported
    # What the reference takes for an absent field, where that is neither our default nor `fixed`.
    absent: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unread: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # written; of no effect here


DOCUMENTS = (
    Document(
        path="transformer/config.json",
        part="transformer",
        config=TransformerConfig,
        classes=("CogVideoXTransformer3DModel",),
        fields={
            "num_layers": "layers",
            "num_attention_heads": "heads",
            "attention_head_dim": "head_dim",
            "in_channels": "in_channels",
            "out_channels": "out_channels",
            "patch_size": "patch",
            "patch_size_t": "patch_t",
            "text_embed_dim": "text_dim",
            "max_text_seq_length": "text_length",
            "time_embed_dim": "time_dim",
            "ofs_embed_dim": "ofs_dim",
            "sample_height": "sample_height",
            "sample_width": "sample_width",
            "sample_frames": "sample_frames",
            "temporal_compression_ratio": "temporal_compression",
            "spatial_interpolation_scale": "spatial_interpolation",
            "temporal_interpolation_scale": "temporal_interpolation",
            "norm_eps": "norm_eps",
        },
        fixed={
            "activation_fn": "gelu-approximate",
            "attention_bias": True,
            "dropout": 0.0,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "norm_elementwise_affine": True,
            "timestep_activation_fn": "silu",
        },
    ),
    Document(
        path="vae/config.json",
        part="vae",
        config=VAEConfig,
        classes=("AutoencoderKLCogVideoX",),
        fields={
            "block_out_channels": "channels",
            "layers_per_block": "layers",
            "latent_channels": "latent_channels",
            "norm_num_groups": "groups",
            "norm_eps": "norm_eps",
            "temporal_compression_ratio": "temporal_compression",
            "scaling_factor": "scaling_factor",
            "invert_scale_latents": "invert_scale_latents",
            "sample_height": "sample_height",
            "sample_width": "sample_width",
        },
        fixed={
            "act_fn": "silu",
            "in_channels": 3,
            "out_channels": 3,
            "latents_mean": None,
            "latents_std": None,
            "shift_factor": None,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
        unread={"force_upcast": True},
    ),
    Document(
        path="text_encoder/config.json",
        part="text_encoder",
        config=T5Config,
        fields={
            "num_layers": "layers",
            "d_model": "width",
            "num_heads": "heads",
            "d_kv": "head_dim",
            "d_ff": "mlp",
            "vocab_size": "vocab",
            "relative_attention_num_buckets": "buckets",
            "relative_attention_max_distance": "max_distance",
            "layer_norm_epsilon": "norm_eps",
        },
        fixed={"model_type": "t5", "feed_forward_proj": "gated-gelu"},
        absent={"num_layers": 6, "d_model": 512, "num_heads": 8, "d_ff": 2048, "feed_forward_proj": "relu"},
        unread={
            "architectures": ["T5EncoderModel"],
            "classifier_dropout": 0.0,
            "decoder_start_token_id": 0,
            "dense_act_fn": "gelu_new",
            "dropout_rate": 0.1,
            "eos_token_id": 1,
            "initializer_factor": 1.0,
            "is_encoder_decoder": True,
            "is_gated_act": True,
            "output_past": True,
            "pad_token_id": 0,
            "tie_word_embeddings": False,
            "use_cache": True,
        },
    ),
    Document(
        path="scheduler/scheduler_config.json",
        part="schedule",
        config=ScheduleConfig,
        classes=("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"),
        fields={
            "num_train_timesteps": "steps",
            "beta_start": "beta_start",
            "beta_end": "beta_end",
            "snr_shift_scale": "snr_shift",
            "rescale_betas_zero_snr": "zero_terminal_snr",
        },
        fixed={
            "beta_schedule": "scaled_linear",
            "prediction_type": "v_prediction",
            "set_alpha_to_one": True,
            "timestep_spacing": "trailing",
            "trained_betas": None,
        },
        absent={"prediction_type": "epsilon", "timestep_spacing": "leading", "rescale_betas_zero_snr": False},
        # The reference accepts and ignores clipping; trailing timesteps have no offset.
        unread={"clip_sample": False, "clip_sample_range": 1.0, "sample_max_value": 1.0, "steps_offset": 0},
    ),
)

MODEL_TYPES = [document.fixed["model_type"] for document in DOCUMENTS if "model_type" in document.fixed]
# rotary positions, learned table, patches in time -> ours
POSITION_FLAGS = ("use_rotary_positional_embeddings", "use_learned_positional_embeddings", "patch_size_t")
POSITIONS: dict[tuple[bool, ...], Position] = {
    (False, False, False): "sincos",
    (True, False, False): "rope",
    (True, True, False): "rope+learned",
    (True, False, True): "rope_slice",
}
PIPELINES: dict[Kind, str] = {
    "t2v": "CogVideoXPipeline",
    "i2v": "CogVideoXImageToVideoPipeline",
    "control": "CogVideoXFunControlPipeline",
    "inpaint": "CogVideoXFunInpaintPipeline",
}
# Pipelines for video input share the text-to-video weights; other names of Fun's are its own.
FITTING: dict[Kind, str] = {
    "t2v": r"CogVideoX(VideoToVideo)?Pipeline",
    "i2v": PIPELINES["i2v"],
    "control": r".*Control.*",
    "inpaint": r".*",
}
ADDS_NOISE = "add_noise_in_inpaint_model"  # of CogVideoX-Fun's transformers since 1.1
FUN_NOISE = 0.0563  # that VideoX-Fun then takes
GENERATION = "generation.json"  # ours: GenerationDefaults, name, trained_dtype; kind, where nothing else tells it
MAX_TEXT = 200  # characters of a name


def read_configs(folder: str | Path) -> ModelSpec:
    """The spec of a published model's folder, or the URL it lies below, with float32 activations.

    What no published file says, how to generate, comes from `generation.json`, else from the preset
    with the same transformer, else from the sample sizes.

    Raises: ConversionError listing every missing file and every value that is not supported.
    """
    return spec_of(*read_documents(folder), folder)


def spec_of(documents: Mapping[str, Json], problems: list[str], folder: str | Path) -> ModelSpec:
    """The spec of a folder's configuration files, of which some may have problems. Raises: as `read_configs`."""
    spec = parse_documents(documents, open_files(folder).name, problems)
    if problems:
        raise ConversionError(f"{folder} is not a model that is supported", problems)
    return spec


def read_documents(folder: str | Path) -> tuple[dict[str, Json], list[str]]:
    """The configuration files of a folder by path, and a line for each that is missing or no JSON.

    Raises: ConversionError where there is no such folder.
    """
    files = open_files(folder)
    documents: dict[str, Json] = {}
    problems: list[str] = []
    if not files.is_folder():
        raise ConversionError(f"cannot read {folder}", ["no such folder"])
    for path in ("model_index.json", *(d.path for d in DOCUMENTS), GENERATION):
        try:
            documents[path] = parse_json(files.bytes(path, MAX_BYTES))
        except FileNotFoundError:
            if path != GENERATION:
                problems.append(f"{path}: missing")
        except ValueError as error:
            problems.append(f"{path}: {error}")
    return documents, problems


def is_configuration(found: Json, document: Document) -> bool:
    """Whether a file is this configuration: by its class, or because it holds nothing but fields of it."""
    if "_class_name" in found or "model_type" in found:
        kind = found.get("model_type")
        return found.get("_class_name") in document.classes or kind == document.fixed.get("model_type", ())
    flags = set(POSITION_FLAGS) if document.part == "transformer" else set()
    return bool(found) and found.keys() <= {*document.fields, *document.fixed, *document.unread, *flags}


def check_class(found: Json, place: str | Path) -> None:
    """Raises ValueError where settings are, by their own words, those of no part of CogVideoX.

    Args:
      place: of the file of settings, which lies beside weights that would be read without it.
    """
    known = [*(name for document in DOCUMENTS for name in document.classes), *MODEL_TYPES]
    kind = found.get("_class_name", found.get("model_type"))
    if kind is not None and kind not in known:
        raise ValueError(
            f"{place} says that the weights beside it are {quoted(kind)}, which is not supported, only "
            f"{', '.join(known)} are; if it is of other files, move it"
        )


def write_configs(spec: ModelSpec, folder: str | Path) -> None:
    """Writes every configuration file of the published layout, and `generation.json`.

    Raises: ConversionError if the files cannot express the spec: frame batches other than the
      reference's, a combination of positions and patches that it does not have.
    """
    if spec.vae.taehv:
        raise ConversionError("the published files cannot express this model", ["its VAE is the tiny one of taehv"])
    documents = documents_of(spec)
    problems: list[str] = []
    back = parse_documents(documents, spec.name, problems)
    for part in ("transformer", "vae", "text_encoder", "schedule", "defaults"):
        ours, theirs = getattr(spec, part), getattr(back, part)
        for field in dataclasses.fields(ours):
            a, b = getattr(ours, field.name), getattr(theirs, field.name)
            if a != b:
                problems.append(f"{part}.{field.name}: {a!r} would be read as {b!r}")
    if problems:
        raise ConversionError("the published files cannot express this model", problems)
    for name, document in documents.items():
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


def parse_documents(documents: Mapping[str, Json], name: str, problems: list[str]) -> ModelSpec:
    """The spec of whatever files there are; what is wrong with them is added to `problems`."""
    parts = {}
    for document in DOCUMENTS:
        if document.path not in documents:
            continue
        found = documents[document.path]
        values = parse_fields(document, found, problems)
        if document.part == "transformer":
            _position(found, values, problems)
            values["control"] = _is_control(TransformerConfig(**values), documents)
        parts[document.part] = document.config(**values)

    for side in ("Down", "Up"):
        key = f"{side.lower()}_block_types"
        kinds = documents.get("vae/config.json", {}).get(key)
        only = f"CogVideoX{side}Block3D"
        if kinds is not None and not (isinstance(kinds, list) and kinds and all(kind == only for kind in kinds)):
            problems.append(f"vae/config.json: {key} {quoted(kinds)} is not supported, only {only!r} is")
    spec = ModelSpec(name=name, **parts)
    _check_parts(spec, documents, problems)
    noisy = documents.get("transformer/config.json", {}).get(ADDS_NOISE) is True
    return _generation(spec, documents.get(GENERATION, {}), noisy, problems)


def parse_fields(document: Document, found: Json, problems: list[str]) -> dict[str, Any]:
    """Our fields of one file; what is wrong with it is added to `problems`."""
    values = {}
    hints = {field.name: field.type for field in dataclasses.fields(document.config)}
    if document.classes and found.get("_class_name", document.classes[0]) not in document.classes:
        problems.append(f"{document.path}: _class_name {quoted(found['_class_name'])} is not supported")
    for theirs, ours in document.fields.items():
        if theirs not in found and theirs not in document.absent:
            continue
        value = found.get(theirs, document.absent.get(theirs))
        try:
            values[ours] = _checked(value, hints[ours], document.part, ours)
        except ValueError as error:
            problems.append(f"{document.path}: {theirs} {quoted(value)} is not supported{error}")
    for theirs, only in document.fixed.items():
        value = found.get(theirs, document.absent.get(theirs, only))
        if value != only:
            problems.append(f"{document.path}: {theirs} {quoted(value)} is not supported, only {only!r} is")
    return values


def _position(found: Json, values: dict[str, Any], problems: list[str]) -> None:
    options = {flag: found.get(flag) for flag in POSITION_FLAGS}
    position = POSITIONS.get(tuple(map(bool, options.values())))
    if position is None:
        said = ", ".join(f"{flag} {quoted(option)}" for flag, option in options.items())
        problems.append(f"transformer/config.json: {said} together are not supported")
    else:
        values["position"] = position


def _is_control(cfg: TransformerConfig, documents: Mapping[str, Json]) -> bool:
    """Whether as many channels again are of a control video: by the pipeline's class, as we wrote, or by the rest.

    Models of images have a learned table, or `ofs` where patches hold two frames. CogVideoX-Fun's have neither.
    """
    if not cfg.conditions_on_image:
        return False
    said = documents.get("model_index.json", {}).get("_class_name")
    if said is not None:
        return "control" in str(said).lower()
    if (kind := documents.get(GENERATION, {}).get("kind")) is not None:
        return kind == "control"
    return _looks_like_control(cfg)


def _looks_like_control(cfg: TransformerConfig) -> bool:
    return cfg.position != "rope+learned" and cfg.ofs_dim is None


def _check_parts(spec: ModelSpec, documents: Mapping[str, Json], problems: list[str]) -> None:
    """The parts must fit each other, and the sizes of a part, too."""
    cfg = spec.transformer
    if not problems:  # else a default may stand where a number was refused
        problems += misfits(spec)
    one = cfg.out_channels
    if cfg.in_channels not in (one, 2 * one, 2 * one + 1):
        problems.append(
            f"transformer/config.json: in_channels {cfg.in_channels} is not supported, only {one} (text), "
            f"{2 * one} (text and image, or control) and {2 * one + 1} (inpainting) are"
        )
    pairs = (
        ("out_channels", cfg.out_channels, "vae", "latent_channels", spec.vae.latent_channels),
        ("text_embed_dim", cfg.text_dim, "text_encoder", "d_model", spec.text_encoder.width),
    )
    for ours, a, part, theirs, b in pairs:
        if a != b and {"transformer/config.json", f"{part}/config.json"} <= documents.keys():
            problems.append(f"transformer/config.json: {ours} {a} does not fit {theirs} {b} of {part}/config.json")
    a, b = cfg.temporal_compression, spec.vae.temporal_compression
    if a != b and {"transformer/config.json", "vae/config.json"} <= documents.keys():
        problems.append(f"temporal_compression_ratio is {a} in transformer/config.json, {b} in vae/config.json")
    pipeline = documents.get("model_index.json", {}).get("_class_name")
    if "transformer/config.json" in documents and pipeline is not None:
        if not isinstance(pipeline, str) or not re.fullmatch(FITTING[spec.kind], pipeline):
            problems.append(
                f"model_index.json: _class_name {quoted(pipeline)} does not fit a transformer for {spec.kind}"
            )


def _generation(spec: ModelSpec, found: Json, noisy: bool, problems: list[str]) -> ModelSpec:
    preset = _like(spec, found.get("name", spec.name))
    if preset is not None:
        name, trained, defaults = preset.name, preset.trained_dtype, preset.defaults
    else:
        name, trained, defaults = spec.name, "float32", _own_defaults(spec, noisy)
    values = dataclasses.asdict(defaults) | {"name": name, "trained_dtype": trained, "kind": spec.kind}
    hints = {f.name: f.type for f in dataclasses.fields(GenerationDefaults)}
    hints |= {"name": str, "trained_dtype": DType, "sampler": typing.Literal[tuple(SAMPLERS)], "kind": Kind}
    for field, value in found.items():
        if field not in hints:
            problems.append(f"{GENERATION}: unknown field {quoted(field)}")
            continue
        try:
            values[field] = _checked(value, hints[field], "defaults", field)
        except ValueError as error:
            problems.append(f"{GENERATION}: {field} {quoted(value)} is not supported{error}")
    values = {field: values[field] for field in hints}
    if values.pop("kind") != spec.kind:
        problems.append(f"{GENERATION}: kind {quoted(found['kind'])} does not fit a transformer for {spec.kind}")
    name, trained = values.pop("name"), values.pop("trained_dtype")
    return dataclasses.replace(spec, name=name, trained_dtype=trained, defaults=GenerationDefaults(**values))


def _own_defaults(spec: ModelSpec, noisy: bool) -> GenerationDefaults:
    """Of a model that is no published one; CogVideoX-Fun's are trained at 8 frames a second and sampled by DDIM.

    `noisy`: whether its configuration asks for noise on what it inpaints.
    """
    cfg, scale, fun = spec.transformer, spec.vae.spatial_compression, spec.kind in ("control", "inpaint")
    size, unit = (cfg.sample_height, cfg.sample_width), 8 * (cfg.patch_t or 1)
    of_15 = PRESETS["1.5-5b"]
    if size == (of_15.transformer.sample_height, of_15.transformer.sample_width):  # the bounds of any size, not one
        size = of_15.defaults.height // scale, of_15.defaults.width // scale
    return GenerationDefaults(
        height=size[0] * scale,
        width=size[1] * scale,
        num_frames=(cfg.sample_frames - 1) // unit * unit + 1 if fun else cfg.sample_frames,
        fps=8 if cfg.patch_t is None or fun else 16,
        sampler="ddim" if cfg.position == "sincos" or fun else "dpm",
        image_noise=FUN_NOISE if noisy and spec.kind == "inpaint" else 0.0,
    )


def _like(spec: ModelSpec, name: Any) -> ModelSpec | None:
    """The preset with the same transformer; of several, the one of that name, else the one with most equal parts."""

    def likeness(preset: ModelSpec) -> tuple[bool, int]:
        parts = ("vae", "text_encoder", "schedule")
        return preset.name == name, sum(getattr(preset, part) == getattr(spec, part) for part in parts)

    found = [preset for preset in PRESETS.values() if preset.transformer == spec.transformer]
    return max(found, key=likeness, default=None)


def _checked(value: Any, hint: Any, part: str, field: str) -> Any:
    """`value`, out of JSON, as that field. Raises: ValueError if it cannot be; its text is what would be right."""
    try:
        typed = _typed(value, hint)
    except TypeError:
        raise ValueError("") from None
    if isinstance(typed, str) and not (typed.isprintable() and len(typed) <= MAX_TEXT):
        raise ValueError(f", only text of at most {MAX_TEXT} characters is")
    if right := wrong_size(part, field, typed):
        raise ValueError(f", only {right} is")
    return typed


def _typed(value: Any, hint: Any) -> Any:
    """`value`, out of JSON, as a field of type `hint`. Raises: TypeError if it is none."""
    if typing.get_origin(hint) is typing.Literal:
        if value in typing.get_args(hint):
            return value
    elif hint == int | None:
        return None if value is None else _typed(value, int)
    elif hint == tuple[int, ...]:
        if isinstance(value, list | tuple):
            return tuple(_typed(v, int) for v in value)
    elif isinstance(value, bool):
        if hint is bool:
            return value
    elif hint is float and isinstance(value, int | float):
        return float(value)
    elif hint is int and isinstance(value, float):
        if value.is_integer():
            return int(value)
    elif isinstance(value, hint):
        return value
    raise TypeError


def documents_of(spec: ModelSpec) -> dict[str, Json]:
    """Every file of the published layout but weights and tokenizer."""
    documents = {}
    for document in DOCUMENTS:
        config = getattr(spec, document.part)
        content = {theirs: getattr(config, ours) for theirs, ours in document.fields.items()}
        content |= dict(document.fixed) | dict(document.unread)
        if document.classes:
            content["_class_name"] = document.classes[0]
        documents[document.path] = content

    cfg = spec.transformer
    rotary, learned, _ = {position: flags for flags, position in POSITIONS.items()}[cfg.position]
    documents["transformer/config.json"] |= {
        "use_rotary_positional_embeddings": rotary,
        "use_learned_positional_embeddings": learned,
        # What 1.5 says, though it has the bias; without patches in time the reference obeys it.
        "patch_bias": cfg.patch_t is None,
    }
    levels = len(spec.vae.channels)
    documents["vae/config.json"] |= {
        "block_out_channels": list(spec.vae.channels),
        "down_block_types": ["CogVideoXDownBlock3D"] * levels,
        "up_block_types": ["CogVideoXUpBlock3D"] * levels,
    }
    documents["text_encoder/config.json"]["num_decoder_layers"] = spec.text_encoder.layers
    documents["model_index.json"] = {
        "_class_name": PIPELINES[spec.kind],
        "scheduler": ["diffusers", "CogVideoXDDIMScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
    }
    own = {"name": spec.name, "trained_dtype": spec.trained_dtype}
    if spec.kind in ("i2v", "control") and cfg.control != _looks_like_control(cfg):
        own["kind"] = spec.kind  # layouts without a model_index.json would not tell it
    documents[GENERATION] = dataclasses.asdict(spec.defaults) | own
    if not spec.defaults.image_noise:  # which older releases do not know
        del documents[GENERATION]["image_noise"]
    return documents
