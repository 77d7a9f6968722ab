"""What a file or folder of weights is, whoever made it, and how to use it: a row of `WEIGHTS` for each kind.

Only names, shapes and settings are read. The command line adds rows for what its verbs write; see `cli.own_files`.
"""

from collections.abc import Sequence

from cogvx_jax.configs import ModelSpec
from cogvx_jax.convert import tora
from cogvx_jax.convert.commands import PROMPT, command, given_words, lora_word, new_name, path_word, published_word
from cogvx_jax.convert.containers import SUFFIXES, Checkpoint, find_reader, has_weights, open_tensors
from cogvx_jax.convert.controlnet import holds_controlnet, open_controlnet
from cogvx_jax.convert.dialects import called, components, find_dialect
from cogvx_jax.convert.file_kinds import Asked, Facts, FileKind, NothingKnown, check_nothing_said, folders_above, tell
from cogvx_jax.convert.inspected_finishing import is_network, tell_network
from cogvx_jax.convert.inspected_models import (
    INPUT_OPTIONS,
    Opened,
    has_part,
    is_model,
    is_tokenizer,
    numbers,
    raw_tensors,
    tell_model,
    tell_opened,
    use_parts,
    words_of,
)
from cogvx_jax.convert.inspected_parts import check_of_parts, holds_parts, part_misfit, tell_parts
from cogvx_jax.convert.lora_file import FILES, LoRAFile, open_lora
from cogvx_jax.convert.lora_models import describe, fits, made_for, misfit
from cogvx_jax.convert.packed import unpacked
from cogvx_jax.convert.sat_folder import LATEST, find_states, find_tags, find_transformers, has_states
from cogvx_jax.convert.sources import Place, is_file, open_source
from cogvx_jax.convert.tables import COMPONENTS
from cogvx_jax.convert.tensors import Tensors
from cogvx_jax.presets import PRESETS
from cogvx_jax.storage import below, open_files, parent_and_name


def inspect(asked: Asked | Place, kinds: Sequence[FileKind] = ()) -> Facts:
    """What `cogvx inspect` prints, by name; see `file_kinds.tell`.

    Args:
      asked: a path or URL, maybe with what is said of it.
      kinds: that come before `WEIGHTS`.
    Raises: FileNotFoundError; ValueError, one sentence, for what is damaged or of no known kind.
    """
    return tell(asked if isinstance(asked, Asked) else Asked(place=asked), (*kinds, *WEIGHTS))


# SAT's folders with several tags.


def _has_tags(asked: Asked) -> bool:
    return len(_tags(asked.place)) > 1 or len(_transformers(asked.place)) > 1


def _transformers(place: Place) -> list[str]:
    """The folders of transformers in a folder of SAT's that says not which to use."""
    names = find_transformers(place)
    return [] if "transformer" in names or has_states(place) else names


def _tags(place: Place) -> list[Place]:
    """The folders of tags in a folder of SAT's that says not which to use."""
    for folder in (place, below(place, "transformer")):
        if open_files(folder).is_folder() and not open_files(folder).exists(LATEST):
            if tags := find_tags(folder):
                return [below(folder, tag) for tag in tags]
    return []


def _tell_tags(asked: Asked) -> Facts:
    if names := _transformers(asked.place):
        use = [command("inspect", path_word(below(asked.place, name)), *given_words(asked.given)) for name in names]
        mind = "each is a model with what lies beside it: give the folder of one"
        return {"format": "what SAT or DeepSpeed saved", "transformers": names, "mind": mind, "use": use}
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
    check_nothing_said(asked)
    try:
        found = LoRAFile(place, tensors) if tensors is not None else open_lora(place)
    except ValueError as error:
        if tensors is not None and not any("lora" in name.lower() for name in tensors):
            raise NothingKnown(f"{place} holds nothing that is known here; {called(list(tensors))}") from None
        raise ValueError(f"{place} cannot be read as a LoRA: {error}") from None
    facts = {name: value for name, value in describe(found).items() if name != "file"}
    model, spec = _model_of(found, asked)
    inputs = INPUT_OPTIONS[spec.kind] if spec is not None else ()
    use = [command("generate", PROMPT, "--model", model, "--lora", asked.name or lora_word(place), *inputs)]
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


# ControlNets.


def _is_controlnet(asked: Asked) -> bool:
    if not (_is_part_folder(asked) or _is_weights(asked)):
        return False
    try:
        return holds_controlnet(open_tensors(asked.place))
    except (ValueError, OSError):  # what is wrong is said by the kind that it may be of
        return False


def _tell_controlnet(asked: Asked) -> Facts:
    cfg = open_controlnet(asked.place).cfg
    model = next(
        (
            spec
            for spec in PRESETS.values()
            if spec.kind == "t2v"
            and spec.transformer.patch_t is None
            and (spec.transformer.width, spec.transformer.text_dim) == (cfg.state_width, cfg.text_dim)
        ),
        None,
    )
    name = "MODEL" if model is None else published_word(model.name) or "MODEL"
    facts: Facts = {"holds": "a ControlNet of TheDenk's"}
    facts |= numbers({"": open_tensors(asked.place)})
    facts["sizes"] = (
        f"{cfg.layers} blocks of {cfg.heads} heads of {cfg.head_dim}, for models of width {cfg.state_width}, "
        f"{cfg.latent_channels} channels and text of width {cfg.text_dim}"
    )
    words = ["--model", name, "--controlnet", lora_word(asked.place), "--control", "VIDEO"]
    return facts | {"use": [command("generate", PROMPT, *words)]}


# Tora's files.


def _is_tora(asked: Asked) -> bool:
    if "://" in str(asked.place) or not (
        _is_part_folder(asked) or _is_weights(asked) or open_files(asked.place).is_folder()
    ):
        return False
    try:
        return any(tora.parts_in(asked.place).values())
    except (ValueError, OSError):  # what is wrong is said by the kind that it may be of
        return False


def _tell_tora(asked: Asked) -> Facts:
    there = tora.parts_in(asked.place)
    if lacking := [part for part, files in there.items() if not files]:
        (part,) = there.keys() - set(lacking)
        return {"holds": f"Tora's {part}", "lacks": f"the {lacking[0]}, which is another file"}
    cfg = tora.open_tora(tora.find_files(asked.place)).cfg
    fits = (
        spec
        for spec in PRESETS.values()
        if (spec.transformer.width, spec.transformer.layers) == (cfg.width, cfg.layers)
    )
    model = next((published_word(spec.name) for spec in fits if spec.kind == "t2v"), None)
    facts: Facts = {"holds": "Tora's extractor and fusers"}
    facts["sizes"] = f"{cfg.layers} blocks of width {cfg.width}, {cfg.channels} channels of features"
    words = ["--model", model or "MODEL", "--tora", lora_word(asked.place), "--trajectory", "60,128 200,128"]
    return facts | {"use": [command("generate", PROMPT, *words)]}


# Parts of models, and files of weights.


def _is_part_folder(asked: Asked) -> bool:
    return asked.is_folder and has_weights(asked.place)


def _tell_part_folder(asked: Asked) -> Facts:
    tensors = Checkpoint(asked.place)
    facts: Facts = {"format": "a folder of one part" + ", with a tokenizer" * is_tokenizer(asked)}
    return facts | numbers({"": tensors}) | _parts(asked, tensors)


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
    facts |= numbers({"": tensors})
    return facts | (_parts(asked, tensors) if components(unpacked(tensors)) else _lora(asked, tensors))


def _parts(asked: Asked, tensors: Tensors) -> Facts:
    """Of a file or folder that holds parts of a model."""
    whole, given = unpacked(tensors), asked.given
    held = {part: dialect for part in COMPONENTS if (dialect := find_dialect(whole, part, given)) is not None}
    if not held:
        return _lora(asked, tensors)
    facts: Facts = {"holds": ", ".join(f"{words_of(part)} ({dialect.name} names)" for part, dialect in held.items())}
    above = _model_above(asked)
    if "transformer" not in held:
        check_of_parts(asked, held)
    if "transformer" in held:
        facts |= _transformer(asked, list(held))
        return facts | above | {"use": [*above.get("use", []), *facts.get("use", [])]}
    for part, dialect in held.items():
        found = dialect.find(whole, part, given)
        if found is not None and (problem := part_misfit(found, part)):
            return facts | {"model": problem}
    facts["use"] = [use_parts(dict.fromkeys(held, asked.place), given)]
    return facts | above | {"use": [*above.get("use", []), *facts.get("use", [])]}


def _transformer(asked: Asked, held: list[str]) -> Facts:
    if asked.is_folder:
        return {}  # the model above it tells how to use it
    if not is_file(asked.place):
        return {"mind": f"to be opened as a model, its name must end in {', '.join(SUFFIXES)}"}
    source = open_source(asked.place, asked.given)
    there = [part for part in COMPONENTS if part in held or has_part(source, part)]
    return tell_opened(Opened(source=source, asked=asked, held=there, raw=raw_tensors(source, there)), plain=False)


def _model_above(asked: Asked) -> Facts:
    """Of a part that lies in a model's folder: that model."""
    for above in folders_above(asked.place):
        if open_files(above).exists("model_index.json"):
            return {"part of": f"the model {above}", "use": list(tell_model(Asked(place=above)).get("use", []))[:1]}
    return {}


WEIGHTS = (  # the first that fits counts
    FileKind(name="checkpoints of SAT or DeepSpeed", fits=_has_tags, tell=_tell_tags, is_model=True, encloses=False),
    FileKind(name="a LoRA of SAT's", fits=_is_lora_of_sat, tell=_tell_lora_folder),
    FileKind(name="a ControlNet", fits=_is_controlnet, tell=_tell_controlnet),
    FileKind(name="Tora", fits=_is_tora, tell=_tell_tora),
    FileKind(name="a network that finishes videos", fits=is_network, tell=tell_network),
    FileKind(name="a model", fits=is_model, tell=tell_model, is_model=True),
    FileKind(name="a LoRA", fits=_is_lora_folder, tell=_tell_lora_folder),
    FileKind(name="a part of a model", fits=_is_part_folder, tell=_tell_part_folder, is_model=True),
    FileKind(name="parts of a model", fits=holds_parts, tell=tell_parts, is_model=True, encloses=False),
    FileKind(name="a tokenizer", fits=is_tokenizer, tell=_tell_tokenizer),
    FileKind(name="a file of weights", fits=_is_weights, tell=_tell_weights, is_model=True),
)
