"""Tora's files, both ways: the extractor of trajectories and the fusers of the blocks, each a file of weights."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from cogvx_jax.configs import ToraConfig
from cogvx_jax.convert.checkpoint import Published
from cogvx_jax.convert.containers import open_tensors
from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.convert.export import METADATA, tensors_of
from cogvx_jax.convert.infer import Shapes, count_blocks
from cogvx_jax.convert.packed import unpacked
from cogvx_jax.convert.safetensors import write_file
from cogvx_jax.convert.tables import TORA, Parameter, resolve
from cogvx_jax.convert.tensors import Tensors
from cogvx_jax.models.abstract import Abstract, abstract_params

MARKS = {"extractor": "body.0.block1.weight", "fusers": "0.flow_gamma_spatial.weight"}  # part -> a name it must have
FILES = {"extractor": "traj_extractor.safetensors", "fusers": "fuser.safetensors"}
COUNTS = "num_batches_tracked"  # of training alone


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredTora:
    """Tora in its two files: sizes, and parameters unread."""

    cfg: ToraConfig
    parts: Mapping[str, Published]  # "extractor" and "fusers"

    def source(self, path: str) -> Published:
        """Where a parameter is read."""
        return self.parts[path.partition("/")[0]]

    def read(self) -> dict[str, Any]:
        """The parameters, numpy arrays float32."""
        flat = {}
        for part in self.parts.values():
            for path in part:
                flat[path] = part.read(path, np.dtype("float32"), tuple(slice(n) for n in part.shape(path)))
        return traverse_util.unflatten_dict(flat, sep="/")


def find_files(place: str | Path) -> dict[str, Path]:
    """The file of each part: of two that are named, with a comma between, or of a folder and those in it.

    Raises: FileNotFoundError; ValueError for other files, or several of one part.
    """
    names = str(place).split(",")
    files = [Path(name) for name in names]
    if len(files) == 1 and files[0].is_dir():
        files = sorted([*files[0].glob("*.safetensors"), *files[0].glob("*/*.safetensors")])[:64]
    found: dict[str, list[Path]] = {part: [] for part in MARKS}
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"there is no file {file}; give Tora's folder, or its two files: EXTRACTOR,FUSER")
        tensors = open_tensors(file)
        for part, mark in MARKS.items():
            if any(name.endswith(mark) for name in tensors):
                found[part].append(file)
    for part, there in found.items():
        if len(there) != 1:
            count = "no file" if not there else f"{len(there)} files"
            raise ValueError(
                f"{place} holds {count} of Tora's {part}; name its two files, such as "
                f"{FILES['extractor']},{FILES['fusers']}"
            )
    return {part: there[0] for part, there in found.items()}


def open_tora(files: Mapping[str, Path]) -> StoredTora:
    """Tora, of which no numbers are read.

    Raises: ConversionError listing every missing, spare or misshapen tensor.
    """
    tensors = {}
    for part, file in files.items():
        whole = unpacked(open_tensors(file))
        tensors[part] = whole.of({name: whole[name] for name in whole if not name.endswith(COUNTS)})
    cfg = infer_tora(tensors)
    what = f"Tora's PART of {cfg.layers} blocks of width {cfg.width}"
    parameters, shapes = tora_parameters(cfg), abstract_params(cfg)
    parts = {}
    for part, own in tensors.items():
        ours = [parameter for parameter in parameters if parameter.path.startswith(f"{part}/")]
        types: dict[str, Abstract] = {parameter.path: shapes[parameter.path] for parameter in ours}
        parts[part] = Published(own, ours, types, what.replace("PART", part))
    return StoredTora(cfg=cfg, parts=parts)


def infer_tora(tensors: Mapping[str, Tensors]) -> ToraConfig:
    """Sizes, as far as shapes tell. Raises: ConversionError for missing or misshapen tensors."""
    extractor, fusers = (_named(tensors[part], mark) for part, mark in MARKS.items())
    first, second = Shapes(extractor, "Tora's extractor"), Shapes(fusers, "Tora's fusers")
    channels, unshuffled, _, _ = first.of("conv_in.weight", 4)
    width = second.of("0.flow_cond_norm.weight", 1)[0]
    first.check()
    second.check()
    layers, blocks = count_blocks(fusers, r"(\d{1,4})\.flow_"), count_blocks(extractor, r"body\.(\d{1,4})\.")
    if not layers or blocks % layers:
        raise ConversionError(
            f"{extractor.where} and {fusers.where} do not go together",
            [f"{blocks} residual blocks for {layers} fusers; they must be a multiple"],
        )
    return ToraConfig(
        layers=layers,
        width=width,
        channels=channels,
        latent_channels=unshuffled // ToraConfig.patch**2,
        blocks=blocks // layers,
    )


def _named(tensors: Tensors, mark: str) -> Tensors:
    """Without what stands in front of all names."""
    prefix = next(name for name in tensors if name.endswith(mark)).removesuffix(mark)
    return tensors.of({name.removeprefix(prefix): tensors[name] for name in tensors})


def tora_parameters(cfg: ToraConfig) -> list[Parameter]:
    """Every parameter with the tensors that it is made of."""
    return resolve(TORA, {path: parameter.shape for path, parameter in abstract_params(cfg).items()})


def write_tora(folder: str | Path, cfg: ToraConfig, params: Mapping[str, Any]) -> None:
    """Writes both files into a folder. Raises: ConversionError for other parameters."""
    problems: list[str] = []
    leaves = traverse_util.flatten_dict(dict(params), sep="/")
    Path(folder).mkdir(parents=True, exist_ok=True)
    for part, file in FILES.items():
        ours = [parameter for parameter in tora_parameters(cfg) if parameter.path.startswith(f"{part}/")]
        own = {path: leaf for path, leaf in leaves.items() if path.startswith(f"{part}/")}
        tensors = tensors_of(ours, own, part, None, problems)
        if problems:
            raise ConversionError("these are not the parameters of this Tora", problems)
        write_file(Path(folder) / file, tensors, METADATA)
