"""Adapters to and from the files of diffusers and PEFT.

Keys are `transformer.transformer_blocks.{i}.attn1.to_q.lora_A.weight`, (r, in), and `.lora_B.weight`, (out, r);
rank and alpha stand in the file's metadata, as JSON under `lora_adapter_metadata`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from cogvx_jax.configs import ModelSpec
from cogvx_jax.convert.checkpoint import component_parameters, read_header
from cogvx_jax.convert.tables import TRANSPOSE, Parameter
from cogvx_jax.models.lora import Adapters, LoRA
from cogvx_jax.presets import PRESETS
from cogvx_jax.storage import LocalFiles

METADATA = "lora_adapter_metadata"
FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")  # what a folder of one may hold
KEY = re.compile(
    r"(?:base_model\.model\.)?(?:transformer\.)?(?:base_model\.model\.)?(?P<module>.+?)\."
    r"(?:(?P<side>lora_[AB])(?:\.(?P<name>[^.]+))?\.weight|(?P<alpha>alpha))"
)


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
        header = read_header(LocalFiles(path.parent), path.name)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a LoRA: {error}") from None
    stored = _Stored(path, header)
    kernels = _kernels(spec)
    _check_modules(stored, kernels, spec)
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
            a[place][..., :r] = np.float32(stored.read(module, "lora_A")).T
            # Modules may differ in their scale; ours has one, so what differs goes into b.
            b[place][..., :r, :] = np.float32(stored.read(module, "lora_B")).T * (scales[module] / first)
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
    tensors = {}
    for name, ab in lora.adapters.items():
        parameter = parameters.get(name)
        shape = (*ab["a"].shape[:-1], ab["b"].shape[-1])
        if parameter is None or parameter.shape != shape:
            raise ValueError(f"these are not adapters of {spec.name}: {name} is {shape}")
        for i, key in enumerate(parameter.keys):
            for side, ours in (("lora_A", ab["a"]), ("lora_B", ab["b"])):
                theirs = np.asarray(ours[i] if parameter.stacked else ours, np.float32).T
                tensors[f"transformer.{_module(key)}.{side}.weight"] = np.ascontiguousarray(theirs)
    modules = sorted({_module(key) for name in lora.adapters for key in parameters[name].keys})
    config = {"r": lora.rank, "lora_alpha": lora.alpha, "target_modules": modules}
    metadata = {"format": "pt", METADATA: json.dumps({f"transformer.{k}": v for k, v in config.items()})}
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(_sorted_header(safetensors.numpy.save(tensors, metadata)))
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def _sorted_header(data: bytes) -> bytes:
    """A safetensors file with its metadata in order, which that package writes in any: equal weights, equal bytes."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


class _Stored:
    """The adapters in a file, by their module's name."""

    def __init__(self, path: Path, header: Mapping[str, Any]):
        self.path, self.header = path, header
        self.keys: dict[tuple[str, str], str] = {}  # (module, "lora_A", "lora_B" or "alpha") -> key
        self.spare: list[str] = []
        names = set()
        for key in header:
            match = KEY.fullmatch(key)
            if match is None:
                self.spare.append(key)
                continue
            self.keys[match["module"], match["side"] or "alpha"] = key
            names |= {match["name"]} - {None}
        self.modules = {module for module, side in self.keys if side != "alpha"}
        if not self.modules:
            raise ValueError(f"{path} holds no LoRA: none of its {len(header)} tensors is a lora_A or lora_B")
        if len(names) > 1:
            raise ValueError(f"{path} holds {len(names)} adapters ({', '.join(sorted(names))}); save each on its own")
        for key in self.spare:
            if "magnitude" in key or "dora" in key:
                raise ValueError(f"{path} is a DoRA ({key}), which is not supported; save a plain LoRA")
            raise ValueError(f"{path} holds {key}, which is no part of a LoRA that can be read")
        for module in self.modules:
            shapes = [header[self.keys[module, s]].shape for s in ("lora_A", "lora_B") if (module, s) in self.keys]
            if len(shapes) != 2:
                raise ValueError(f"{path} holds only one of lora_A and lora_B for {module}")
            if any(len(s) != 2 for s in shapes) or shapes[0][0] != shapes[1][1]:
                raise ValueError(f"{path}: the ranks of {module} disagree, lora_A is {shapes[0]}, lora_B {shapes[1]}")
        self.config = _config(path)

    def rank(self, module: str) -> int:
        return self.header[self.keys[module, "lora_A"]].shape[0]

    def width(self, module: str) -> tuple[int, int]:
        """Features in and out."""
        return self.header[self.keys[module, "lora_A"]].shape[1], self.header[self.keys[module, "lora_B"]].shape[0]

    def scale(self, module: str) -> float:
        """The factor of lora_B @ lora_A."""
        rank = self.rank(module)
        if (module, "alpha") in self.keys:
            return float(self.read(module, "alpha").astype(np.float32).reshape(())) / rank
        alpha = self.config.get("lora_alpha", self.config.get("alpha"))
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):  # as PEFT matches them
                alpha = value
                break
        if alpha is None:
            return 1.0
        return float(alpha) / (rank**0.5 if self.config.get("use_rslora") else rank)

    def read(self, module: str, side: str) -> np.ndarray:
        stored = self.header[self.keys[module, side]]
        count = int(np.prod(stored.shape))
        with open(self.path, "rb") as file:
            file.seek(stored.start)
            data = file.read(count * stored.dtype.itemsize)
        return np.frombuffer(data, stored.dtype, count).reshape(stored.shape)


def _find(source: Path) -> Path:
    if source.is_dir():
        found = [source / name for name in FILES if (source / name).is_file()]
        if not found:
            raise FileNotFoundError(f"{source} holds no LoRA: no {' and no '.join(FILES)}")
        return found[0]
    if not source.is_file():
        raise FileNotFoundError(f"there is no LoRA {str(source)!r}")
    return source


def _config(path: Path) -> dict[str, Any]:
    """What PEFT's LoraConfig was, of the file's metadata or of PEFT's own file beside it; else nothing."""
    with path.open("rb") as file:
        metadata = json.loads(file.read(int.from_bytes(file.read(8), "little"))).get("__metadata__") or {}
    try:
        config = json.loads(metadata[METADATA]) if METADATA in metadata else metadata
        beside = path.with_name("adapter_config.json")
        if METADATA not in metadata and path.name == FILES[1] and beside.is_file():
            config = json.loads(beside.read_text())
        config = {key.removeprefix("transformer."): value for key, value in config.items()}
        for name in ("alpha", "lora_alpha"):
            if config.get(name) is not None:
                float(config[name])
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: its rank and alpha cannot be read: {error}") from None
    if config.get("use_dora"):
        raise ValueError(f"{path} is a DoRA, which is not supported; save a plain LoRA")
    return config


def _kernels(spec: ModelSpec) -> dict[str, tuple[Parameter, int]]:
    """Module names of the transformer's linear layers -> our kernel and the layer in it."""
    linear = [p for p in component_parameters(spec, "transformer") if p.change is TRANSPOSE]
    return {_module(key): (parameter, i) for parameter in linear for i, key in enumerate(parameter.keys)}


def _module(key: str) -> str:
    return key.removesuffix(".weight")


def _check_modules(stored: _Stored, kernels: Mapping[str, tuple[Parameter, int]], spec: ModelSpec) -> None:
    unknown = sorted(stored.modules - kernels.keys(), key=lambda m: [int(n) for n in re.findall(r"\d+", m)])
    problem = None
    if len(unknown) == len(stored.modules):
        problem = f"matches no module of {spec.name}, such as {unknown[0]}"
    elif unknown:
        problem = f"adapts {unknown[0]}, which {spec.name} of {spec.transformer.layers} layers does not have"
    else:
        for module in sorted(stored.modules):
            parameter = kernels[module][0]
            if stored.width(module) != parameter.shape[-2:]:
                (features, out), (f, o) = stored.width(module), parameter.shape[-2:]
                problem = f"does not fit {spec.name}: its {module} is {features} x {out}, the model's {f} x {o}"
                break
    if problem:
        raise ValueError(f"{stored.path} {problem}; {_made_for(stored)}")


def _made_for(stored: _Stored) -> str:
    """A guess at the model, by width and number of layers."""
    layers = [int(m[1]) for module in stored.modules if (m := re.match(r"transformer_blocks\.(\d+)\.", module))]
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
