"""What a file or folder is, whoever made it, and how to use it: a row of `WEIGHTS` for each kind of weights.

Only names, shapes and settings are read. The command line adds rows for what its verbs write; see `cli.own_files`.
"""

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from cogvx_jax.configs import Kind, ModelSpec
from cogvx_jax.convert import infer
from cogvx_jax.convert.checkpoint import open_parameters
from cogvx_jax.convert.commands import (
    PROMPT,
    command,
    given_words,
    lora_word,
    model_word,
    new_name,
    path_word,
    published_word,
    replacements,
)
from cogvx_jax.convert.containers import READERS, SUFFIXES, Checkpoint, find_reader, has_weights, open_tensors
from cogvx_jax.convert.dialects import components, find_dialect
from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.convert.lora_file import FILES, LoRAFile, counted, open_lora
from cogvx_jax.convert.lora_models import describe, fits, made_for, misfit
from cogvx_jax.convert.orbax import is_orbax
from cogvx_jax.convert.packed import packed_layers, unpacked
from cogvx_jax.convert.quantized_layout import read_quantization
from cogvx_jax.convert.sat_folder import LATEST, find_states, find_tags, has_states
from cogvx_jax.convert.sources import PUBLISHED, Place, Source, find_layout, is_file, open_source
from cogvx_jax.convert.tables import COMPONENTS
from cogvx_jax.convert.taehv import is_taehv
from cogvx_jax.convert.tensors import Tensors, Unreadable, stored_as
from cogvx_jax.convert.tokenizer_files import has_tokenizer
from cogvx_jax.given import NOTHING, Given
from cogvx_jax.presets import PRESETS
from cogvx_jax.storage import below, check_place, open_files, parent_and_name

Facts = dict[str, str | list[str]]
KINDS: Mapping[Kind, str] = {
    "t2v": "text to video (and video to video)",
    "i2v": "image to video",
    "control": "control video to video",
    "inpaint": "video or images and a mask to video",
}
INPUTS: Mapping[Kind, tuple[str, ...]] = {  # what `generate` needs beside the prompt
    "t2v": (),
    "i2v": ("--image", "IMAGE"),
    "control": ("--control", "VIDEO"),
    "inpaint": ("--video", "VIDEO", "--mask", "MASK"),
}
OTHERS = {"vae": ("--vae", "VAE"), "text_encoder": ("--text-encoder", "T5")}  # parts that another place may give
UP = 3  # folders above a file of which it may be a part


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked about.

    place: a path or a URL.
    model: how a command calls it as a model; None is by its place.
    given: as for a model, where the files do not tell it.
    models: further models that a LoRA may be for, by the names that commands call them.
    """

    place: Place
    model: str | None = None
    given: Given = NOTHING
    models: Mapping[str, ModelSpec] = dataclasses.field(default_factory=dict)

    @property
    def is_folder(self) -> bool:
        return open_files(self.place).is_folder()

    def at(self, place: Place) -> "Asked":
        return dataclasses.replace(self, place=place, model=None)

    def as_model(self) -> list[str]:
        """The options of a command that use it as a model, with what is given."""
        return ["--model", self.model or model_word(self.place), *given_words(self.given)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileKind:
    """A kind of file or folder.

    name: with its article, for messages.
    fits: whether a place is of this kind. Raises: ValueError for one that is, and is damaged.
    tell: facts by name; those under "use" are commands. Raises: as `fits`.
    """

    name: str
    fits: Callable[[Asked], bool]
    tell: Callable[[Asked], Facts]


def inspect(asked: Asked | Place, kinds: Sequence[FileKind] | None = None) -> Facts:
    """What `cogvx inspect` prints, by name; "use" says how to use it, a command each.

    Args:
      asked: a path or URL, maybe with what is said of it.
      kinds: the first that fits counts; None is `WEIGHTS`.
    Raises: FileNotFoundError; ValueError, one sentence, for what is damaged or of no known kind.
    """
    asked = asked if isinstance(asked, Asked) else Asked(place=asked)
    kinds, place = WEIGHTS if kinds is None else kinds, asked.place
    check_place(place)
    is_folder, (parent, name) = asked.is_folder, parent_and_name(place)
    if not is_folder and not open_files(parent).exists(name):
        raise FileNotFoundError(f"there is no file or folder {place}")
    kind = next((kind for kind in kinds if kind.fits(asked)), None)
    facts = _part_of(asked, kinds) if kind is None else kind.tell(asked)
    if facts is None:
        raise ValueError(_unknown(asked))
    use = list(facts.pop("use", []))
    found: Facts = {"folder" if is_folder else "file": str(place), **facts}
    if use:
        found["use"] = use
    if words := replacements(use):
        found["replace"] = words
    return found


def _unknown(asked: Asked) -> str:
    if asked.is_folder:
        names = open_files(asked.place).names()
        there = ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])])
        return f"{asked.place} is a folder of no known kind; there is {there or 'nothing'}"
    known = ", ".join(f"{reader.name} ({', '.join(reader.suffixes)})" for reader in READERS)
    return f"{asked.place} is a file of no known kind; files of weights are {known}"


def _part_of(asked: Asked, kinds: Sequence[FileKind]) -> Facts | None:
    """Of what lies in a folder of a known kind, such as a model's scheduler; None where that is not so."""
    for above in _above(asked.place):
        for kind in kinds:
            with contextlib.suppress(ValueError, OSError):  # of a damaged one, or of folders that are no user's own
                if kind.fits(asked.at(above)):
                    return {"holds": f"a part of {above}, {kind.name}", "use": [command("inspect", path_word(above))]}
    return None


def _above(place: Place) -> Iterator[Path]:
    """The folders that a path lies in as it is written, the next one first; none of a URL."""
    if "://" not in str(place):
        yield from list(Path(place).parents)[:UP]


# Models.


def _is_model(asked: Asked) -> bool:
    return asked.is_folder and find_layout(asked.place) is not None


def _tell_model(asked: Asked) -> Facts:
    layout = find_layout(asked.place)
    assert layout is not None
    said = "Orbax checkpoints of `cogvx convert`" if is_orbax(asked.place) else layout.name
    facts: Facts = {"format": f"a model in {said}" + " layout" * (said == "SAT's")}
    source = open_source(asked.place, asked.given)
    held = [part for part in COMPONENTS if _has(source, part)]
    facts |= _numbers(_raw(source, held))
    return facts | _model(source, asked, held, plain=layout is PUBLISHED and not is_orbax(asked.place))


def _place_of(source: Source, part: str) -> Place | None:
    """Where a part of a model lies, or should."""
    places = source.places()
    return places.get(f"given {part}", places.get(part))


def _has(source: Source, part: str) -> bool:
    """Whether a model's files hold a part, or it is given."""
    if (place := _place_of(source, part)) is None:
        return False
    parent, name = parent_and_name(place)
    return open_files(parent).exists(name) or has_weights(place) or open_files(below(place, "orbax")).is_folder()


def _raw(source: Source, parts: Sequence[str]) -> dict[str, Tensors]:
    """Tensors as they lie in the files of parts, by the parts' names; not arrays of Orbax, nor damaged files."""
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


def _model(source: Source, asked: Asked, held: Sequence[str], plain: bool) -> Facts:
    """Of a model: its sizes, and the commands that use it, or what keeps it from being opened.

    Args:
      plain: whether it lies as `cogvx convert --to diffusers` would write it.
    """
    try:
        spec, inferred = source.spec(), source.inferred()
        stored = read_quantization(source)
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
        facts["lacks"] = ", ".join(_words(part) for part in lacking)
    if inferred:
        facts["taken for granted"] = inferred
    use = []
    if "transformer" in held:
        use.append(command("generate", PROMPT, *asked.as_model(), *_lacking(source, held), *INPUTS[spec.kind]))
    use += _conversions(source, asked, spec, held, plain, stored is not None)
    if (lora := _lora_beside(source, held)) is not None:
        facts["a LoRA of SAT's"] = f"{lora.told()}; it is merged where the model is opened"
        use.append(command("lora", "convert", path_word(asked.place), new_name(asked.place, "-peft.safetensors")))
    return facts | {"use": use}


def _lora_beside(source: Source, held: Sequence[str]) -> LoRAFile | None:
    """The LoRA that SAT trained beside the weights of a model."""
    place = _place_of(source, "transformer")
    for tensors in _raw(source, held).values():
        if place is not None and any(".matrix_A." in name for name in tensors):
            with contextlib.suppress(ValueError):
                return LoRAFile(place, tensors)
    return None


def _lacking(source: Source, held: Sequence[str]) -> list[str]:
    """The options that give what a model's files lack."""
    words = [word for part, pair in OTHERS.items() if part not in held for word in pair]
    if _tokenizer_of(source) is None:
        words += ["--tokenizer", "TOKENIZER"]
    return words


def _tokenizer_of(source: Source) -> Place | None:
    """The folder of a model's tokenizer, where it is there."""
    try:
        place = source.tokenizer
    except FileNotFoundError:
        return None
    return place if _is_tokenizer(Asked(place=place)) else None


def _conversions(
    source: Source, asked: Asked, spec: ModelSpec, held: Sequence[str], plain: bool, is_stored: bool
) -> list[str]:
    """The commands that write a model in the published layout, and that compare it with its digests."""
    has_digests = is_stored or is_orbax(asked.place)
    verify = [command("verify", asked.model or model_word(asked.place))] if has_digests else []
    is_packed = any(True for raw in _raw(source, held).values() for _ in packed_layers(raw))
    has_tokenizer = _tokenizer_of(source) is not None
    parts = [part for part in held if part != "text_encoder" or has_tokenizer]  # which is written with it
    if is_stored or spec.vae.taehv or not parts or plain and not is_packed:
        return verify
    words = ["--dtype", "bfloat16"] if is_packed else []
    if set(parts) != set(COMPONENTS):
        words += [word for part in parts for word in ("--parts", part)]
    name, given = new_name(asked.place, "-diffusers"), given_words(asked.given)
    return [command("convert", asked.as_model()[1], name, "--to", "diffusers", *words, *given), *verify]


def _sizes(spec: ModelSpec) -> str:
    cfg = spec.transformer
    return (
        f"{cfg.layers} layers, {cfg.heads} heads of {cfg.head_dim}, {cfg.in_channels} channels in and "
        f"{cfg.out_channels} out, positions {cfg.position}"
    )


# SAT's folders with several tags.


def _has_tags(asked: Asked) -> bool:
    return len(_tags(asked.place)) > 1


def _tags(place: Place) -> list[Place]:
    """The folders of tags in a folder of SAT's that says not which to use."""
    for folder in (place, below(place, "transformer")):
        if open_files(folder).is_folder() and not open_files(folder).exists(LATEST):
            if tags := find_tags(folder):
                return [below(folder, tag) for tag in tags]
    return []


def _tell_tags(asked: Asked) -> Facts:
    tags = _tags(asked.place)
    return {
        "format": "what SAT or DeepSpeed saved",
        "tags": [parent_and_name(tag)[1] for tag in tags],
        "mind": f"no file {LATEST} says which tag to use: give the folder of one",
        "use": [command("inspect", path_word(tag), *given_words(asked.given)) for tag in tags],
    }


# LoRAs.


def _is_lora_of_sat(asked: Asked) -> bool:
    """Whether it is what SAT saves of a LoRA alone, without the model that it was trained on."""
    if not asked.is_folder or not has_states(asked.place):
        return False
    tensors = open_tensors(find_states(asked.place))
    return any(".matrix_A." in name for name in tensors) and not components(unpacked(tensors))


def _is_lora_folder(asked: Asked) -> bool:
    return asked.is_folder and any(open_files(asked.place).exists(name) for name in FILES)


def _tell_lora_folder(asked: Asked) -> Facts:
    return _lora(asked, None)


def _lora(asked: Asked, tensors: Tensors | None) -> Facts:
    """Of a LoRA, of a file's tensors, or of a folder. Raises: ValueError with their names for tensors that are none."""
    place = asked.place
    if asked.given:
        raise ValueError(f"{asked.given.said()[0]} tells about a model, and {asked.place} holds none; leave it out")
    try:
        found = LoRAFile(place, tensors) if tensors is not None else open_lora(place)
    except ValueError as error:
        if tensors is not None and not any("lora" in name.lower() for name in tensors):
            some = ", ".join([*list(tensors)[:3], *(["..."] if len(tensors) > 3 else [])])
            raise ValueError(f"{place} holds nothing that is known here; its tensors are called {some}") from None
        raise ValueError(f"{place} cannot be read as a LoRA: {error}") from None
    facts = {name: value for name, value in describe(found).items() if name != "file"}
    model, spec = _model_of(found, asked)
    inputs = INPUTS.get(spec.kind, ()) if spec is not None else ()
    lora = lora_word(place)
    use = [command("generate", PROMPT, "--model", model, "--lora", lora, *inputs)]
    if found.format.to != "peft":
        use.append(command("lora", "convert", path_word(place), new_name(place, "-peft.safetensors")))
    return {"holds": "a LoRA"} | facts | {"use": use}


def _model_of(file: LoRAFile, asked: Asked) -> tuple[str, ModelSpec | None]:
    """The name of a model that a LoRA fits, that it says it was made for if any; "MODEL" where none is known."""
    said, names = made_for(file).lower(), fits(file)
    names.sort(key=lambda name: name.lower() not in said)
    for name in names:
        if (word := published_word(name)) is not None:
            return word, next(spec for spec in PRESETS.values() if spec.name == name)
    for word, spec in asked.models.items():
        if misfit(file, spec) is None:
            return word, spec
    return "MODEL", None


# Parts of models, and files of weights.


def _is_part_folder(asked: Asked) -> bool:
    return asked.is_folder and has_weights(asked.place)


def _tell_part_folder(asked: Asked) -> Facts:
    tensors = Checkpoint(asked.place)
    facts: Facts = {"format": "a folder of one part" + ", with a tokenizer" * _is_tokenizer(asked)}
    return facts | _numbers({"": tensors}) | _parts(asked, tensors)


def _is_tokenizer(asked: Asked) -> bool:
    return asked.is_folder and has_tokenizer(asked.place)


def _tell_tokenizer(asked: Asked) -> Facts:
    use = ["--model", "MODEL", "--tokenizer", path_word(asked.place)]
    above = _model_above(asked)
    facts: Facts = {"holds": "a tokenizer"}
    return facts | above | {"use": [*above.get("use", []), command("generate", PROMPT, *use)]}


def _is_weights(asked: Asked) -> bool:
    """Whether it is a file that a reader takes, or the pointer of git-lfs to one."""
    parent, name = parent_and_name(asked.place)
    if asked.is_folder:
        return False
    try:
        find_reader(open_files(parent), name)
    except ValueError:
        return name.endswith(SUFFIXES)
    return True


def _tell_weights(asked: Asked) -> Facts:
    parent, name = parent_and_name(asked.place)
    tensors = open_tensors(asked.place)
    facts: Facts = {"format": find_reader(open_files(parent), name).name}
    facts |= _numbers({"": tensors})
    return facts | (_parts(asked, tensors) if components(unpacked(tensors)) else _lora(asked, tensors))


def _parts(asked: Asked, tensors: Tensors) -> Facts:
    """Of a file or folder that holds parts of a model."""
    whole, given = unpacked(tensors), asked.given
    held = {part: dialect for part in COMPONENTS if (dialect := find_dialect(whole, part, given)) is not None}
    if not held:
        return _lora(asked, tensors)
    facts: Facts = {"holds": ", ".join(f"{_words(part)} ({dialect.name} names)" for part, dialect in held.items())}
    above = _model_above(asked)
    if "transformer" in held:
        facts |= _transformer(asked, list(held))
    elif problem := _misfit(whole, held, given):
        return facts | {"model": problem}
    else:
        words = [word for part in held for word in (OTHERS[part][0], path_word(asked.place))]
        words += given_words(dataclasses.replace(given, vae=None, text_encoder=None))
        facts["use"] = [command("generate", PROMPT, "--model", "MODEL", *words)]
    return facts | above | {"use": [*above.get("use", []), *facts.get("use", [])]}


def _transformer(asked: Asked, held: list[str]) -> Facts:
    if asked.is_folder:
        return {}  # the model above it tells how to use it
    if not is_file(asked.place):
        return {"mind": f"to be opened as a model, its name must end in {', '.join(SUFFIXES)}"}
    source = open_source(asked.place, asked.given)
    return _model(source, asked, [part for part in COMPONENTS if part in held or _has(source, part)], plain=False)


def _misfit(tensors: Tensors, held: Mapping[str, object], given: Given) -> str | None:
    """Why parts do not open with a published model; None where they may."""
    makers = {"vae": infer.infer_vae, "text_encoder": infer.infer_text_encoder}
    for part in held:
        dialect = find_dialect(tensors, part, given)
        found = None if dialect is None else dialect.find(tensors, part, given)
        if found is None or part == "vae" and is_taehv(found):
            continue
        if bad := next(((key, entry) for key, entry in found.items() if isinstance(entry, Unreadable)), None):
            return f"not one that opens: {bad[0]}: {bad[1].problem}"
        try:
            makers[part](found, PRESETS["5b"])
        except ConversionError as error:
            return f"not one that opens: {error.problems[0]}"
    return None


def _model_above(asked: Asked) -> Facts:
    """Of a part that lies in a model's folder: that model."""
    for above in _above(asked.place):
        if open_files(above).exists("model_index.json"):
            return {"part of": f"the model {above}", "use": list(_tell_model(Asked(place=above)).get("use", []))[:1]}
    return {}


def _numbers(parts: Mapping[str, Tensors]) -> Facts:
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


def _words(component: str) -> str:
    return f"the {component.replace('_', ' ')}"


WEIGHTS = (  # the first that fits counts
    FileKind(name="checkpoints of SAT or DeepSpeed", fits=_has_tags, tell=_tell_tags),
    FileKind(name="a LoRA of SAT's", fits=_is_lora_of_sat, tell=_tell_lora_folder),
    FileKind(name="a model", fits=_is_model, tell=_tell_model),
    FileKind(name="a LoRA", fits=_is_lora_folder, tell=_tell_lora_folder),
    FileKind(name="a part of a model", fits=_is_part_folder, tell=_tell_part_folder),
    FileKind(name="a tokenizer", fits=_is_tokenizer, tell=_tell_tokenizer),
    FileKind(name="a file of weights", fits=_is_weights, tell=_tell_weights),
)
