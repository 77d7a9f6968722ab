"""Folders of CogVideo (2022), both ways: as its makers left them, and one where the frozen base lies once.

Theirs holds `cogvideo-stage1`, `cogvideo-stage2` and `cogview2-dsr`, each saved by SAT, and beside them `ice_image.pt`,
`ice_text.model` and `cluster_label2.npy`. In each of the three lies the same base, 11.8 GB in 16 bit. Whether it is the
same is found out by digests of all its tensors.

Ours holds `base.safetensors`, a file for each stage's own tensors, and `cogvideo2022.json` with the sizes.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from flax import traverse_util

from cogvx_jax.convert.checkpoint import Published, Put
from cogvx_jax.convert.cogvideo2022 import (
    image_tokenizer_parameters,
    joined_thirds,
    network_parameters,
    split_thirds,
    without_buffers,
)
from cogvx_jax.convert.cogvideo2022_sizes import Beside, beside_json, read_beside
from cogvx_jax.convert.containers import read_file
from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.convert.export import METADATA
from cogvx_jax.convert.finite import is_finite, not_finite
from cogvx_jax.convert.infer import Shapes, count_blocks
from cogvx_jax.convert.quantized_layout import MARK, quantization_mark, read_quantization
from cogvx_jax.convert.safetensors import Tensor, write_file
from cogvx_jax.convert.sat_folder import LATEST, STATES, find_states, has_states
from cogvx_jax.convert.tables import Parameter
from cogvx_jax.convert.tensors import Tensors, Unreadable
from cogvx_jax.convert.torch_writer import write_torch
from cogvx_jax.json_files import Json, quoted, read_json_of
from cogvx_jax.models.abstract import Abstract, quantized
from cogvx_jax.models.cogvideo2022.abstract import abstract_network
from cogvx_jax.models.cogvideo2022.configs import (
    CogVideo2022Config,
    ImageTokenizerConfig,
    Stage,
    SuperResolutionConfig,
)
from cogvx_jax.presets import PUBLISHED_2022, SHIPPED_2022
from cogvx_jax.quantization import Quantization
from cogvx_jax.storage import below, new_folder, open_files, parent_and_name

FOLDERS: dict[str, str] = {  # stage -> its folder as published
    "sequential": "cogvideo-stage1",
    "interpolation": "cogvideo-stage2",
    "super_resolution": "cogview2-dsr",
}
NUMBERS = {1: "sequential", 2: "interpolation"}  # what model_config.json calls them
CONFIG, SIZES, BASE = "model_config.json", "cogvideo2022.json", "base.safetensors"
IMAGES, TEXT, CLUSTERS = ("ice_image.pt", "image_tokenizer.safetensors"), "ice_text.model", "cluster_label2.npy"
SPARE_WORDS = 10  # rows of the words after the tokenizer's pieces; the first is the start of an image
SHAPED = tuple(  # fields of a stage that `SIZES` holds
    "layers heads head_dim vocab codes start_of_image base_positions extra_positions grid first_position frames window "
    "text_length".split()
)
MOST = 100_000  # of any of them but the words
COMMON = tuple("layers heads head_dim vocab codes start_of_image base_positions grid".split())  # to all stages
LAYER = r"transformer\.layers\.(\d{1,4})\."
ASSETS = Path(__file__).parents[1] / "assets"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """All parts of a folder, with no numbers read.

    Attributes:
      stages: the sizes of each transformer that is there.
      tensors: theirs, with thirds apart; those of the base and of the stage.
      images: of the image tokenizer; None where it is not there.
      shared: the base is stored once.
      how: kernels are stored as integers; None: as the makers' are.
      beside: what our folder says of the rest.
    """

    place: str | Path
    stages: Mapping[str, CogVideo2022Config]
    tensors: Mapping[str, Tensors]
    images: Tensors | None
    image_sizes: ImageTokenizerConfig
    shared: bool
    how: Quantization | None = None
    beside: Beside = Beside()

    def parameters(self, stage: str, **which: bool) -> list[Parameter]:
        """As `network_parameters`, of a stage as it is stored."""
        return network_parameters(self.stages[stage], how=self.how, **which)

    def types(self, stage: str) -> Mapping[str, Abstract]:
        """The same by path, with the types of those that are quantised."""
        return quantized(abstract_network(self.stages[stage]), self.how)

    def places(self) -> list[tuple[str, str | Path]]:
        """The files and folders of all parts, by name; those of tokenizers and clusters may be absent."""
        names = {stage: f"{stage}.safetensors" if self.shared else FOLDERS[stage] for stage in self.stages}
        if self.shared:
            names |= {"base": BASE, "configuration": SIZES}
        images = next((name for name in IMAGES if open_files(self.place).exists(name)), IMAGES[0])
        names |= {"image_tokenizer": images, "text_tokenizer": TEXT, "clusters": CLUSTERS}
        return [(part, below(self.place, name)) for part, name in names.items()]

    @property
    def text_model(self) -> str | Path:
        """The file of the text tokenizer."""
        return below(self.place, TEXT)

    @property
    def clusters(self) -> str | Path:
        """The file of the table of clusters."""
        return below(self.place, CLUSTERS)


def is_cogvideo2022(place: str | Path) -> bool:
    """Whether a local folder is one of both kinds."""
    if "://" in str(place):
        return False
    place = place_of(place)
    try:
        return open_files(place).exists(SIZES) or any(has_states(below(place, name)) for name in FOLDERS.values())
    except OSError:  # whoever reads the place says what is wrong with it
        return False


def is_stage(place: str | Path) -> bool:
    """Whether a local folder is one of SAT's stages, whose parent is the model."""
    if "://" in str(place):
        return False
    try:
        files, named = open_files(place), Path(place).name in FOLDERS.values()
        return has_states(place) and (
            named or (files.exists(CONFIG) and "cogvideo_stage" in read_json_of(files, CONFIG))
        )
    except (OSError, ValueError):  # whoever reads the place says what is wrong with it
        return False


def open_parts(place: str | Path, images: ImageTokenizerConfig | None = None) -> Parts:
    """The parts of a folder, which are checked against their sizes.

    Args:
      images: sizes of the image tokenizer; None are those that the folder says, or the published ones.
    Raises: FileNotFoundError; ConversionError listing every missing, spare or misshapen tensor; ValueError, one
      sentence, for a stage in another's place.
    """
    place = place_of(place)
    if is_stage(place):
        raise ValueError(f"{place} is one stage of CogVideo (2022); give the folder above it, which holds all of them")
    files, beside = open_files(place), Beside()
    if files.exists(SIZES):
        stages, tensors, beside = _open_own(place)
    else:
        there = [stage for stage, name in FOLDERS.items() if has_states(below(place, name))]
        if str(place) == PUBLISHED_2022 and not files.is_folder():
            raise FileNotFoundError(
                f"{place} stands for the published model, whose weights are not fetched; give the folder of them"
            )
        if not there:
            raise FileNotFoundError(
                f"{place} holds neither {SIZES} nor {', '.join(FOLDERS.values())} as SAT saves them"
            )
        opened = {stage: _open_sat(below(place, FOLDERS[stage]), stage) for stage in there}
        stages, tensors = {s: cfg for s, (cfg, _) in opened.items()}, {s: own for s, (_, own) in opened.items()}
        _check_together(stages, str(place))
    name = next((name for name in IMAGES if files.exists(name)), None)
    found = None if name is None else without_buffers(_opened(place, name))
    images, shared = images or beside.images, files.exists(SIZES)
    codes = next(iter(stages.values())).codes
    if found is not None and images.codes != codes:
        where = below(place, SIZES) if shared else place
        raise ValueError(
            f"{where}: codes is {codes} for the stages and {images.codes} for images, whose codes they make, so it "
            "must be the same"
        )
    parts = Parts(
        place=place,
        stages=stages,
        tensors=tensors,
        images=found,
        image_sizes=images,
        shared=shared,
        how=read_quantization(place) if shared else None,
        beside=beside,
    )
    for stage in stages:
        published(parts, stage)
    if found is not None:
        _published_images(found, images)
    return parts


def compare_bases(parts: Parts) -> None:
    """Makes sure that all stages have one base, and each a channel of its own. Reads all of them that may be the same.

    Raises: ConversionError with a line for each tensor of a base that differs; ValueError for a copy of a stage.
    """
    _compare_channels(parts)
    if parts.shared:
        return
    first, *others = parts.stages
    keys = [key for p in parts.parameters(first, channel=False) for key in p.keys]
    problems = []
    for key in keys:
        digest = _digest(parts.tensors[first], key)
        problems += [f"{key} of {FOLDERS[o]}" for o in others if _digest(parts.tensors[o], key) != digest]
    if problems:
        raise ConversionError(
            f"{parts.place}: bases differ from that of {FOLDERS[first]}, so none can stand for all", problems
        )


def _compare_channels(parts: Parts) -> None:
    """Raises ValueError where one stage was copied over the other."""
    one, other = NUMBERS.values()
    if {one, other} <= parts.stages.keys():
        own = [key for p in parts.parameters(one, base=False) for key in p.keys]
        if all(_digest(parts.tensors[one], key) == _digest(parts.tensors[other], key) for key in own):
            raise ValueError(f"{parts.place} has the {one} stage twice, number for number, and no {other} stage")


def read_stages(
    parts: Parts, dtype: str = "float32", *, put: Put | None = None, own: Container[str] = ()
) -> dict[str, dict[str, Any]]:
    """The parameters of all stages. The base's arrays are the same objects in all of them.

    Args:
      put, own: as for `load_params`; the base is put once.
    Raises: as `compare_bases`.
    """
    compare_bases(parts)
    base: dict[str, Any] | None = None
    found = {}
    for stage in parts.stages:
        source, types = published(parts, stage), parts.types(stage)
        if base is None:
            base = _read(source, types, dtype, parts.parameters(stage, channel=False), put, own)
        found[stage] = base | _read(source, types, dtype, parts.parameters(stage, base=False), put, own)
    return {stage: traverse_util.unflatten_dict(flat, sep="/") for stage, flat in found.items()}


def read_images(parts: Parts, cfg: ImageTokenizerConfig) -> dict[str, Any]:
    """The image tokenizer's parameters, float32.

    Raises: FileNotFoundError; ConversionError; ValueError for numbers that are not finite.
    """
    if parts.images is None:
        raise FileNotFoundError(f"{parts.place} has no {IMAGES[0]}, the image tokenizer; icetk brings it")
    source = _published_images(parts.images, cfg)
    found = _read(source, abstract_network(cfg), "float32", image_tokenizer_parameters(cfg))
    if wrong := next((path for path, leaf in found.items() if not is_finite(leaf)), None):
        raise not_finite(f"the image tokenizer of {parts.place}", wrong, with_loras=False)  # or pictures are black
    return traverse_util.unflatten_dict(found, sep="/")


def write_shared(parts: Parts, folder: str | Path) -> None:
    """Writes our folder: the base once, each number as it is. Raises: as `compare_bases`; FileExistsError."""
    compare_bases(parts)
    with new_folder(folder) as target:
        first = next(iter(parts.stages))
        base = parts.parameters(first, channel=False)
        write_file(target / BASE, _tensors(parts.tensors[first], base), METADATA)
        for stage in parts.stages:
            own = parts.parameters(stage, base=False)
            write_file(target / f"{stage}.safetensors", _tensors(parts.tensors[stage], own), METADATA)
        if parts.how is not None:
            (target / MARK).write_text(quantization_mark(parts.how, {}))
        write_beside(parts, target)


def write_beside(parts: Parts, target: Path) -> None:
    """Writes what our folder holds beside the transformers."""
    if parts.images is not None:
        images = image_tokenizer_parameters(parts.image_sizes)
        write_file(target / IMAGES[1], _tensors(parts.images, images), METADATA)
    _copy_assets(parts, target)
    sizes = {stage: {name: getattr(cfg, name) for name in SHAPED} for stage, cfg in parts.stages.items()}
    (target / SIZES).write_text(json.dumps({"stages": sizes} | beside_json(parts.beside), indent=2) + "\n")


def write_theirs(parts: Parts, folder: str | Path) -> None:
    """Writes their folder: SAT's of each stage, each number as it is. Raises: FileExistsError; ValueError."""
    if parts.how is not None:
        raise ValueError(f"{parts.place} is quantised, to {parts.how.name}, which SAT cannot read; give the original")
    with new_folder(folder) as target:
        for stage, cfg in parts.stages.items():
            place = target / FOLDERS[stage]
            (place / "1").mkdir(parents=True)
            tensors = joined_thirds(_tensors(parts.tensors[stage], network_parameters(cfg)))
            write_torch(place / "1" / STATES, tensors, "module")
            (place / LATEST).write_text("1")
            (place / CONFIG).write_text(json.dumps(_model_config(cfg), indent=2) + "\n")
        if parts.images is not None:
            images = image_tokenizer_parameters(parts.image_sizes)
            write_torch(target / IMAGES[0], _tensors(parts.images, images), "module")
        _copy_assets(parts, target)


def place_of(place: str | Path) -> str | Path:
    """Where a model lies that is given by its name, as those are that come with the package."""
    return ASSETS / str(place) if str(place) in SHIPPED_2022 else place


def _open_sat(place: str | Path, stage: str) -> tuple[CogVideo2022Config, Tensors]:
    files = open_files(place)
    config = read_json_of(files, CONFIG) if files.exists(CONFIG) else {}
    folder, name = parent_and_name(find_states(place))
    tensors = split_thirds(_opened(folder, name))
    gated = any(key.startswith("mixins.attention_plus.attn_distribution.") for key in tensors)
    number = config.get("cogvideo_stage")
    said = NUMBERS.get(number) if isinstance(number, int) else None
    if number is not None and said is None:
        raise ValueError(f"{place}/{CONFIG}: cogvideo_stage must be 1 or 2, got {quoted(number)}")
    if gated == (stage == "super_resolution"):
        raise ValueError(
            f"{place} {'holds a stage of CogVideo, no super-resolution' if gated else 'holds no stage of CogVideo'}; "
            f"{FOLDERS[stage]} belongs there"
        )
    if gated and said is not None and said != stage:
        raise ValueError(f"{place} is CogVideo's stage {number} by its {CONFIG}; {FOLDERS[stage]} belongs there")
    return _infer(tensors, stage, config, str(place)), tensors


def _infer(tensors: Tensors, stage: str, config: Json, where: str) -> CogVideo2022Config:
    """Sizes by shapes, and by `CONFIG` what shapes do not tell. Raises: ConversionError; ValueError."""
    shapes = Shapes(tensors, where)
    vocab, width = shapes.of("transformer.word_embeddings.weight", 2)
    positions = shapes.of("transformer.position_embeddings.weight", 2)[0]
    extra = shapes.of("mixins.extra_position_embedding.position_embeddings.weight", 2)[0]
    shapes.check()
    sizes: Json = {
        "layers": count_blocks(tensors, LAYER),
        "heads": config.get("num_attention_heads", max(width // 64, 1)),
        "vocab": vocab,
        "start_of_image": vocab - SPARE_WORDS,
        "base_positions": positions,
        "extra_positions": extra,
    }
    if type(sizes["heads"]) is not int or sizes["heads"] < 1 or width % sizes["heads"]:
        raise ValueError(
            f"{where}/{CONFIG}: num_attention_heads {quoted(sizes['heads'])} does not divide a width of {width}"
        )
    sizes["head_dim"] = width // sizes["heads"]
    return _config(stage, sizes | _layout(stage, config), where)


def _layout(stage: str, config: Json) -> Json:
    """The grid, and of a stage that makes codes one after the other its frames; nothing where no file tells."""
    ends, window = config.get("layout"), config.get("window_size")
    if not isinstance(ends, list) or len(ends) != 3 or not all(type(end) is int for end in ends):
        return {}
    text, first, last = ends
    codes = max(first - text, 1)
    found = {"grid": math.isqrt(codes)}
    if stage != "super_resolution":
        found["frames"] = (last - text) // codes
    if stage == "interpolation" and window is not None:
        found["window"] = window
    return found


def _config(stage: str, sizes: Json, where: str) -> CogVideo2022Config:
    """Raises ValueError for sizes out of range, or that do not go together."""
    for name, size in sizes.items():
        most = 10 * MOST if name in ("vocab", "start_of_image") else MOST
        if name not in SHAPED or type(size) is not int or not 1 <= size <= most:
            raise ValueError(
                f"{where}: {stage}: {name} {quoted(size)} is no size of CogVideo; whole numbers from 1 to {most} are"
            )
    kind = SuperResolutionConfig if stage == "super_resolution" else CogVideo2022Config
    try:
        return kind(**sizes) if kind is SuperResolutionConfig else kind(stage=cast(Stage, stage), **sizes)
    except ValueError as error:
        raise ValueError(f"{where}: {stage}: {error}") from None


def _check_together(stages: Mapping[str, CogVideo2022Config], where: str) -> None:
    """Raises ValueError for stages that have no base in common, or whose frames do not go together."""
    first, *others = stages.items()
    for stage, cfg in others:
        for name in COMMON:
            one, other = getattr(first[1], name), getattr(cfg, name)
            if one != other:
                raise ValueError(
                    f"{where}: {name} is {one} for {first[0]} and {other} for {stage}; stages share a base, so it must "
                    "be the same"
                )
    if {"sequential", "interpolation"} <= set(stages) and (count := stages["sequential"].frames) % 2 == 0:
        raise ValueError(
            f"{where}: sequential: frames is {count}, but an interpolation puts frames between an odd number of them"
        )


def _open_own(place: str | Path) -> tuple[dict[str, CogVideo2022Config], dict[str, Tensors], Beside]:
    files = open_files(place)
    said = read_json_of(files, SIZES)
    found = said.get("stages")
    if not isinstance(found, dict) or not found or not all(isinstance(own, dict) for own in found.values()):
        raise ValueError(f"{place}/{SIZES} names no stages")
    if unknown := set(found) - set(FOLDERS):
        raise ValueError(f"{place}/{SIZES} names the stage {quoted(min(unknown))}; there are {', '.join(FOLDERS)}")
    where = f"{place}/{SIZES}"
    stages = {stage: _config(stage, found[stage], where) for stage in FOLDERS if stage in found}
    _check_together(stages, where)
    base, layers = _opened(place, BASE), next(iter(stages.values())).layers
    if (there := count_blocks(base, LAYER)) != layers:
        raise ValueError(f"{where}: layers is {layers}, but {BASE} holds {there}")
    tensors = {stage: base.of(dict(base) | dict(_opened(place, f"{stage}.safetensors"))) for stage in stages}
    return stages, tensors, read_beside(said, where)


def _opened(place: str | Path, name: str) -> Tensors:
    """Raises: FileNotFoundError; ValueError that names the file."""
    try:
        return read_file(open_files(place), name)
    except ValueError as error:
        raise ValueError(f"{below(place, name)}: {error}") from None


def published(parts: Parts, stage: str) -> Published:
    """The parameters of a stage, unread. Raises: ConversionError listing what is missing, spare or misshapen."""
    what = f"the {stage} transformer of CogVideo (2022)"
    return Published(parts.tensors[stage], parts.parameters(stage), parts.types(stage), what)


def _published_images(images: Tensors, cfg: ImageTokenizerConfig) -> Published:
    types: Mapping[str, Abstract] = abstract_network(cfg)
    return Published(images, image_tokenizer_parameters(cfg), types, "CogVideo's image tokenizer")


def _read(
    source: Published,
    types: Mapping[str, Abstract],
    dtype: str,
    parameters: list[Parameter],
    put: Put | None = None,
    own: Container[str] = (),
) -> dict[str, Any]:
    found = {}
    for p in parameters:
        kind = np.dtype(types[p.path].dtype or (source.dtype(p.path) if p.path in own else dtype))
        part = functools.partial(source.read, p.path, kind)
        found[p.path] = part(tuple(slice(n) for n in p.shape)) if put is None else put(p.path, p.shape, kind, part)
        source.release()
    return found


def _tensors(tensors: Tensors, parameters: list[Parameter]) -> list[Tensor]:
    """To write, each number as it is; one tensor is read at a time."""

    def made(key: str) -> Tensor:
        entry = tensors[key]
        return Tensor(key, entry.shape, entry.dtype, lambda: tensors.read(key))

    return [made(key) for p in parameters for key in p.keys]


def _digest(tensors: Tensors, key: str) -> bytes | None:
    entry = tensors.get(key)
    if entry is None or isinstance(entry, Unreadable):
        return None
    array = np.ascontiguousarray(tensors.read(key))
    found = hashlib.blake2b(f"{array.dtype} {array.shape}".encode(), digest_size=16)
    found.update(array.reshape(-1).view(np.uint8).data)
    tensors.release()
    return found.digest()


def _copy_assets(parts: Parts, target: Path) -> None:
    files = open_files(parts.place)
    for name, limit in ((TEXT, 64 * 2**20), (CLUSTERS, 2**20)):
        if files.exists(name):
            (target / name).write_bytes(files.bytes(name, limit))


def _model_config(cfg: CogVideo2022Config) -> Json:
    """What SAT reads of a stage. Raises: ValueError for sizes that it does not say."""
    published = type(cfg)(stage=cfg.stage)
    for name in ("codes", "first_position"):
        if getattr(cfg, name) != getattr(published, name):
            raise ValueError(
                f"SAT's files do not say that {name} is {getattr(cfg, name)}, not {getattr(published, name)}; only a "
                "model of published vocabulary is written for it"
            )
    large = isinstance(cfg, SuperResolutionConfig)
    ends = [cfg.text_length, cfg.text_length + cfg.frame_codes]
    last = (
        ends[-1] + cfg.large_grid**2
        if isinstance(cfg, SuperResolutionConfig)
        else ends[0] + cfg.frames * cfg.frame_codes
    )
    own: Json = {"new_sequence_length": cfg.base_positions + cfg.extra_positions, "kernel_size": 5, "kernel_size2": 5}
    if not large:
        number = next(number for number, stage in NUMBERS.items() if stage == cfg.stage)
        window = cfg.window if cfg.stage == "interpolation" else -1
        own = {"additional_seqlen": cfg.extra_positions, "cogvideo_stage": number, "window_size": window}
    return own | {
        "num_layers": cfg.layers,
        "hidden_size": cfg.width,
        "num_attention_heads": cfg.heads,
        "vocab_size": cfg.vocab,
        "max_sequence_length": cfg.base_positions,
        "layernorm_order": "sandwich",
        "layout": [*ends, last],
    }
