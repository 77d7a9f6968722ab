"""What `cogvx inspect` tells of a model: its parts, who quantised them, its sizes, and the commands that use it."""

import collections
import contextlib
import dataclasses
from collections.abc import Mapping, Sequence

from cogvx_jax.configs import Kind, ModelSpec
from cogvx_jax.convert.checkpoint import open_parameters
from cogvx_jax.convert.commands import PROMPT, command, given_words, new_name, path_word
from cogvx_jax.convert.containers import names_weights, open_tensors
from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.convert.file_kinds import Asked, Facts
from cogvx_jax.convert.loose import LooseParts
from cogvx_jax.convert.lora_file import LoRAFile, counted
from cogvx_jax.convert.orbax import is_orbax
from cogvx_jax.convert.packed import packed_layers
from cogvx_jax.convert.quantized_layout import read_quantization
from cogvx_jax.convert.sources import PUBLISHED, Place, Source, find_layout, open_source
from cogvx_jax.convert.tables import COMPONENTS
from cogvx_jax.convert.tensors import Tensors, Unreadable, stored_as
from cogvx_jax.convert.tokenizer_files import has_tokenizer
from cogvx_jax.given import Given
from cogvx_jax.storage import below, open_files, parent_and_name

KINDS: Mapping[Kind, str] = {
    "t2v": "text to video (and video to video)",
    "i2v": "image to video",
    "control": "control video to video",
    "inpaint": "video or images and a mask to video",
}
INPUT_OPTIONS: Mapping[Kind, tuple[str, ...]] = {  # what `generate` needs beside the prompt
    "t2v": (),
    "i2v": ("--image", "IMAGE"),
    "control": ("--control", "VIDEO"),
    "inpaint": ("--video", "VIDEO", "--mask", "MASK"),
}
OTHERS = {"vae": ("--vae", "VAE"), "text_encoder": ("--text-encoder", "T5")}  # parts that another place may give


def is_model(asked: Asked) -> bool:
    return asked.is_folder and find_layout(asked.place) is not None


def tell_model(asked: Asked) -> Facts:
    layout = find_layout(asked.place)
    assert layout is not None
    said = "Orbax checkpoints of `cogvx convert`" if is_orbax(asked.place) else layout.name
    facts: Facts = {"format": f"a model in {said}" + " layout" * (said == "SAT's")}
    source = open_source(asked.place, asked.given)
    held = [part for part in COMPONENTS if has_part(source, part)]
    opened = Opened(source=source, asked=asked, held=held, raw=raw_tensors(source, held))
    return facts | numbers(opened.raw) | tell_opened(opened, plain=layout is PUBLISHED and not is_orbax(asked.place))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A model that is told about.

    held: its parts that are there.
    raw: tensors as they lie in the files of parts, by the parts' names; not arrays of Orbax, nor damaged files.
    """

    source: Source
    asked: Asked
    held: Sequence[str]
    raw: Mapping[str, Tensors]

    @property
    def has_tokenizer(self) -> bool:
        source = self.source
        place = source.own_tokenizer if isinstance(source, LooseParts) else source.tokenizer
        return place is not None and is_tokenizer(Asked(place=place))

    @property
    def is_packed(self) -> bool:
        """Whether another maker quantised weights of it."""
        return any(True for tensors in self.raw.values() for _ in packed_layers(tensors))

    def lacking(self) -> list[str]:
        """The options that give what its files lack."""
        words = [word for part, pair in OTHERS.items() if part not in self.held for word in pair]
        return words if self.has_tokenizer else [*words, "--tokenizer", "TOKENIZER"]


def _place_of(source: Source, part: str) -> Place | None:
    """Where a part of a model lies, or should."""
    places = source.places()
    return places.get(f"given {part}", places.get(part))


def has_part(source: Source, part: str) -> bool:
    """Whether a model's files hold a part, maybe a damaged one, or it is given."""
    if (place := _place_of(source, part)) is None:
        return False
    parent, name = parent_and_name(place)
    return open_files(parent).exists(name) or names_weights(place) or open_files(below(place, "orbax")).is_folder()


def raw_tensors(source: Source, parts: Sequence[str]) -> dict[str, Tensors]:
    """As in `Opened`."""
    if is_orbax(source.place):
        return {}
    places = collections.defaultdict[Place, list[str]](list)
    for part in parts:
        if (place := _place_of(source, part)) is not None:
            places[place].append(part)
    found = {}
    for place, names in places.items():
        with contextlib.suppress(ValueError):  # what is wrong is told with the model
            found[", ".join(names)] = open_tensors(place)
    return found


def tell_opened(opened: Opened, plain: bool) -> Facts:
    """Of a model: its sizes, and the commands that use it, or what keeps it from being opened.

    Args:
      plain: whether it lies as `cogvx convert --to diffusers` would write it.
    """
    source, asked, held = opened.source, opened.asked, opened.held
    try:
        spec, inferred, stored = source.spec(), source.inferred(), read_quantization(source)
        for part in held:
            open_parameters(source, spec, part)
    except ConversionError as error:
        said = str(error).splitlines()[0].removesuffix(":")
        return {"model": f"not one that opens: {said}", "why": list(error.problems)}
    except (ValueError, FileNotFoundError) as error:
        return {"model": f"not one that opens: {error}"}
    facts: Facts = {"model": spec.name, "kind": KINDS[spec.kind], "sizes": _sizes(spec)}
    if stored is not None:
        facts["quantised"] = f"{stored.name}, by `cogvx quantize`"
    if lacking := [part for part in COMPONENTS if part not in held]:
        facts["lacks"] = ", ".join(words_of(part) for part in lacking)
    if inferred:
        facts["taken for granted"] = inferred
    use = []
    if "transformer" in held:
        use.append(command("generate", PROMPT, *asked.as_model(), *opened.lacking(), *INPUT_OPTIONS[spec.kind]))
    elif parts := {part: place for part in held if (place := _place_of(source, part)) is not None}:
        use.append(use_parts(parts, asked.given))
    if stored is None and not spec.vae.taehv and (opened.is_packed or not plain):
        use += _conversion(opened)
    if stored is not None or is_orbax(asked.place):
        use.append(command("verify", asked.model))
    return _with_lora(opened, facts | {"use": use})


def use_parts(parts: Mapping[str, Place], given: Given) -> str:
    """The command that makes a video with parts of a model and another model's transformer."""
    words = [word for part, where in parts.items() for word in (OTHERS[part][0], path_word(where))]
    return command("generate", PROMPT, "--model", "MODEL", *words, *given_words(given.without_parts()))


def _with_lora(opened: Opened, facts: Facts) -> Facts:
    """Facts, with those of a LoRA that SAT trained beside the weights."""
    place = _place_of(opened.source, "transformer")
    for tensors in opened.raw.values():
        if place is not None and any(".matrix_A." in name for name in tensors):
            with contextlib.suppress(ValueError):
                told = f"{LoRAFile(place, tensors).told()}; it is merged where the model is opened"
                own = path_word(opened.asked.place), new_name(opened.asked.place, "-peft.safetensors")
                return facts | {"a LoRA of SAT's": told, "use": [*facts["use"], command("lora", "convert", *own)]}
    return facts


def _conversion(opened: Opened) -> list[str]:
    """The command that writes a model, or the parts of it that are there, in the published layout."""
    asked, has_tokenizer = opened.asked, opened.has_tokenizer
    parts = [part for part in opened.held if part != "text_encoder" or has_tokenizer]  # which is written with it
    if not parts:
        return []
    words = ["--dtype", "bfloat16"] if opened.is_packed else []
    if set(parts) != set(COMPONENTS):
        words += [word for part in parts for word in ("--parts", part)]
    name, given = new_name(asked.place, "-diffusers"), given_words(asked.given)
    return [command("convert", asked.model, name, "--to", "diffusers", *words, *given)]


def _sizes(spec: ModelSpec) -> str:
    cfg = spec.transformer
    return (
        f"{cfg.layers} layers, {cfg.heads} heads of {cfg.head_dim}, {cfg.in_channels} channels in and "
        f"{cfg.out_channels} out, positions {cfg.position}"
    )


def is_tokenizer(asked: Asked) -> bool:
    return asked.is_folder and has_tokenizer(asked.place)


def numbers(parts: Mapping[str, Tensors]) -> Facts:
    """How many tensors of which types there are, and what is quantised, of each part by its name, "" of a file."""
    facts = collections.defaultdict[str, list[str]](list)
    for part, tensors in parts.items():
        before = f"{part.replace('_', ' ')}: " if part else ""
        types = collections.Counter(stored_as(tensors[name]) for name in tensors)
        size = sum(span[2] for name in tensors for span in tensors[name].spans)
        said = ", ".join(f"{count} {kind}" for kind, count in types.most_common())
        facts["tensors"].append(f"{before}{len(tensors)}, {_size(size)}: {said or 'none'}")
        if quantised := _quantised(tensors, types):
            facts["quantised"].append(before + quantised)
        if bad := [name for name in tensors if isinstance(tensors[name], Unreadable)]:
            problem = tensors[bad[0]]
            assert isinstance(problem, Unreadable)
            facts["unreadable"].append(f"{before}{len(bad)}, such as {bad[0]}: {problem.problem}")
    return {name: lines[0] if len(lines) == 1 else lines for name, lines in facts.items()}


def _quantised(tensors: Tensors, types: Mapping[str, int]) -> str:
    packed = collections.Counter(packing.name for _, packing in packed_layers(tensors))
    packed.update({kind: count for kind, count in types.items() if " blocks" in kind})
    if packed:
        return ", ".join(f"{counted(count, 'weight')} as {name}" for name, count in packed.items())
    return "float8 without scales" if any("float8" in kind for kind in types) else ""


def _size(count: int) -> str:
    unit, power = next(((unit, power) for unit, power in (("GB", 9), ("MB", 6)) if count >= 10**power), ("kB", 3))
    return f"{count / 10**power:.3g} {unit}"


def words_of(component: str) -> str:
    return f"the {component.replace('_', ' ')}"
