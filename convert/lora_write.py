"""LoRA files of five dialects, out of other LoRA files or of adapters of our transformer."""

import collections
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cogvx_jax.configs import Distilled, ModelSpec
from cogvx_jax.convert.lora_file import DISTILLED, METADATA, LoRAFile, Module
from cogvx_jax.convert.lora_formats import LINEAR, SAT_LAYERS, WRITTEN, Format, Part, numbered
from cogvx_jax.convert.lora_models import parameters
from cogvx_jax.convert.safetensors import Tensor, write_file
from cogvx_jax.convert.sat_folder import LATEST, STATES
from cogvx_jax.convert.tables import Parameter
from cogvx_jax.convert.targets import SAT_TAG
from cogvx_jax.convert.tensors import unwarned
from cogvx_jax.convert.torch_writer import write_torch
from cogvx_jax.models.lora import LoRA, first_distilled
from cogvx_jax.temporaries import check_local, temporary_beside, written_place

Arrays = Mapping[Part, Tensor]  # of a module, each named by its part
SIDES: tuple[Part, Part] = ("a", "b")
KINDS: Mapping[Part, str] = {"diff": "weight", "diff_b": "bias"}  # whole differences, and the tensors they are of
DIFFERENCES: set[Part] = {*KINDS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Update:
    """What is added to a module of the published transformer: alpha / rank * b @ a, and differences as they are.

    arrays: "a" (r, in, ...) and "b" (out, r, ...) or neither, "diff" and "diff_b"; each is made when it is written.
    """

    module: str
    alpha: float
    arrays: Arrays

    @property
    def rank(self) -> int:
        return self.arrays["a"].shape[0] if "a" in self.arrays else 0

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def write_lora(path: str | Path, lora: LoRA, spec: ModelSpec, to: str = "peft", dtype: str | None = None) -> None:
    """Writes a LoRA of the transformer of `spec`, by default as a file that diffusers' `load_lora_weights` opens.

    Args:
      to: the dialect, of `lora_formats.WRITTEN`: peft, kohya, comfyui, fun, sat.
      dtype: of the tensors; None is float32.
    Raises: FileExistsError for a path that is taken; ValueError for adapters of another model, and for what the
      dialect cannot hold.
    """
    _write(path, to, dtype, lambda: of_lora(lora, spec), lora.distilled)


def convert_lora(path: str | Path, file: LoRAFile, to: str = "peft", dtype: str | None = None) -> None:
    """Writes what a LoRA file holds in another dialect. Modules keep their ranks and scales.

    Args:
      to, dtype: as for `write_lora`; a dtype of None is each tensor's own.
    Raises: as `write_lora`.
    """
    _write(path, to, dtype, lambda: of_file(file), file.distilled)


def merge_loras(
    path: str | Path, files: Sequence[tuple[LoRAFile, float]], to: str = "peft", dtype: str | None = None
) -> None:
    """Writes several LoRA files, each times its weight, as one: the ranks of a module are laid side by side.

    It is one of few steps where any is whose weight is positive.

    Raises: as `write_lora`; ValueError where shapes of a module differ.
    """
    distilled = first_distilled([(file.distilled, weight) for file, weight in files])
    _write(path, to, dtype, lambda: _sum([(of_file(file), weight) for file, weight in files]), distilled)


@unwarned()  # `_cast` names the tensor that has numbers beyond its type
def _write(
    path: str | Path, to: str, dtype: str | None, updates: Callable[[], Sequence[Update]], distilled: Distilled | None
) -> None:
    """Writes updates in a dialect; they are asked for when all else is checked."""
    path, row = check_target(path, to)
    if distilled is not None and to == "sat":
        raise ValueError(f"SAT's files have no place for what it is for, {distilled}; write it as peft")
    tensors, metadata = WRITERS[to](row, updates())
    if distilled is not None:
        metadata[DISTILLED] = json.dumps(dataclasses.asdict(distilled))
    tensors = [_cast(tensor, tensor.dtype if tensor.key.endswith(".alpha") else dtype) for tensor in tensors]
    with temporary_beside(path) as partial:
        if to == "sat":
            _write_sat(partial, tensors)
        else:
            write_file(partial, tensors, {"format": "pt", **metadata})


def _write_sat(path: Path, tensors: Sequence[Tensor]) -> None:
    """The file of weights, or a folder that SAT loads from."""
    states = path
    if path.suffix != ".pt":
        states = path / SAT_TAG / STATES
        states.parent.mkdir(parents=True)
        (path / LATEST).write_text(SAT_TAG)
    write_torch(states, tensors, "module")


def check_target(path: str | Path, to: str) -> tuple[Path, Format]:
    """A path to write and the row of a dialect. Raises: as `write_lora`."""
    check_local(path, "a LoRA to write")
    path = Path(path)
    if to not in WRITTEN:
        raise ValueError(f"unknown kind of LoRA file {to!r}; the known ones are {', '.join(WRITTEN)}")
    if path.exists():
        raise FileExistsError(f"{path} exists; nothing was written")
    if to == "sat" and path.suffix not in ("", ".pt"):
        raise ValueError(f"a LoRA of SAT is written as a .pt file or a folder, got {path.name!r}")
    if to != "sat" and path.suffix != ".safetensors":
        raise ValueError(f"a LoRA is written as a .safetensors file, got {path.name!r}")
    if not (folder := written_place(path).parent).is_dir():
        raise FileNotFoundError(f"the folder {str(folder)!r} does not exist; create it first or write elsewhere")
    return path, WRITTEN[to]


def of_lora(lora: LoRA, spec: ModelSpec) -> list[Update]:
    """A LoRA of our transformer, module by module. Raises: ValueError where it is of another model."""
    own = {p.path: p for p, _ in parameters(spec).values()}
    updates: dict[str, Update] = {}
    for path, ab in lora.adapters.items():
        parameter, shape = own.get(path), (*ab["a"].shape[:-1], ab["b"].shape[-1])
        if parameter is None or parameter.shape != shape:
            raise ValueError(f"these are not adapters of {spec.name}: {path} is {shape}")
        rank = ab["a"].shape[-1]
        alpha = lora.alpha if rank == lora.rank else lora.scale * rank
        host = {side: np.asarray(ab[side], np.float32) for side in ("a", "b")}  # a device would slice it block by block
        for i, key in enumerate(parameter.keys):
            a, b = (host[side][i] if parameter.stacked else host[side] for side in ("a", "b"))
            arrays: Arrays = {"a": _theirs(parameter, a, "a"), "b": _theirs(parameter, b, "b")}
            module = key.removesuffix(".weight")
            updates[module] = Update(module=module, alpha=alpha, arrays=arrays)
    for one in lora.differences:
        parameter = own.get(one.path)
        if parameter is None:
            raise ValueError(f"these are not adapters of {spec.name}: it has no {one.path}")
        for i, block in enumerate(one.blocks or (0,)):
            values = np.asarray(one.values if one.blocks is None else one.values[i], np.float32)
            _add(updates, parameter.keys[block], np.ascontiguousarray(parameter.change.write(values)))
    return list(updates.values())


def _theirs(parameter: Parameter, ours: Any, part: Part) -> Tensor:
    """a as (r, in) or for a convolution (r, channels, h, w), b as (out, r) or (out, r, 1, 1)."""
    array = np.asarray(ours, np.float32).T
    window = parameter.their_shape[2:]
    if window:
        array = array.reshape(len(array), -1, *(window if part == "a" else (1, 1)))
    return Tensor.of(part, np.ascontiguousarray(array))


def of_file(file: LoRAFile) -> list[Update]:
    """What a file holds, module by module; adapters are read when they are written.

    Raises: ValueError for a module of no CogVideoX model, which has no name in other dialects.
    """
    if other := next((name for name in file.modules if numbered(name)[0] not in LINEAR), None):
        raise ValueError(f"{file.path} adapts {other}, which no CogVideoX model has")
    updates: dict[str, Update] = {}
    for name, module in file.modules.items():
        arrays: dict[Part, Tensor] = {}
        for part in SIDES:
            entry = file.entry(name, part)
            arrays[part] = Tensor(part, entry.shape, entry.dtype, functools.partial(file.stored, name, part))
        updates[name] = Update(module=name, alpha=_over_rank(module), arrays=arrays)
    for name, difference in file.differences.items():
        _add(updates, name, np.float32(difference.factor) * file.numbers(difference.key))
    return list(updates.values())


def _over_rank(module: Module) -> float:
    """The alpha that divided by the rank is the scale, whatever the rule of the file."""
    scale, value = module.alpha.scale, module.alpha.value
    return value if scale == value / module.rank else scale * module.rank


def _add(updates: dict[str, Update], tensor: str, values: np.ndarray) -> None:
    """Adds a whole difference of a published tensor."""
    module, _, kind = tensor.rpartition(".")
    part = next(part for part, found in KINDS.items() if found == kind)
    update = updates.get(module) or Update(module=module, alpha=1.0, arrays={})
    if part in update.arrays:
        values = values + update.arrays[part].make()
    updates[module] = dataclasses.replace(update, arrays={**update.arrays, part: Tensor.of(part, values)})


def _sum(parts: Sequence[tuple[Sequence[Update], float]]) -> list[Update]:
    """One update of a module for all of it; its scale is 1 where there are several, or weights."""
    grouped: dict[str, list[tuple[Update, float]]] = collections.defaultdict(list)
    for updates, weight in parts:
        for update in updates:
            grouped[update.module].append((update, weight))
    return [_joined(module, several) for module, several in grouped.items()]


def _joined(module: str, parts: Sequence[tuple[Update, float]]) -> Update:
    adapters = [(update, weight) for update, weight in parts if "a" in update.arrays]
    found: dict[Part, Tensor] = {}
    if adapters:
        found = {"a": _side_by_side(module, adapters, "a"), "b": _side_by_side(module, adapters, "b")}
    summed = {module: Update(module=module, alpha=float(sum(update.rank for update, _ in adapters)), arrays=found)}
    for update, weight in parts:
        for part in DIFFERENCES & update.arrays.keys():
            _add(summed, f"{module}.{KINDS[part]}", np.float32(weight) * update.arrays[part].make())
    return summed[module]


def _side_by_side(module: str, parts: Sequence[tuple[Update, float]], part: Part) -> Tensor:
    """The ranks of several adapters of a module; b takes what their scales and weights are."""
    axis = SIDES.index(part)
    tensors = [update.arrays[part] for update, _ in parts]
    others = {(*t.shape[:axis], *t.shape[axis + 1 :]): t.shape for t in tensors}
    if len(others) > 1:
        shapes = " and ".join(map(str, others.values()))
        raise ValueError(f"these LoRAs are of different models: {part.upper()} of {module} is {shapes}")
    shape = list(tensors[0].shape)
    shape[axis] = sum(tensor.shape[axis] for tensor in tensors)
    dtype = np.result_type(*(tensor.dtype for tensor in tensors))

    def make() -> np.ndarray:
        factors = [np.float32(1 if part == "a" else update.scale * weight) for update, weight in parts]
        return np.concatenate([f * t.make() for f, t in zip(factors, tensors, strict=True)], axis).astype(dtype)

    return Tensor(part, tuple(shape), dtype, make)


Written = tuple[list[Tensor], dict[str, str]]  # tensors by their names, and metadata


def _peft(row: Format, updates: Sequence[Update]) -> Written:
    """Biases become PEFT's `lora_bias`, which the scale multiplies; every adapter has one then."""
    _refuse(row, updates, {"diff"})
    biased = any("diff_b" in update.arrays for update in updates)
    tensors = []
    for update in updates:
        if "a" not in update.arrays:
            raise ValueError(
                f"{row.to} files hold no bias without an adapter, as of {update.module}; write it as comfyui"
            )
        tensors += _pair(row, update)
        if biased:
            tensors.append(_named(row, update.module, "bias", _bias(update)))
    ranks = {update.module: update.rank for update in updates}
    alphas = {update.module: update.alpha for update in updates}
    rank, alpha = _most(ranks), _most(alphas)
    config: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "target_modules": sorted(ranks)}
    for name, values, most in (("rank_pattern", ranks, rank), ("alpha_pattern", alphas, alpha)):
        if pattern := {module: value for module, value in sorted(values.items()) if value != most}:
            config[name] = pattern
    config |= {"lora_bias": True} if biased else {}
    return tensors, {METADATA: json.dumps({f"transformer.{key}": value for key, value in config.items()})}


def _kohya(row: Format, updates: Sequence[Update]) -> Written:
    """Of kohya's trainer, VideoX-Fun and ComfyUI: the last alone has differences."""
    _refuse(row, updates, DIFFERENCES - set(row.ends.values()))
    tensors = []
    for update in updates:
        if "a" in update.arrays:
            tensors += _pair(row, update)
            tensors.append(_named(row, update.module, "alpha", Tensor.of("", np.array(update.alpha, np.float32))))
        for part in KINDS:
            if part in update.arrays:
                tensors.append(_named(row, update.module, part, update.arrays[part]))
    return tensors, {}


def _sat(row: Format, updates: Sequence[Update]) -> Written:
    """SAT has one rank for all and the scale 1 / rank: what differs from it goes into b, and what is missing is 0."""
    _refuse(row, updates, DIFFERENCES)
    found = {update.module: update for update in updates}
    if other := next((module for module in found if not row.spelled(numbered(module)[0])), None):
        raise ValueError(f"SAT adapts attention alone, and has no place for {other}; write it as peft")
    widths = {size for u in updates for size in (u.arrays["a"].shape[1], u.arrays["b"].shape[0])}
    if len(widths) > 1:
        raise ValueError(f"attention of CogVideoX has one width, this LoRA's {', '.join(map(str, sorted(widths)))}")
    rank, blocks = max(update.rank for update in updates), max(int(numbered(module)[1]) for module in found) + 1
    tensors = []
    for module in (f"transformer_blocks.{i}.attn1.{layer}" for i in range(blocks) for layer in SAT_LAYERS):
        for part in SIDES:
            tensors.append(_named(row, module, part, _for_sat(found.get(module), updates[0], part, rank)))
    return tensors, {}


def _for_sat(update: Update | None, like: Update, part: Part, rank: int) -> Tensor:
    """a (rank, D) and b (D, rank): an update's with zeros for the ranks it lacks, or all zeros."""
    tensor = like.arrays[part]
    shape = (rank, *tensor.shape[1:]) if part == "a" else (tensor.shape[0], rank)

    def make() -> np.ndarray:
        array = np.zeros(shape, tensor.dtype)
        if update is not None:
            factor = np.float32(1 if part == "a" else update.scale * rank)
            values = update.arrays[part].make()
            array[: len(values) if part == "a" else None, : None if part == "a" else values.shape[1]] = factor * values
        return array

    return Tensor("", shape, tensor.dtype, make)


def _pair(row: Format, update: Update) -> list[Tensor]:
    return [_named(row, update.module, part, update.arrays[part]) for part in SIDES]


def _bias(update: Update) -> Tensor:
    """The bias of PEFT's adapter, which is multiplied by the scale."""
    if "diff_b" in update.arrays:
        return Tensor.of("", (update.arrays["diff_b"].make() / update.scale).astype(np.float32))
    return Tensor.of("", np.zeros(update.arrays["b"].shape[0], np.float32))


def _named(row: Format, module: str, part: Part, tensor: Tensor) -> Tensor:
    return dataclasses.replace(tensor, key=row.written(module, part))


def _cast(tensor: Tensor, dtype: str | np.dtype | None) -> Tensor:
    """The tensor as another type, or as its own. Making it raises ValueError for numbers that are not finite."""
    kind = tensor.dtype if dtype is None else np.dtype(dtype)

    def make() -> np.ndarray:
        array = tensor.make().astype(kind)
        if not np.isfinite(array.astype(np.float32)).all():
            raise ValueError(
                f"{tensor.key} would have numbers that {kind} cannot hold; lower alpha or the weight, or give another "
                "dtype"
            )
        return array

    return dataclasses.replace(tensor, dtype=kind, make=make)


def _refuse(row: Format, updates: Sequence[Update], parts: set[Part]) -> None:
    """Raises ValueError where an update has what a dialect cannot hold."""
    for update in updates:
        for part in parts & update.arrays.keys():
            raise ValueError(
                f"it holds a whole difference of {update.module}.{KINDS[part]}, for which {row.to} files have no "
                "place; write it as comfyui"
            )


def _most(values: Mapping[str, Any]) -> Any:
    """The value that most have, the first of several."""
    return collections.Counter(values.values()).most_common(1)[0][0]


WRITERS: Mapping[str, Callable[[Format, Sequence[Update]], Written]] = {
    "peft": _peft,
    "kohya": _kohya,
    "comfyui": _kohya,
    "fun": _kohya,
    "sat": _sat,
}
