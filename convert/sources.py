"""What a model can be loaded from: a row of `LAYOUTS` for each way in which its files may lie.

A source gives the model's spec, its components' tensors under their published names, and where its tokenizer is.
Whatever reads a model, in whole or in part, asks here and nowhere else.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cogvx_jax.configs import ModelSpec
from cogvx_jax.convert import infer
from cogvx_jax.convert.applies import check_given, check_position
from cogvx_jax.convert.config import DOCUMENTS, parse_documents, read_documents, spec_of
from cogvx_jax.convert.containers import SUFFIXES, Checkpoint, has_weights
from cogvx_jax.convert.dialects import open_component
from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.convert.loose import CONFIGS, LooseParts, Place
from cogvx_jax.convert.packed import unpacked
from cogvx_jax.convert.sat_folder import find_states, find_transformers, has_states
from cogvx_jax.convert.tables import COMPONENTS
from cogvx_jax.convert.taehv import is_taehv, told_taehv, with_taehv
from cogvx_jax.convert.tensors import Elsewhere, Tensors
from cogvx_jax.convert.told import settings_beside, told_lines
from cogvx_jax.given import NOTHING, Given
from cogvx_jax.json_files import MAX_BYTES, Json, parse_json, quoted
from cogvx_jax.storage import below, open_files, parent_and_name


class Source(Protocol):
    """A model in files; opening it reads nothing yet."""

    @property
    def place(self) -> Place: ...

    @property
    def tokenizer(self) -> Place:
        """The folder of its files."""

    def spec(self) -> ModelSpec:
        """Raises: ConversionError listing everything that is missing or not supported."""

    def tensors(self, component: str) -> Tensors:
        """By published names. Raises: ConversionError; ValueError, one sentence."""

    def inferred(self) -> list[str]:
        """A line for everything in the spec that no file says."""

    def places(self) -> dict[str, Place]:
        """Its files and folders of files, by a name of each."""


PARTS = {"vae": infer.infer_vae, "text_encoder": infer.infer_text_encoder}  # that may be given -> their sizes
FOLDERS = ("", "transformer", "vae", "text_encoder", "tokenizer", "scheduler")  # of the published layout


@dataclasses.dataclass(frozen=True)
class PublishedFolder:
    """`Source` in the layout of diffusers, or of `cogvx convert`, whose configurations lie in the same places."""

    place: Place
    given: Given = NOTHING

    @property
    def tokenizer(self) -> Place:
        return self.given.tokenizer or below(self.place, "tokenizer")

    def spec(self) -> ModelSpec:
        return self._told[0]

    def inferred(self) -> list[str]:
        return self._told[1]

    @functools.cached_property
    def _told(self) -> tuple[ModelSpec, list[str]]:
        """The spec, and what of it no file says, which is of parts that are given."""
        if not self.given:
            return spec_of(*self._documents(), self.place), []
        others = {part: place for part in PARTS if (place := self._other(part)) is not None}
        has_taehv = "vae" in others and is_taehv(self.tensors("vae"))
        check_given(self.given, self.place, files=[*others.values()], has_lora=False, has_taehv=has_taehv)
        documents, problems = self._documents()
        for document in DOCUMENTS:
            documents[document.path] = documents.get(document.path, {}) | self.given.of_document(document.path)
        check_position(self.given, documents[CONFIGS["transformer"]], self.place)
        spec = parse_documents(documents, parent_and_name(self.place)[1], problems)
        if problems:
            raise ConversionError(f"{self.place} is not a model that is supported", problems)
        lines = []
        for part, place in others.items():
            if part == "vae" and has_taehv:
                lines.append(told_taehv(self.given))
                continue
            path = f"{part}/config.json"
            inferred, (beside, where) = PARTS[part](self.tensors(part), spec), settings_beside(place, part)
            said = self.given.of_document(path)
            documents[path] = inferred | beside | said
            lines += told_lines(part, inferred, beside, where, said, spec.name, has_file=True)
        spec = parse_documents(documents, spec.name, problems)
        if problems:
            raise ConversionError(f"{self.place} with another part is not a model that is supported", problems)
        return with_taehv(spec, self.given) if has_taehv else spec, lines

    def _documents(self) -> tuple[dict[str, Json], list[str]]:
        """The configurations by path, and a line for what is wrong with each."""
        return read_documents(self.place)

    def tensors(self, component: str) -> Tensors:
        if (place := self._other(component)) is not None:
            return open_component(place, component, self.given)
        return self._own(component)

    def _own(self, component: str) -> Tensors:
        return unpacked(Checkpoint(below(self.place, component)))

    def places(self) -> dict[str, Place]:
        said = {"given vae": self.given.vae, "given text_encoder": self.given.text_encoder}
        folders = {part: below(self.place, part) if part else self.place for part in FOLDERS}
        return folders | {name: place for name, place in said.items() if place is not None}

    def _other(self, component: str) -> str | None:
        """A place that is given for a component, in place of the folder's own."""
        return {"vae": self.given.vae, "text_encoder": self.given.text_encoder}.get(component)


CHANGES = "changes.json"  # of a folder that holds what differs from a model beside it


@dataclasses.dataclass(frozen=True)
class ChangedFolder(PublishedFolder):
    """`Source` of a folder that holds only what differs from a model in the published layout, which lies beside it.

    Its file `changes.json` says {"of": NAME}, that model's folder. Fields of configurations and tensors that are here
    come before those of that model.
    """

    @functools.cached_property
    def _base(self) -> PublishedFolder:
        """Raises: ConversionError for a file that names no model beside the folder."""
        files, place = open_files(self.place), below(self.place, CHANGES)
        try:
            found = parse_json(files.bytes(CHANGES, MAX_BYTES)).get("of")
        except ValueError as error:
            raise ConversionError(f"{place} cannot be read", [str(error)]) from None
        if not isinstance(found, str) or not re.fullmatch(r"[\w-][\w.-]*", found, re.ASCII):
            raise ConversionError(f"{place} cannot be read", [f"of {quoted(found)} is no name of a folder beside it"])
        parent, own = parent_and_name(self.place)
        base = below(parent, found)
        if found == own or not PUBLISHED.fits(base):
            raise ConversionError(
                f"{self.place} holds what differs from another model", [f"{base} is no model in the published layout"]
            )
        return PublishedFolder(base)

    @property
    def tokenizer(self) -> Place:
        return self.given.tokenizer or self._base.tokenizer

    def _documents(self) -> tuple[dict[str, Json], list[str]]:
        files, (documents, problems) = open_files(self.place), self._base._documents()
        for path in [*documents]:
            try:
                if files.exists(path):
                    documents[path] = documents[path] | parse_json(files.bytes(path, MAX_BYTES))
            except ValueError as error:
                problems.append(f"{path}: {error}")
        return documents, problems

    def _own(self, component: str) -> Tensors:
        base, place = self._base.tensors(component), below(self.place, component)
        if not has_weights(place):
            return base
        own = unpacked(Checkpoint(place))
        if spare := own.keys() - base.keys():
            raise ConversionError(f"{place} does not fit {self._base.place}", [f"spare: {name}" for name in spare])
        return base.of({**base, **{name: Elsewhere(own[name], own.files) for name in own}})

    def places(self) -> dict[str, Place]:
        others, base = super().places(), self._base.places()
        return others | {part: base[part] for part in FOLDERS[1:] if not open_files(others[part]).is_folder()}


def is_file(place: Place) -> bool:
    """Whether it is a file of weights, by its suffix."""
    parent, name = parent_and_name(place)
    return name.endswith(SUFFIXES) and open_files(parent).exists(name)


def open_file(place: Place, given: Given) -> Source:
    """One file of weights, or a folder of them, of a transformer at least."""
    return LooseParts(place, {"transformer": place}, given)


SINGLE = {component: tuple(f"{component}{suffix}" for suffix in SUFFIXES) for component in COMPONENTS}


def is_single_folder(place: Place) -> bool:
    files = open_files(place)
    return any(files.exists(name) for name in SINGLE["transformer"])


def open_single_folder(place: Place, given: Given) -> Source:
    """A folder with a file for each component, such as `transformer.safetensors`."""
    files = open_files(place)
    found = {
        component: below(place, name)
        for component, names in SINGLE.items()
        for name in reversed(names)
        if files.exists(name)
    }
    return LooseParts(place, found, given, configs=(place,))


def is_sat_folder(place: Place) -> bool:
    return has_states(place) or bool(find_transformers(place))


def open_sat_folder(place: Place, given: Given) -> Source:
    """A folder of SAT's: as the authors publish it, as SAT saves it, or of one tag; or one of DeepSpeed's.

    Raises: FileNotFoundError for a folder with several transformers, as the authors publish 1.5.
    """
    top = place
    if has_states(place):
        parent, name = parent_and_name(place)
        top = parent if name == "transformer" else place
        inner = place
    else:
        names = find_transformers(place)
        inner = below(place, "transformer" if "transformer" in names else names[0])
        if len(names) > 1 and "transformer" not in names:
            raise FileNotFoundError(f"{place} holds {' and '.join(names)}; give the folder of one, such as {inner}")
    found = {"transformer": find_states(inner)}
    for folder in (parent_and_name(top)[0], top):
        for component, name in SAT_PARTS:
            if is_part(below(folder, name)):
                found[component] = below(folder, name)
    return LooseParts(place, found, given, configs=(top,), searched=tuple(component for component, _ in SAT_PARTS))


def is_transformer_folder(place: Place) -> bool:
    """Whether it is a folder of a published transformer that lies in no model's folder."""
    if not has_weights(place) or open_files(parent_and_name(place)[0]).exists("model_index.json"):
        return False
    try:
        found = parse_json(open_files(place).bytes("config.json", MAX_BYTES))
    except (ValueError, OSError):
        return False
    document = next(document for document in DOCUMENTS if document.part == "transformer")
    return found.get("_class_name") in document.classes


# Where other parts lie, in a folder of SAT's or the one above it; the last one found counts.
SAT_PARTS = (
    ("vae", "3d-vae.pt"),
    ("vae", "vae/3d-vae.pt"),
    ("text_encoder", "text_encoder"),
    ("text_encoder", "t5-v1_1-xxl"),
)


def is_part(place: Place) -> bool:
    """Whether it is a file, or a folder with weights in it."""
    parent, name = parent_and_name(place)
    return open_files(parent).exists(name) or has_weights(place)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """A way in which the files of a model may lie.

    name: for messages.
    fits: whether a place is of this layout.
    open: the source there.
    """

    name: str
    fits: Callable[[Place], bool]
    open: Callable[[Place, Given], Source]


PUBLISHED = Layout(
    name="the published layout",
    fits=lambda place: open_files(place).exists("model_index.json"),
    open=PublishedFolder,
)
LAYOUTS = (  # the first that fits counts
    PUBLISHED,
    Layout(
        name="changes to the model beside it",
        fits=lambda place: open_files(place).exists(CHANGES),
        open=ChangedFolder,
    ),
    Layout(name="a file for each part", fits=is_single_folder, open=open_single_folder),
    Layout(name="SAT's", fits=is_sat_folder, open=open_sat_folder),
    Layout(name="a transformer's folder", fits=is_transformer_folder, open=open_file),
    Layout(name="one file", fits=is_file, open=open_file),
)


def find_layout(place: Place) -> Layout | None:
    """The row of `LAYOUTS` that a place is of."""
    return next((layout for layout in LAYOUTS if layout.fits(place)), None)


def open_source(place: "Place | Source", given: Given = NOTHING) -> Source:
    """The model in a place; of no known layout, it is taken for the published one, whose errors say what is missing."""
    if not isinstance(place, str | Path):
        return place
    return (find_layout(place) or PUBLISHED).open(place, given)


def read_spec(place: "Place | Source") -> ModelSpec:
    """The spec of the model in a place, with float32 activations; see `Source.spec`."""
    return open_source(place).spec()
