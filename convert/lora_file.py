"""A LoRA file by itself, for no model: its dialect, its modules by their published names, their ranks and scales."""

import dataclasses
import importlib.resources
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cogvx_jax.configs import Distilled
from cogvx_jax.convert.containers import read_file
from cogvx_jax.convert.lora_alpha import Alpha, Alphas, flag
from cogvx_jax.convert.lora_formats import LINEAR, MODULES, PATCH, Name, Part, find_format, numbered
from cogvx_jax.convert.sat_folder import check_rank, find_states, has_states
from cogvx_jax.convert.tensors import Entry, Tensors, Unreadable, is_floating, unwarned
from cogvx_jax.diffusion.samplers import SAMPLERS
from cogvx_jax.json_files import parse_json, quoted, read_json_of
from cogvx_jax.storage import below, check_place, kind_of, open_files, parent_and_name

METADATA = "lora_adapter_metadata"  # under which diffusers keeps PEFT's settings, as JSON
DISTILLED = "cogvx_jax.distilled"  # under which a LoRA of few steps says how it is sampled from, as JSON
# "tiny-fast", of `scripts/distill_tiny.py`, makes tiny's videos in 4 unguided steps.
SHIPPED = {"tiny-fast": "tiny/fast.safetensors"}
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
Place = str | Path
NOT_LINEAR = {*MODULES} - {*LINEAR}
# What a folder of one may hold; those of torch are of before safetensors.
FILES = ("pytorch_lora_weights.safetensors", PEFT_FILE, "pytorch_lora_weights.bin", "adapter_model.bin")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Module:
    """An adapted layer of the published transformer.

    window: height and width of a convolution, () of a linear layer; `features` counts all numbers under it.
    """

    name: str
    rank: int
    features: int
    out: int
    window: tuple[int, ...]
    alpha: Alpha


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """What is added to a tensor of the published transformer as it is: a tensor of the file, times a factor."""

    key: str
    shape: tuple[int, ...]
    factor: float


class LoRAFile:
    """What a file holds; only alphas are read of it.

    path: of the file, or its URL.
    format: the dialect.
    modules: by published name.
    differences: by the name of a published tensor.
    ignored: names of tensors of a text encoder.
    idle_alphas: names of modules that have an alpha and no adapter, but a whole difference, which takes none.
    said: PEFT's settings, and `metadata` all that the file says beside its tensors, as texts.
    distilled: how a LoRA of few steps is sampled from; None of another.
    Raises: ValueError, which does not name the file, for one that holds no LoRA, or one that is damaged.
    """

    def __init__(self, path: Place, tensors: Tensors, alpha: float | None = None):
        self.path, self.tensors, self.metadata = path, tensors, tensors.metadata
        self.distilled = parse_distilled(tensors.metadata.get(DISTILLED))
        self.format, found, self.ignored = find_format(tensors)
        self._keys: dict[tuple[str, Part], str] = {}
        for key, name in found.items():
            self._add(key, name)
        self.said, where = _settings(path, tensors.metadata) if self.format.alpha.peft else ({}, "")
        self._alphas = Alphas(self.format.alpha, self.said, where, alpha)
        names = dict.fromkeys(module for module, part in self._keys if part in ("a", "b"))
        self.modules = {name: self._module(name) for name in names}
        self.differences = self._differences()
        if alpha is not None and not self.modules:
            raise ValueError(
                "alpha is of adapters, and it holds whole differences alone, which have none; leave it out"
            )
        self.idle_alphas = self._idle_alphas()

    def _add(self, key: str, name: Name) -> None:
        other = self._keys.setdefault((name.module, name.part), key)
        if other != key:
            raise ValueError(f"it holds {name.module} twice, as {other} and as {key}")

    @property
    def rank(self) -> int:
        """The highest; 0 where there are whole differences only."""
        return max((module.rank for module in self.modules.values()), default=0)

    @property
    def blocks(self) -> list[int]:
        """The numbers of the blocks that are adapted."""
        names = {*self.modules, *(name.rpartition(".")[0] for name in self.differences)}
        found = {number for kind, number in map(numbered, names) if number and kind in MODULES}
        return sorted(map(int, found))

    def read(self, module: str) -> tuple[np.ndarray, np.ndarray]:
        """a (in, r) and b (r, out), float32; of a convolution `in` runs over channel, row and column."""
        found = self.modules[module]
        a, b = (self.numbers(self._keys[module, part]) for part in ("a", "b"))
        return a.reshape(found.rank, -1).T, b.reshape(-1, found.rank).T

    def stored(self, module: str, part: Part) -> np.ndarray:
        """A tensor of a module as it is in the file.

        Raises: KeyError; ValueError, with the file's name, for numbers that are not finite.
        """
        key = self._keys[module, part]
        try:
            self.numbers(key)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        return self.tensors.read(key)

    def entry(self, module: str, part: Part) -> Entry:
        """Shape and type of a tensor of a module."""
        return self.tensors[self._keys[module, part]]

    def numbers(self, key: str) -> np.ndarray:
        """A tensor of the file, float32. Raises: ValueError for numbers that are not finite."""
        with unwarned():  # of a float64 that float32 cannot hold
            numbers = self.tensors.read(key).astype(np.float32)
        if not np.isfinite(numbers).all():
            raise ValueError(f"{key} holds numbers that are not finite: its training diverged")
        return numbers

    def told(self) -> str:
        """Dialect, modules, rank, alpha, where that stands, and scale, for people."""
        parts = [self.format.name, counted(len(self.modules), "module")]
        if self.modules:
            parts += [f"rank {self.ranks_text()}", f"alpha {self.alphas_text()}", f"scale {self.scales_text()}"]
        if self.differences:
            parts.append(counted(len(self.differences), "whole difference"))
        if self.ignored:
            parts.append(f"{counted(len(self.ignored), 'tensor')} of a text encoder ignored")
        if self.distilled is not None:
            parts.append(f"for {self.distilled}")
        return ", ".join(parts)

    def ranks_text(self) -> str:
        return _range([module.rank for module in self.modules.values()])

    def alphas_text(self) -> str:
        alphas = [module.alpha for module in self.modules.values()]
        sources = " or ".join(dict.fromkeys(alpha.source for alpha in alphas))
        return f"{_range([alpha.value for alpha in alphas])} ({sources})"

    def scales_text(self) -> str:
        return _range([module.alpha.scale for module in self.modules.values()])

    def _module(self, name: str) -> Module:
        shapes = {part: self._shape(name, part) for part in ("a", "b")}
        a, b = shapes["a"], shapes["b"]
        first, second = (self.format.end(part).strip("._").removesuffix(".weight") for part in ("a", "b"))
        if not a or not b:
            raise ValueError(f"it holds only one of {first} and {second} for {name}")
        if 0 in (*a, *b):
            raise ValueError(f"{name} has no numbers, {first} is {a}, {second} {b}")
        window = a[2:] if len(a) == 4 else ()
        if len(a) not in (2, 4) or len(b) != len(a) or math.prod(b[2:]) != 1 or a[0] != b[1]:
            raise ValueError(f"the ranks of {name} disagree, {first} is {a}, {second} {b}")
        if name != PATCH and math.prod(window) != 1:
            raise ValueError(f"{first} of {name} is {a}, of a convolution, and the layer is a linear one")
        if numbered(name)[0] in NOT_LINEAR:
            raise ValueError(f"it has a {first} of {name}, which is no linear layer")
        alpha = self._alphas.of(name, a[0], self._tensor_alpha(name))
        return Module(name=name, rank=a[0], features=math.prod(a[1:]), out=b[0], window=window, alpha=alpha)

    def _shape(self, module: str, part: Part) -> tuple[int, ...] | None:
        key = self._keys.get((module, part))
        if key is None:
            return None
        return self._numeric(key)

    def _numeric(self, key: str) -> tuple[int, ...]:
        """The shape of a tensor of the file. Raises: ValueError for one that is unreadable, or not of numbers."""
        if isinstance(entry := self.tensors[key], Unreadable):
            raise ValueError(f"{key} cannot be read: {entry.problem}")
        if not is_floating(entry.dtype):
            raise ValueError(f"{key} is {entry.dtype}, not floating-point")
        return tuple(entry.shape)

    def _tensor_alpha(self, module: str) -> float | None:
        key = self._keys.get((module, "alpha"))
        if key is None:
            return None
        shape = tuple(self.tensors[key].shape)
        if math.prod(shape) != 1:
            raise ValueError(f"its alpha of {module} has the shape {shape}, and must be one number")
        return float(self.numbers(key).reshape(()))

    def _idle_alphas(self) -> list[str]:
        """Raises: ValueError for an alpha of nothing."""
        idle = [module for module, part in self._keys if part == "alpha" and module not in self.modules]
        for module in idle:
            if (module, "diff") not in self._keys and (module, "diff_b") not in self._keys:
                raise ValueError(f"it holds an alpha of {module}, and no adapter of it: it is not whole")
        return idle

    def _differences(self) -> dict[str, Difference]:
        found: dict[str, Difference] = {}
        for (module, part), key in self._keys.items():
            if part not in ("diff", "diff_b", "bias"):
                continue
            if part == "bias" and module not in self.modules:
                raise ValueError(f"it holds {key}, the bias of an adapter, without the adapter")
            name = f"{module}.{'weight' if part == 'diff' else 'bias'}"
            if name in found:
                raise ValueError(f"it holds two differences of {name}, {found[name].key} and {key}")
            factor = self.modules[module].alpha.scale if part == "bias" else 1.0
            found[name] = Difference(key=key, shape=self._numeric(key), factor=factor)
        return found


def open_lora(source: Place, alpha: float | None = None) -> LoRAFile:
    """What a LoRA file holds, whatever model it is for.

    Args:
      source: a file, or a folder that holds one under the name diffusers, PEFT or SAT gives it; or its URL.
      alpha: of all modules, in place of what the file says.
    Raises: FileNotFoundError; ValueError, one sentence, for a file that is damaged or holds no LoRA.
    """
    path = find_file(source if "://" in str(source) else Path(source))
    parent, name = parent_and_name(path)
    try:
        return LoRAFile(path, read_file(open_files(parent), name), alpha)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a LoRA: {error}") from None


def shipped(source: str | os.PathLike) -> str | os.PathLike:
    """The file of a LoRA that ships with the package, by its name; other sources as they are."""
    name = SHIPPED.get(os.fspath(source))
    return source if name is None else str(importlib.resources.files("cogvx_jax") / "assets" / name)


def find_file(source: Place) -> Place:
    """The LoRA's file that a path, a URL, or the name of a shipped one, stands for. Raises: FileNotFoundError."""
    if str(source) in SHIPPED:
        source = Path(shipped(str(source)))
    files = open_files(source)
    if files.is_folder():
        check_place(source)
        if has_states(source):
            return find_states(source)
        found = [below(source, name) for name in FILES if files.exists(name)]
        if not found:
            raise FileNotFoundError(f"{source} holds no LoRA: no {' and no '.join(FILES[:2])}")
        return found[0]
    parent, name = parent_and_name(source)
    if not open_files(parent).exists(name):
        kind = "nothing" if isinstance(source, str) else kind_of(source)
        raise FileNotFoundError(
            f"there is no LoRA {str(source)!r}" if kind == "nothing" else f"{str(source)!r} is {kind}, not a LoRA"
        )
    check_place(source)
    check_rank(source)
    return source


def parse_distilled(text: str | None) -> Distilled | None:
    """What the metadata of a LoRA of few steps says. Raises: ValueError, a clause, for what is damaged."""
    if text is None:
        return None
    kinds = {field.name: field.type for field in dataclasses.fields(Distilled)}
    try:
        said = parse_json(text)
        if said.keys() != kinds.keys():
            raise ValueError(f"not of the keys {', '.join(kinds)}")
        if wrong := next((name for name, kind in kinds.items() if type(said[name]) is not kind), None):
            raise ValueError(f"{wrong} {quoted(said[wrong])}")
        if said["sampler"] not in SAMPLERS:
            raise ValueError(f"sampler {quoted(said['sampler'])}, which is not one of {', '.join(SAMPLERS)}")
        return Distilled(**said)
    except ValueError as error:
        raise ValueError(f"its {DISTILLED} is {error}") from None


def _settings(path: Place, metadata: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """What PEFT's LoraConfig was, of the file's metadata or of PEFT's own file beside it, else nothing; and where."""
    parent, name = parent_and_name(path)
    beside = open_files(parent)
    config: Mapping[str, Any] = metadata
    where = "the file's metadata"
    if METADATA in metadata:
        try:
            config = parse_json(metadata[METADATA])
        except ValueError as error:
            raise ValueError(f"its {METADATA} is {error}") from None
    elif Path(name).stem == Path(PEFT_FILE).stem and beside.exists(PEFT_CONFIG):
        config, where = read_json_of(beside, PEFT_CONFIG), PEFT_CONFIG
    config = {key.removeprefix("transformer."): value for key, value in config.items()}
    if not isinstance(config.get("rank_pattern"), dict | None):
        raise ValueError(f"its rank_pattern is {quoted(config['rank_pattern'])}, not an object")
    _check_plain(config)
    return config, where


# What PEFT initialises adapters with that are differences from changed weights, whose own files do not hold those.
CHANGES_BASE = ("pissa", "olora", "loftq", "corda")


def _check_plain(config: Mapping[str, Any]) -> None:
    """Raises ValueError for settings of PEFT with which the update is another than scale * b @ a."""
    kind, start = str(config.get("peft_type") or "LORA"), str(config.get("init_lora_weights")).lower()
    if flag(config, "use_dora"):
        raise ValueError("it is a DoRA, which is not supported; save a plain LoRA")
    if kind.upper() != "LORA":
        raise ValueError(f"it is of PEFT's type {quoted(kind)}, which is not supported; save a plain LoRA")
    if start.startswith(CHANGES_BASE):
        raise ValueError(
            f"it began with {quoted(config['init_lora_weights'])}, which changes the model's own weights, too; convert "
            "it to a plain LoRA with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    if config.get("layer_replication"):
        raise ValueError("it repeats layers of the model (layer_replication), which is not supported")


def counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' * (count != 1)}"


def _range(numbers: Sequence[float]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
