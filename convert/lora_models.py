"""Which models a LoRA file fits by its shapes, and which it was made for by all that it tells."""

import collections
import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path

from cogvx_jax.configs import ModelSpec
from cogvx_jax.convert.checkpoint import component_parameters
from cogvx_jax.convert.lora_file import LoRAFile, Module, counted
from cogvx_jax.convert.lora_formats import LINEAR, PATCH, numbered
from cogvx_jax.convert.tables import Parameter
from cogvx_jax.json_files import quoted
from cogvx_jax.presets import PRESETS
from cogvx_jax.storage import open_files, parent_and_name

# CogVideoX-Fun's weights that differ in shape from the model they come from: name -> preset, channels into the patches.
FUN = {
    "CogVideoX-Fun-2b-InP": ("2b", 33),
    "CogVideoX-Fun-V1.1-2b-Control": ("2b", 32),
    "CogVideoX-Fun-5b-InP": ("5b", 33),
    "CogVideoX-Fun-V1.1-5b-Control": ("5b", 32),
    "CogVideoX-Fun-V1.5-5b-InP": ("1.5-5b", 33),
}
HINTS = {  # in the name of a file or of the model in its metadata -> what it was made for
    r"dimensionx|orbit": "CogVideoX-5b-I2V by DimensionX, whose alpha is 1",
    r"videox[-_ ]?fun": "CogVideoX-Fun",
    r"1\.5[-_]?5b[-_]?i2v": "CogVideoX1.5-5B-I2V",
    r"1\.5[-_]?5b": "CogVideoX1.5-5B",
    r"(?<![\d.])5b[-_]?i2v": "CogVideoX-5b-I2V",
    r"(?<![\d.])5b": "CogVideoX-5b",
    r"(?<![\d.])2b": "CogVideoX-2b",
}
DOUBTFUL_RANKS = (128, 256)  # of SAT's recipes, whose exporter leaves out that alpha is 1
BASE_KEYS = ("base_model_name_or_path", "base_model", "ss_sd_model_name", "ss_base_model_version", "modelspec.title")


def describe(file: LoRAFile) -> dict[str, str | list[str]]:
    """What `cogvx lora info` prints."""
    facts: dict[str, str | list[str]] = {"file": str(file.path), "dialect": file.format.name}
    if file.modules:
        facts |= {"rank": file.ranks_text(), "alpha": file.alphas_text(), "scale": file.scales_text()}
    if file.distilled is not None:
        facts["for"] = f"{file.distilled} ({file.distilled.method})"
    facts["modules"] = _layers(file)
    if file.differences:
        facts["differences"] = f"{len(file.differences)} whole ones, such as of {next(iter(file.differences))}"
    facts |= {"fits": ", ".join(fits(file)) or "no published model", "made for": made_for(file)}
    if said := doubts(file):
        facts["mind"] = said
    return facts


def _layers(file: LoRAFile) -> list[str]:
    """How many there are, and a line for each kind of layer: its name, features in and out."""
    grouped: dict[str, list[Module]] = collections.defaultdict(list)
    for name, module in file.modules.items():
        kind = numbered(name)[0]
        grouped[kind.replace("{i}", "*") if kind in LINEAR else ""].append(module)
    count, others = len(file.modules), grouped.pop("", [])
    lines = [f"{count} in {counted(len(file.blocks), 'block')}" if file.blocks else f"{count}"]
    for name, modules in grouped.items():
        sizes = " or ".join(dict.fromkeys(f"{module.features} x {module.out}" for module in modules))
        lines.append(f"{name}, {sizes}" + f", {len(modules)} times" * (len(modules) > 1))
    if others:
        lines.append(f"{len(others)} of no CogVideoX model, such as {others[0].name}")
    return lines


def doubts(file: LoRAFile, spec: ModelSpec | None = None) -> list[str]:
    """Sentences about what may not be as its maker meant; for one model or, with None, for any."""
    found = []
    if file.ignored:
        found.append(
            f"{counted(len(file.ignored), 'tensor')} of a text encoder ({file.ignored[0]}, ...) left out; "
            "only the transformer is adapted"
        )
    if file.idle_alphas:
        found.append(
            f"the alpha of {file.idle_alphas[0]}{' and others' * (len(file.idle_alphas) > 1)} has no effect, as in "
            "ComfyUI: a whole difference takes none"
        )
    doubtful = [m for m in file.modules.values() if not m.alpha.stored and m.rank in DOUBTFUL_RANKS]
    if doubtful and file.format.alpha.default is None:
        rank = doubtful[0].rank
        found.append(
            f"it stores no alpha and has the rank {rank}, which counts as alpha {rank}; one of SAT's exporter needs "
            "alpha=1, one of the authors' diffusers trainer alpha=64 (`cogvx lora convert --alpha` keeps it)"
        )
    if spec is not None and spec.kind in ("t2v", "i2v") and "fun" not in spec.name.lower() and of_fun(file):
        found.append(f"it looks made for a model of CogVideoX-Fun; it fits {spec.name} by shape, but may do little")
    return found


def fits(file: LoRAFile) -> list[str]:
    """The published models, and those of CogVideoX-Fun, that have all its modules in these shapes."""
    return [name for name, spec in _known().items() if misfit(file, spec) is None]


def made_for(file: LoRAFile) -> str:
    """What it was trained on, by its settings, its name, its dialect, or its width and number of blocks."""
    for key in BASE_KEYS:
        said = file.said.get(key, file.metadata.get(key))
        if isinstance(said, str) and said:
            return f"{quoted(said)} (its {key})"
    folder, name = parent_and_name(file.path)
    stem = Path(name).stem
    if hint := _hint(stem if stem not in GENERIC else open_files(folder).name):
        return f"{hint} (its name)"
    if file.format.to == "fun":
        return "CogVideoX-Fun (the naming of its trainer)"
    return sizes(file)


def of_fun(file: LoRAFile) -> bool:
    """Whether it looks made for a model of CogVideoX-Fun."""
    return "fun" in made_for(file).lower()


GENERIC = {"pytorch_lora_weights", "adapter_model", "mp_rank_00_model_states", "lora", "model"}


def _hint(name: str) -> str | None:
    return next((words for pattern, words in HINTS.items() if re.search(pattern, name.lower())), None)


def looks_made_for(file: LoRAFile) -> str:
    """A guess by shapes, for the message that it does not fit."""
    models = fits(file) if PATCH in file.modules else []
    return " or ".join(models) or sizes(file)


def sizes(file: LoRAFile) -> str:
    """A guess at the model, by width and number of blocks."""
    widths = {module.features for name, module in file.modules.items() if ".attn1." in name}
    if not file.blocks or len(widths) != 1:
        return "no CogVideoX model"
    width, layers = widths.pop(), file.blocks[-1] + 1
    found = {"width": width, "layers": layers}
    like = [
        spec.name
        for spec in PRESETS.values()
        if {"width": spec.transformer.width, "layers": spec.transformer.layers} == found
    ]
    size = f"width {width} and {counted(layers, 'layer')}"
    return f"{' or '.join(like)} ({size})" if like else f"a model of {size}"


def misfit(file: LoRAFile, spec: ModelSpec) -> str | None:
    """Why a file cannot be of this model, a clause; None where it can be."""
    modules, tensors = kernels(spec), parameters(spec)
    unknown = [name for name in file.modules if name not in modules]
    unknown = sorted(unknown + [name for name in file.differences if name not in tensors], key=_in_order)
    if unknown and len(unknown) == len(file.modules) + len(file.differences):
        return f"it matches no module of {spec.name}, such as {unknown[0]}"
    if unknown:
        return f"it adapts {unknown[0]}, which {spec.name} of {spec.transformer.layers} layers does not have"
    for name, module in sorted(file.modules.items()):
        parameter = modules[name][0]
        ours, windows = parameter.shape[-2:], {(), (1, 1), parameter.their_shape[2:]}
        if (module.features, module.out) != ours or module.window not in windows:
            theirs = f"{module.features} x {module.out}"
            return f"it does not fit {spec.name}: its {name} is {theirs}, the model's {ours[0]} x {ours[1]}"
    for name, difference in file.differences.items():
        if difference.shape != (ours := tensors[name][0].their_shape):
            return f"it does not fit {spec.name}: its difference of {name} is {difference.shape}, the model's {ours}"
    return None


def kernels(spec: ModelSpec) -> dict[str, tuple[Parameter, int]]:
    """Names of the published transformer's linear layers and patch convolution -> our kernel and the block in it."""
    return {
        name.removesuffix(".weight"): found
        for name, found in parameters(spec).items()
        if numbered(name.removesuffix(".weight"))[0] in LINEAR and name.endswith(".weight")
    }


@functools.cache
def parameters(spec: ModelSpec) -> Mapping[str, tuple[Parameter, int]]:
    """Names of the published transformer's tensors -> our parameter and the block in it."""
    return {key: (p, i) for p in component_parameters(spec, "transformer") for i, key in enumerate(p.keys)}


@functools.cache
def _known() -> Mapping[str, ModelSpec]:
    specs = {spec.name: spec for spec in PRESETS.values()}
    for name, (preset, channels) in FUN.items():
        transformer = dataclasses.replace(PRESETS[preset].transformer, in_channels=channels)
        specs[name] = dataclasses.replace(PRESETS[preset], name=name, transformer=transformer)
    return specs


def _in_order(module: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d{1,9}", module)]
