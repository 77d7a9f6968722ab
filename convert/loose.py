"""A model whose parts are files of their own: which part lies where, and its spec, put together of what the files tell.

The spec comes from published configurations beside the files, where there are any, from the tensors' shapes, and from
what the user says; `inferred` lists what no file says.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

from cogvx_jax.configs import DTYPES, ModelSpec
from cogvx_jax.convert import infer
from cogvx_jax.convert.applies import check_given, check_position
from cogvx_jax.convert.config import DOCUMENTS, GENERATION, documents_of, parse_documents
from cogvx_jax.convert.dialects import components, open_component, open_whole
from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.convert.lora_file import LoRAFile
from cogvx_jax.convert.sat import read_sat_lora
from cogvx_jax.convert.taehv import is_taehv, told_taehv, with_taehv
from cogvx_jax.convert.tensors import Tensors
from cogvx_jax.convert.tokenizer_files import SOURCES, find_tokenizer
from cogvx_jax.convert.told import read_settings, settings_beside, told_lines
from cogvx_jax.given import NOTHING, Given
from cogvx_jax.hub import fetch_hub
from cogvx_jax.json_files import Json
from cogvx_jax.presets import HUB, PRESETS
from cogvx_jax.storage import below, parent_and_name

Place = str | Path
DTYPE_OF = "patch_embed.text_proj.weight"  # by whose type a file's is known
GIVEN_PARTS = ("vae", "text_encoder")  # which a field of `Given` may name
MADE = "; where nothing takes it, make one model of both with `cogvx convert` first"
CONFIGS = {document.part: document.path for document in DOCUMENTS}  # part of ModelSpec -> published file


@dataclasses.dataclass(frozen=True, eq=False)
class LooseParts:
    """`Source` of parts that lie apart.

    place: what the user named.
    found: component -> its file, or the folder of its files; what is missing has no entry.
    given: comes before all that was found.
    configs: folders in which published configurations may lie under their published names.
    searched: components that were looked for under several names or in several places, which is told.
    """

    place: Place
    found: Mapping[str, Place]
    given: Given = NOTHING
    configs: tuple[Place, ...] = ()
    searched: tuple[str, ...] = ()
    _opened: dict[str, Tensors] = dataclasses.field(default_factory=dict)

    @property
    def tokenizer(self) -> Place:
        """That of the published models is fetched where none lies here, and the text encoder is theirs by its size.

        Raises: FileNotFoundError where there is none; OSError where it cannot be fetched.
        """
        found, wanted = self.own_tokenizer, f"give tokenizer, a folder with {' or '.join(SOURCES)} of T5{MADE}"
        if found is not None:
            return found
        if not self._takes_published_tokenizer:
            raise FileNotFoundError(f"{self.place} has no tokenizer; {wanted}")
        try:
            return fetch_hub(HUB["5b"], ["tokenizer/*"]) / "tokenizer"
        except OSError as error:
            raise OSError(f"{self.place} has no tokenizer: {wanted}; of the published one: {error}") from None

    @functools.cached_property
    def _takes_published_tokenizer(self) -> bool:
        if "text_encoder" not in self._places:
            return False
        words = self.tensors("text_encoder").get("shared.weight")
        return words is not None and words.shape[:1] == (PRESETS["5b"].text_encoder.vocab,)

    @functools.cached_property
    def own_tokenizer(self) -> Place | None:
        """That which is given, or lies beside the files."""
        return self.given.tokenizer or find_tokenizer(self._places.get("text_encoder"), self.place)

    @functools.cached_property
    def _places(self) -> dict[str, Place]:
        """Component -> where it is, once it is settled which file holds what."""
        said = {"vae": self.given.vae, "text_encoder": self.given.text_encoder}
        places = dict(self.found) | {component: place for component, place in said.items() if place is not None}
        if self._main is not None and len(places) < 3:  # one file may hold more than the transformer
            held = components(self._main)
            places |= {component: self.found["transformer"] for component in held if component not in places}
        return places

    @functools.cached_property
    def _main(self) -> Tensors | None:
        """All tensors of the transformer's file, by its own names."""
        return open_whole(self.found["transformer"], self.given) if "transformer" in self.found else None

    @functools.cached_property
    def _lora(self) -> Tensors | None:
        """The LoRA that SAT trained beside the weights of the transformer."""
        return None if self._main is None else read_sat_lora(self._main)

    def _lora_lines(self) -> list[str]:
        """How it is merged; nothing of one that is damaged, whose tensors are listed when the transformer is read."""
        if self._lora is None:
            return []
        with contextlib.suppress(ValueError):
            told = LoRAFile(self.found["transformer"], self._lora, self.given.sat_lora_alpha).told()
            return [f"transformer: a LoRA beside its weights is merged into them: {told}"]
        return []

    def tensors(self, component: str) -> Tensors:
        if component not in self._places:
            more = f"; give {component}, a file or a folder{MADE}" if component in GIVEN_PARTS else ""
            raise FileNotFoundError(f"{self.place} holds no {component.replace('_', ' ')}{more}")
        if component not in self._opened:
            self._opened[component] = open_component(self._places[component], component, self.given)
        return self._opened[component]

    def spec(self) -> ModelSpec:
        return self._told[0]

    def inferred(self) -> list[str]:
        return [*self._found_lines(), *self._told[1]]

    def _found_lines(self) -> list[str]:
        """Which parts were taken that the user did not name."""
        lines, main = [], self.found.get("transformer")
        for component in GIVEN_PARTS:
            place, name = self._places.get(component), component.replace("_", " ")
            if place is None or getattr(self.given, component) is not None:
                continue
            if place == main:
                lines.append(f"{name}: in the same file")
            elif component in self.searched:
                lines.append(f"{name}: found at {place}")
        found = self.own_tokenizer
        if found not in (None, self.given.tokenizer, below(self.place, "tokenizer")):
            lines.append(f"tokenizer: found at {found}")
        if found is None and self._takes_published_tokenizer:
            lines.append(f"tokenizer: there is none, so that of {HUB['5b']} is fetched from the hub where it is needed")
        return lines

    def places(self) -> dict[str, Place]:
        return dict(self._places)

    @functools.cached_property
    def _told(self) -> tuple[ModelSpec, list[str]]:
        """The spec, and what of it no file says."""
        check_given(
            self.given,
            self.place,
            files=[*self.found.values(), *self._places.values()],
            has_lora=self._lora is not None,
            has_taehv=self._has_taehv,
        )
        inferred, like = self._inferred()
        documents, lines = {}, self._lora_lines()
        for part, document in inferred.items():
            path = CONFIGS[part]
            beside, where = self._beside(part)
            said = self.given.of_document(path)
            documents[path] = document | beside | said
            if part == "vae" and self._has_taehv:
                lines.append(told_taehv(self.given))
            elif part in self._places or part != "text_encoder":
                news = None if where in [below(folder, path) for folder in self.configs] else where
                lines += told_lines(part, document, beside, news, said, like.name, part in self._places)
        check_position(self.given, documents[CONFIGS["transformer"]], self.place)
        spec = self._parsed(documents)
        if self._has_taehv:
            spec = with_taehv(spec, self.given)
        own = str(self.tensors("transformer")[DTYPE_OF].dtype)
        if spec.trained_dtype == "bfloat16" and own == "float16":
            lines.append(f"transformer: its numbers are float16, in which {spec.name} overflows; compute in bfloat16")
        return spec, lines

    def _inferred(self) -> tuple[dict[str, Json], ModelSpec]:
        """Each part's configuration by its tensors' shapes, and the published model that the rest of them is of."""
        tensors = self.tensors("transformer")
        try:
            transformer, like = infer.infer_transformer(tensors, self._position())
        except ConversionError:
            raise
        except ValueError as error:
            raise ValueError(f"{tensors.where}: {error}") from None
        inferred = {
            "transformer": transformer,
            "vae": self._vae(like, transformer["out_channels"]),
            "text_encoder": self._text_encoder(like, transformer["text_embed_dim"]),
            "schedule": documents_of(like)[CONFIGS["schedule"]],
        }
        return inferred, like

    @functools.cached_property
    def _has_taehv(self) -> bool:
        return "vae" in self._places and is_taehv(self.tensors("vae"))

    def _position(self) -> str | None:
        """Of the transformer, as given or as the configuration beside it says; None where nothing does."""
        rotary = self._beside("transformer")[0].get("use_rotary_positional_embeddings")
        return self.given.position or (None if rotary is None else "rope" if rotary else "sincos")

    def _parsed(self, documents: Mapping[str, Json]) -> ModelSpec:
        generation, _ = read_settings(self.configs, GENERATION)
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

    def _beside(self, part: str) -> tuple[Json, Place]:
        """The published configuration of a part, where it lies beside it, and its place."""
        found, where = read_settings(self.configs, CONFIGS[part])
        if found or part not in self._places:
            return found, where
        return settings_beside(self._places[part], part)
