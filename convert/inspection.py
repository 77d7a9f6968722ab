"""What a file or folder is, whoever made it, and how to use it. Only names, shapes and settings are read."""

import collections
from collections.abc import Mapping
from pathlib import Path

from cogvx_jax.configs import Kind, ModelSpec
from cogvx_jax.convert.containers import find_reader, open_tensors
from cogvx_jax.convert.dialects import components, find_dialect
from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.convert.lora_file import FILES, LoRAFile, open_lora
from cogvx_jax.convert.lora_models import describe
from cogvx_jax.convert.packed import packed_layers, unpacked
from cogvx_jax.convert.sources import Place, Source, find_layout, is_file, open_source
from cogvx_jax.convert.tables import COMPONENTS
from cogvx_jax.convert.tensors import Tensors
from cogvx_jax.given import NOTHING, Given
from cogvx_jax.storage import open_files, parent_and_name

Facts = dict[str, str | list[str]]
KINDS: Mapping[Kind, str] = {
    "t2v": "text to video (and video to video)",
    "i2v": "image to video",
    "control": "control video to video",
    "inpaint": "video or images and a mask to video",
}
INPUTS: Mapping[Kind, str] = {  # what `generate` needs beside the prompt
    "t2v": "",
    "i2v": "--image IMAGE",
    "control": "--control VIDEO",
    "inpaint": "--video VIDEO --mask MASK",
}
OTHERS = {"vae": "--vae VAE", "text_encoder": "--text-encoder T5 --tokenizer FOLDER"}  # of a model, where to give them


def inspect(place: Place, given: Given = NOTHING) -> Facts:
    """What `cogvx inspect` prints, by name; "use" says how to use it.

    Args:
      place: a file, a folder, or the URL of one.
      given: as for a model, where the files do not tell it.
    Raises: FileNotFoundError; ValueError, one sentence, for what is damaged or of no known kind.
    """
    parent, name = parent_and_name(place)
    if open_files(place).is_folder():
        return _folder(place, given)
    if not open_files(parent).exists(name):
        raise FileNotFoundError(f"there is no file or folder {place}")
    tensors = open_tensors(place)
    facts: Facts = {"file": str(place), "format": find_reader(open_files(parent), name).name}
    facts |= _numbers(tensors)
    held = components(unpacked(tensors))
    if held:
        return facts | _components(place, tensors, held, given)
    return facts | _lora(place, tensors)


def _folder(place: Place, given: Given) -> Facts:
    files = open_files(place)
    layout = find_layout(place)
    if layout is not None:
        facts: Facts = {
            "folder": str(place),
            "format": f"a model in {layout.name}" + " layout" * (layout.name == "SAT's"),
        }
        return facts | _model(open_source(place, given), place, list(COMPONENTS))
    if any(files.exists(name) for name in FILES):
        return {"folder": str(place)} | _lora(place, None)
    there = ", ".join(files.names()[:5])
    raise ValueError(f"{place} is a folder of no known kind; there is {there or 'nothing'}")


def _numbers(tensors: Tensors) -> Facts:
    """How many tensors of which types, and what is quantised."""
    types = collections.Counter(str(tensors[name].dtype) for name in tensors)
    size = sum(span[2] for name in tensors for span in tensors[name].spans)
    said = ", ".join(f"{count} {kind}" for kind, count in types.most_common())
    facts: Facts = {"tensors": f"{len(tensors)}, {size / 1e9:.3g} GB: {said or 'none'}"}
    packed = collections.Counter(packing.name for _, packing in packed_layers(tensors))
    if packed:
        facts["quantised"] = ", ".join(f"{count} weights as {name}" for name, count in packed.items())
    elif any("float8" in kind for kind in types):
        facts["quantised"] = "float8 without scales"
    return facts


def _components(place: Place, tensors: Tensors, held: list[str], given: Given) -> Facts:
    """Of a file that holds parts of a model."""
    whole = unpacked(tensors)
    naming = {part: dialect.name for part in held if (dialect := find_dialect(whole, part, given)) is not None}
    facts: Facts = {"holds": ", ".join(f"{_words(part)} ({name} names)" for part, name in naming.items())}
    if "transformer" in held and is_file(place):
        return facts | _model(open_source(place, given), place, held)
    flags = " ".join(OTHERS[part].split()[0] + f" {place}" for part in held if part in OTHERS)
    return facts | {"use": f"cogvx generate PROMPT --model MODEL {flags}"}


def _model(source: Source, place: Place, held: list[str]) -> Facts:
    try:
        spec, inferred = source.spec(), source.inferred()
    except ConversionError as error:
        return {
            "model": f"not one that opens: {str(error).splitlines()[0].removesuffix(':')}",
            "why": list(error.problems),
        }
    except ValueError as error:
        return {"model": f"not one that opens: {error}"}
    facts: Facts = {"model": spec.name, "kind": KINDS[spec.kind], "sizes": _sizes(spec)}
    if inferred:
        facts["taken for granted"] = inferred
    more = " ".join(flags for part, flags in OTHERS.items() if part not in held)
    command = " ".join(filter(None, ["cogvx generate PROMPT --model", str(place), more]))
    return facts | {"use": " ".join(filter(None, [command, INPUTS[spec.kind]]))}


def _sizes(spec: ModelSpec) -> str:
    cfg = spec.transformer
    return (
        f"{cfg.layers} layers, {cfg.heads} heads of {cfg.head_dim}, {cfg.in_channels} channels in and "
        f"{cfg.out_channels} out, positions {cfg.position}"
    )


def _lora(place: Place, tensors: Tensors | None) -> Facts:
    """Of a LoRA; of a file that is none either, the names of its tensors."""
    try:
        found = LoRAFile(Path(place), tensors) if tensors is not None else open_lora(place)
    except ValueError as error:
        if tensors is not None and not any("lora" in name.lower() for name in tensors):
            some = ", ".join([*list(tensors)[:3], *(["..."] if len(tensors) > 3 else [])])
            raise ValueError(f"{place} holds nothing that is known here; its tensors are called {some}") from None
        raise ValueError(f"{place} cannot be read as a LoRA: {error}") from None
    facts = {name: value for name, value in describe(found).items() if name != "file"}
    return {"holds": "a LoRA"} | facts | {"use": f"cogvx generate PROMPT --lora {place}"}


def _words(component: str) -> str:
    return f"the {component.replace('_', ' ')}"
