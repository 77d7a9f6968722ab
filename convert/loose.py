"""A model whose parts are files of their own: which part lies where, and its spec, put together of what the files tell.

The spec comes from published configurations beside the files, where there are any, from the tensors' shapes, and from
what the user says; `inferred` lists what no file says.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

from cogvx_jax.configs import DTYPES, ModelSpec
from cogvx_jax.convert import infer
from cogvx_jax.convert.config import (
    DOCUMENTS,
    GENERATION,
    check_class,
    documents_of,
    is_configuration,
    parse_documents,
)
from cogvx_jax.convert.dialects import components, open_component, open_whole
from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.convert.taehv import is_taehv, with_taehv
from cogvx_jax.convert.tensors import Tensors
from cogvx_jax.given import NOTHING, Given
from cogvx_jax.json_files import MAX_BYTES, Json, parse_json
from cogvx_jax.presets import PRESETS
from cogvx_jax.storage import below, open_files, parent_and_name

Place = str | Path
TOKENIZERS = ("tokenizer.json", "spiece.model")
DTYPE_OF = "patch_embed.text_proj.weight"  # by whose type a file's is known
CONFIGS = {document.part: document.path for document in DOCUMENTS}  # part of ModelSpec -> published file


@dataclasses.dataclass(frozen=True, eq=False)
class LooseParts:
    """`Source` of parts that lie apart.

    place: what the user named.
    found: component -> its file, or the folder of its files; what is missing has no entry.
    given: comes before all that was found.
    configs: folders in which published configurations may lie under their published names.
    """

    place: Place
    found: Mapping[str, Place]
    given: Given = NOTHING
    configs: tuple[Place, ...] = ()
    _opened: dict[str, Tensors] = dataclasses.field(default_factory=dict)

    @property
    def tokenizer(self) -> Place:
        """Raises: FileNotFoundError where there is none."""
        if self.given.tokenizer is not None:
            return self.given.tokenizer
        text = self._places.get("text_encoder")
        near = [] if text is None else [text, below(text, "tokenizer"), below(parent_and_name(text)[0], "tokenizer")]
        for folder in (*near, below(self.place, "tokenizer")):
            if any(open_files(folder).exists(name) for name in TOKENIZERS):
                return folder
        raise FileNotFoundError(
            f"{self.place} has no tokenizer; give tokenizer, a folder with {' or '.join(TOKENIZERS)} of T5"
        )

    @functools.cached_property
    def _places(self) -> dict[str, Place]:
        """Component -> where it is, once it is settled which file holds what."""
        said = {"vae": self.given.vae, "text_encoder": self.given.text_encoder}
        places = dict(self.found) | {component: place for component, place in said.items() if place is not None}
        main = self.found.get("transformer")
        if main is not None and len(places) < 3:  # one file may hold more than the transformer
            held = components(open_whole(main, self.given))
            places |= {component: main for component in held if component not in places}
        return places

    def tensors(self, component: str) -> Tensors:
        if component not in self._places:
            flag = {"vae": "vae", "text_encoder": "text_encoder"}.get(component)
            more = f"; give {flag}, a file or a folder" if flag else ""
            raise FileNotFoundError(f"{self.place} holds no {component.replace('_', ' ')}{more}")
        if component not in self._opened:
            self._opened[component] = open_component(self._places[component], component, self.given)
        return self._opened[component]

    def spec(self) -> ModelSpec:
        return self._told[0]

    def inferred(self) -> list[str]:
        return self._told[1]

    def places(self) -> dict[str, Place]:
        return dict(self._places)

    @functools.cached_property
    def _told(self) -> tuple[ModelSpec, list[str]]:
        """The spec, and what of it no file says."""
        tensors = self.tensors("transformer")
        try:
            transformer, like = infer.infer_transformer(tensors, self._position())
        except ConversionError:
            raise
        except ValueError as error:
            raise ValueError(f"{tensors.where}: {error}") from None
        shapes = {
            "transformer": transformer,
            "vae": self._vae(like, transformer["out_channels"]),
            "text_encoder": self._text_encoder(like, transformer["text_embed_dim"]),
            "schedule": documents_of(like)[CONFIGS["schedule"]],
        }
        documents, lines = {}, []
        for part, document in shapes.items():
            path = CONFIGS[part]
            beside = self._beside(part)
            said = self.given.of_document(path)
            documents[path] = document | beside | said
            if part == "vae" and self._has_taehv:
                lines.append(f"vae: the tiny one of taehv; latents are divided by {self.given.scaling_factor or 1.0}")
            elif not beside and (part in self._places or part != "text_encoder"):
                lines.append(_line(part, document, said, like.name, part in self._places))
        spec = self._parsed(documents)
        if self._has_taehv:
            spec = with_taehv(spec, self.given)
        if spec.trained_dtype == "bfloat16" and str(tensors[DTYPE_OF].dtype) == "float16":
            lines.append(f"transformer: its numbers are float16, in which {spec.name} overflows; compute in bfloat16")
        return spec, lines

    @functools.cached_property
    def _has_taehv(self) -> bool:
        return "vae" in self._places and is_taehv(self.tensors("vae"))

    def _position(self) -> str | None:
        """Of the transformer, as given or as the configuration beside it says; None where nothing does."""
        rotary = self._beside("transformer").get("use_rotary_positional_embeddings")
        return self.given.position or (None if rotary is None else "rope" if rotary else "sincos")

    def _parsed(self, documents: Mapping[str, Json]) -> ModelSpec:
        generation = self._read(self.configs, GENERATION)
        _, name = parent_and_name(self.place)
        problems: list[str] = []
        spec = parse_documents(dict(documents) | {GENERATION: generation}, Path(name).stem, problems)
        if problems:
            raise ConversionError(f"{self.place} is not a model that is supported", problems)
        if "trained_dtype" in generation or spec.name in {preset.name for preset in PRESETS.values()}:
            return spec
        own = str(self.tensors("transformer")[DTYPE_OF].dtype)
        return dataclasses.replace(spec, trained_dtype=own if own in DTYPES else "float32")

    def _vae(self, like: ModelSpec, channels: int) -> Json:
        if "vae" in self._places and not self._has_taehv:
            return infer.infer_vae(self.tensors("vae"), like)
        return documents_of(like)[CONFIGS["vae"]] | {"latent_channels": channels}

    def _text_encoder(self, like: ModelSpec, width: int) -> Json:
        if "text_encoder" in self._places:
            return infer.infer_text_encoder(self.tensors("text_encoder"), like)
        return documents_of(like)[CONFIGS["text_encoder"]] | {"d_model": width}

    def _beside(self, part: str) -> Json:
        """The published configuration of a part, where it lies beside it."""
        path = CONFIGS[part]
        if found := self._read(self.configs, path):
            return found
        place = self._places.get(part)
        if place is None:
            return {}
        parent, name = parent_and_name(place)
        document = next(document for document in DOCUMENTS if document.part == part)
        folder = place if open_files(place).is_folder() else parent
        for where, file in ((parent, f"{Path(name).stem}.json"), (folder, "config.json")):
            found = self._read((where,), file)
            check_class(found, below(where, file))
            if is_configuration(found, document):
                return found
        return {}

    def _read(self, folders: tuple[Place, ...], path: str) -> Json:
        """A file of settings in the first folder that has it; nothing where none has."""
        for folder in folders:
            files = open_files(folder)
            if files.exists(path):
                try:
                    return parse_json(files.bytes(path, MAX_BYTES))
                except ValueError as error:
                    raise ValueError(f"{below(folder, path)}: {error}") from None
        return {}


# Of each configuration, what shapes tell, and what they do not. Both are said where no file does.
COUNTED = {
    "transformer": (
        *("num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "patch_size"),
        *("patch_size_t", "text_embed_dim", "time_embed_dim", "ofs_embed_dim"),
    ),
    "vae": ("block_out_channels", "layers_per_block", "latent_channels"),
    "text_encoder": ("num_layers", "d_model", "num_heads", "d_kv", "d_ff", "vocab_size"),
    "schedule": (),
}
TAKEN = {
    "transformer": (
        *("sample_height", "sample_width", "sample_frames", "max_text_seq_length"),
        *("use_rotary_positional_embeddings", "use_learned_positional_embeddings"),
    ),
    "vae": ("scaling_factor", "invert_scale_latents", "norm_num_groups", "temporal_compression_ratio"),
    "text_encoder": ("relative_attention_max_distance",),
    "schedule": ("snr_shift_scale",),
}


def _line(part: str, document: Json, said: Json, name: str, has_file: bool) -> str:
    """What of a part's configuration comes from the user, from shapes, and from a published model."""

    def listed(how: str, keys: Iterable[str], values: Json) -> str:
        found = [f"{key} {values[key]}" for key in keys if values.get(key) is not None]
        return f"{how}: {', '.join(found)}" if found else ""

    counted, taken = ([k for k in keys[part] if k not in said] for keys in (COUNTED, TAKEN))
    told = [
        listed("as given", said, said),
        listed("from its tensors", counted, document) if has_file else "",
        listed(f"as {name} has it", taken, document),
    ]
    return f"{part.replace('_', ' ')}: {'; '.join(filter(None, told))}"
