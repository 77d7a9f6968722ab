"""Adapters to and from files; how their tensors are named is in `convert.lora_formats`.

Rank and alpha stand in the file's metadata, as JSON under `lora_adapter_metadata`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from cogvx_jax.configs import ModelSpec
from cogvx_jax.convert.checkpoint import component_parameters
from cogvx_jax.convert.lora_alpha import flag, positive
from cogvx_jax.convert.lora_formats import FORMATS, Format, unread_naming
from cogvx_jax.convert.safetensors import Header, Tensor, read_header, write_file
from cogvx_jax.convert.tables import TRANSPOSE, Parameter
from cogvx_jax.json_files import parse_json, quoted, read_json
from cogvx_jax.models.lora import Adapters, LoRA
from cogvx_jax.presets import PRESETS
from cogvx_jax.storage import LocalFiles, kind_of
from cogvx_jax.temporaries import temporary_beside

METADATA = "lora_adapter_metadata"
FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")  # what a folder of one may hold


def read_lora(source: str | Path, spec: ModelSpec) -> LoRA:
    """Reads a LoRA for the transformer of `spec`.

    Modules of several ranks or alphas become adapters of the highest rank; layers without an adapter
    get zeros. Where the file says nothing about alpha, it is the rank, as for diffusers.

    Args:
      source: a safetensors file, or a folder that holds one under the name diffusers or PEFT gives it.
    Raises: FileNotFoundError; ValueError, one sentence, for a file that is damaged, holds no LoRA, or
      one that cannot be this model's, which names the model it looks made for.
    """
    path = _find(Path(source))
    try:
        stored = _Stored(path, spec)
        _check_modules(stored, spec)
        return _lora(stored, _kernels(spec))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a LoRA: {error}") from None


def _lora(stored: "_Stored", kernels: Mapping[str, tuple[Parameter, int]]) -> LoRA:
    rank = max(stored.rank(module) for module in stored.modules)
    scales = {module: stored.scale(module) for module in stored.modules}
    first = scales[min(scales)]
    adapters: Adapters = {}
    for parameter in dict.fromkeys(kernels[module][0] for module in stored.modules):
        a = np.zeros((*parameter.shape[:-1], rank), np.float32)
        b = np.zeros((*parameter.shape[:-2], rank, parameter.shape[-1]), np.float32)
        for module in stored.modules & {_module(key) for key in parameter.keys}:
            place = kernels[module][1] if parameter.stacked else ...
            r = stored.rank(module)
            a[place][..., :r], own = stored.read(module)
            # Modules may differ in their scale; ours has one, so what differs goes into b.
            b[place][..., :r, :] = own * (scales[module] / first)
        adapters[parameter.path] = {"a": jnp.asarray(a), "b": jnp.asarray(b)}
    return LoRA(adapters=adapters, rank=rank, alpha=first * rank)


def write_lora(path: str | Path, lora: LoRA, spec: ModelSpec) -> None:
    """Writes a LoRA of the transformer of `spec` as a file that diffusers' `load_lora_weights` opens.

    Raises: FileExistsError for a path that is taken; ValueError for adapters of another model.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists; nothing was written")
    if path.suffix != ".safetensors":
        raise ValueError(f"a LoRA is written as a .safetensors file, got {path.name!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {str(path.parent)!r} does not exist; create it first or write elsewhere")
    parameters = {p.path: p for p in component_parameters(spec, "transformer")}
    tensors, row = [], FORMATS[0]
    for name, ab in lora.adapters.items():
        parameter = parameters.get(name)
        shape = (*ab["a"].shape[:-1], ab["b"].shape[-1])
        if parameter is None or parameter.shape != shape:
            raise ValueError(f"these are not adapters of {spec.name}: {name} is {shape}")
        for i, key in enumerate(parameter.keys):
            for side, ours in zip(row.sides, (ab["a"], ab["b"]), strict=True):
                theirs = np.ascontiguousarray(np.asarray(ours[i] if parameter.stacked else ours, np.float32).T)
                tensors.append(Tensor.of(row.written.format(module=_module(key), side=side), theirs))
    modules = sorted({_module(key) for name in lora.adapters for key in parameters[name].keys})
    config = {"r": lora.rank, "lora_alpha": lora.alpha, "target_modules": modules}
    metadata = {"format": "pt", METADATA: json.dumps({f"transformer.{k}": v for k, v in config.items()})}
    with temporary_beside(path) as partial:
        write_file(partial, tensors, metadata)


class _Stored:
    """The adapters in a file, by their module's name in the published transformer.

    Raises: ValueError, which does not name the file.
    """

    def __init__(self, path: Path, spec: ModelSpec):
        self._files = LocalFiles(path.parent)
        self.header = read_header(self._files, path.name)
        self.format, found = _find_format(self.header)
        modules = {self.format.spelled(module): module for module in _kernels(spec)}
        self._keys: dict[tuple[str, str], str] = {}  # (module, side or "alpha") -> key
        for key, match in found.items():
            module = modules.get(match["module"], match["module"])
            self._keys[module, match["side"] or "alpha"] = key
        self.modules = {module for module, side in self._keys if side != "alpha"}
        for module in self.modules:
            self._check_shapes(module)
        self._scale = self.format.scale(_config(path, self.header))

    def _check_shapes(self, module: str) -> None:
        first, second = self.format.sides
        shapes = [self.header[self._keys[module, s]].shape for s in (first, second) if (module, s) in self._keys]
        if len(shapes) != 2:
            raise ValueError(f"it holds only one of {first} and {second} for {module}")
        if any(len(s) != 2 for s in shapes) or shapes[0][0] != shapes[1][1]:
            raise ValueError(f"the ranks of {module} disagree, {first} is {shapes[0]}, {second} {shapes[1]}")
        if 0 in (*shapes[0], *shapes[1]):
            raise ValueError(f"{module} has no numbers, {first} is {shapes[0]}, {second} {shapes[1]}")

    def rank(self, module: str) -> int:
        return self.header[self._keys[module, self.format.sides[0]]].shape[0]

    def width(self, module: str) -> tuple[int, int]:
        """Features in and out."""
        a, b = (self.header[self._keys[module, side]].shape for side in self.format.sides)
        return a[1], b[0]

    def scale(self, module: str) -> float:
        """The factor of b @ a."""
        rank = self.rank(module)
        if (module, "alpha") not in self._keys:
            return self._scale(module, rank)
        alpha = self._read(module, "alpha")
        if alpha.size != 1:
            raise ValueError(f"its alpha of {module} has the shape {alpha.shape}, and must be one number")
        return positive(float(alpha.reshape(())), f"alpha of {module}") / rank

    def read(self, module: str) -> tuple[np.ndarray, np.ndarray]:
        """a (in, r) and b (r, out), float32."""
        a, b = (self._read(module, side).T for side in self.format.sides)
        return a, b

    def _read(self, module: str, side: str) -> np.ndarray:
        key = self._keys[module, side]
        stored = self.header[key]
        with np.errstate(over="ignore"):  # of a float64 that float32 cannot hold
            numbers = self._files.read(stored.span).view(stored.dtype).reshape(stored.shape).astype(np.float32)
        if not np.isfinite(numbers).all():
            raise ValueError(f"{key} holds numbers that are not finite: its training diverged")
        return numbers


def _find_format(header: Mapping[str, Any]) -> tuple[Format, dict[str, re.Match[str]]]:
    """The row of `FORMATS` that a file's names are of, and how it matches each of them."""
    for key in header:
        if naming := unread_naming(key):
            raise ValueError(
                f"it has the naming of {naming} ({key}), which is not read yet; "
                "save it as diffusers or PEFT do, with lora_A and lora_B"
            )
    for row in FORMATS:
        found = {key: match for key in header if (match := row.key.fullmatch(key))}
        if any(match["side"] for match in found.values()):
            break
    else:
        sides = " or ".join(" or a ".join(row.sides) for row in FORMATS)
        raise ValueError(f"it holds no LoRA: none of its {len(header)} tensors is a {sides}")
    adapters = {match["adapter"] for match in found.values()} - {None} if "adapter" in row.key.groupindex else set()
    if len(adapters) > 1:
        raise ValueError(f"it holds {len(adapters)} adapters ({_some(sorted(adapters))}); save each on its own")
    for key in header.keys() - found.keys():
        if "magnitude" in key or "dora" in key:
            raise ValueError(f"it is a DoRA ({key}), which is not supported; save a plain LoRA")
        raise ValueError(f"it holds {key}, which is no part of a LoRA that can be read")
    return row, found


def _some(names: list[str]) -> str:
    return ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])])


def _find(source: Path) -> Path:
    if source.is_dir():
        found = [source / name for name in FILES if (source / name).is_file()]
        if not found:
            raise FileNotFoundError(f"{source} holds no LoRA: no {' and no '.join(FILES)}")
        return found[0]
    if not source.is_file():
        kind = kind_of(source)
        raise FileNotFoundError(
            f"there is no LoRA {str(source)!r}" if kind == "nothing" else f"{str(source)!r} is {kind}, not a LoRA"
        )
    return source


def _config(path: Path, header: Header) -> dict[str, Any]:
    """What PEFT's LoraConfig was, of the file's metadata or of PEFT's own file beside it; else nothing."""
    beside = path.with_name("adapter_config.json")
    config: Mapping[str, Any] = header.metadata
    if METADATA in header.metadata:
        try:
            config = parse_json(header.metadata[METADATA])
        except ValueError as error:
            raise ValueError(f"its {METADATA} is {error}") from None
    elif path.name == FILES[1] and beside.is_file():
        config = read_json(beside)
    config = {key.removeprefix("transformer."): value for key, value in config.items()}
    if not isinstance(config.get("rank_pattern"), dict | None):
        raise ValueError(f"its rank_pattern is {quoted(config['rank_pattern'])}, not an object")
    if flag(config, "use_dora"):
        raise ValueError("it is a DoRA, which is not supported; save a plain LoRA")
    return config


def _kernels(spec: ModelSpec) -> dict[str, tuple[Parameter, int]]:
    """Module names of the transformer's linear layers -> our kernel and the layer in it."""
    linear = [p for p in component_parameters(spec, "transformer") if p.change is TRANSPOSE]
    return {_module(key): (parameter, i) for parameter in linear for i, key in enumerate(parameter.keys)}


def _module(key: str) -> str:
    return key.removesuffix(".weight")


def _check_modules(stored: _Stored, spec: ModelSpec) -> None:
    kernels = _kernels(spec)
    unknown = sorted(stored.modules - kernels.keys(), key=lambda m: [int(n) for n in re.findall(r"\d{1,9}", m)])
    problem = None
    if len(unknown) == len(stored.modules):
        problem = f"it matches no module of {spec.name}, such as {unknown[0]}"
    elif unknown:
        problem = f"it adapts {unknown[0]}, which {spec.name} of {spec.transformer.layers} layers does not have"
    else:
        for module in sorted(stored.modules):
            parameter = kernels[module][0]
            if stored.width(module) != parameter.shape[-2:]:
                (features, out), (f, o) = stored.width(module), parameter.shape[-2:]
                problem = f"it does not fit {spec.name}: its {module} is {features} x {out}, the model's {f} x {o}"
                break
    if problem:
        raise ValueError(f"{problem}; {_made_for(stored)}")
    for module in sorted(stored.modules):
        if stored.rank(module) > min(stored.width(module)):
            raise ValueError(f"the rank {stored.rank(module)} of {module} is above its smaller side")


def _made_for(stored: _Stored) -> str:
    """A guess at the model, by width and number of layers."""
    layers = [int(m[1]) for module in stored.modules if (m := re.match(r"transformer_blocks\.(\d{1,6})\.", module))]
    widths = {stored.width(module)[0] for module in stored.modules if "attn1" in module}
    if not layers or len(widths) != 1:
        return "it looks made for no CogVideoX model"
    found = {"width": widths.pop(), "layers": max(layers) + 1}
    like = [
        spec.name
        for spec in PRESETS.values()
        if {"width": spec.transformer.width, "layers": spec.transformer.layers} == found
    ]
    size = f"width {found['width']} and {found['layers']} layers"
    return f"it looks made for {' or '.join(like)} ({size})" if like else f"it looks made for a model of {size}"
