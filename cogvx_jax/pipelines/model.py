"""A model ready to use: its spec, its parameters and its tokenizer; and how to load one."""

import dataclasses
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cogvx_jax import presets, sharding
from cogvx_jax.allocator import give_back_freed_memory, keep_freed_memory
from cogvx_jax.cache import enable_compilation_cache
from cogvx_jax.configs import DTYPES, Compute, ModelSpec
from cogvx_jax.convert import load_params
from cogvx_jax.convert import verify as verify_digests
from cogvx_jax.convert.checkpoint import check_parts
from cogvx_jax.convert.cogvideo2022_folder import FOLDERS, SIZES
from cogvx_jax.convert.containers import SUFFIXES
from cogvx_jax.convert.quantized_layout import MARK, read_quantization
from cogvx_jax.convert.sources import Place, Source, find_layout, open_source
from cogvx_jax.given import NOTHING, Given
from cogvx_jax.hub import fetch_hub
from cogvx_jax.json_files import quoted
from cogvx_jax.models.abstract import check_groups
from cogvx_jax.models.controlnet import ControlBranch
from cogvx_jax.models.lora import LoRA
from cogvx_jax.models.lora_blocks import Added, add_to_block
from cogvx_jax.models.t5 import T5Encoder
from cogvx_jax.models.taehv import vae_of
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.models.vae import VAE
from cogvx_jax.nn.attention import logit_bound
from cogvx_jax.pipelines.device_memory import free_bytes
from cogvx_jax.pipelines.memory_modes import RESIDENT, TURNS, MemoryMode, check_slices, find_mode
from cogvx_jax.pipelines.origin import Origin, used_loras
from cogvx_jax.pipelines.stored_programs import StoredPrograms, read_programs
from cogvx_jax.pipelines.tokenizer import read_tokenizer
from cogvx_jax.pipelines.turns import Component, Turns
from cogvx_jax.pipelines.weights import COMPONENTS, check_streams, weight_bytes
from cogvx_jax.quantization import Quantization, find_quantization
from cogvx_jax.storage import check_place, kind_of

FILE_ENDINGS = (*SUFFIXES, ".json")
MARKS = {  # a file of a folder that is no model's -> what the folder is
    "run.json": "a run of `cogvx train` or `cogvx train-vae`; `cogvx export` makes a model of it",
    "cache.json": "a cache of `cogvx encode`, for --data of `cogvx train`",
    "programs.json": "a folder of `cogvx compile`, for --programs",
    "pytorch_lora_weights.safetensors": "a LoRA, for --lora",
    "adapter_model.safetensors": "a LoRA, for --lora",
    **dict.fromkeys(
        (SIZES, *FOLDERS.values()),
        "CogVideo (2022), for `cogvx generate`, `replay`, `train`, `info`, `inspect`, `convert`, `quantize`, `plan` "
        "and `enhance`, and in Python for `load_cogvideo2022`; see docs/cogvideo2022.md",
    ),
    "scheduler_config.json": "a part of a model; give the folder above it",
    "config.json": "a part of a model, or a model of another layout; give the folder in which model_index.json is",
}
NORMS = ("blocks/attention/norm_q", "blocks/attention/norm_k")  # which bound attention's logits
NAMES = (*presets.SHIPPED, *presets.PRESETS)  # which come before folders of these names
ASSETS = Path(__file__).parents[1] / "assets"
TINY = ASSETS / "tiny"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """What `load` gives and `generate` takes.

    spec: frozen configurations, the same wherever the model runs.
    params: {"transformer": ..., "vae": ..., "text_encoder": ...}, nested dicts of arrays; where components take turns,
      a `Turns` that reads each when it is asked for, and frees the others.
    tokenizer: a `transformers` tokenizer for the text encoder.
    compute: the type to compute in, and what else decides how.
    mesh: what the parameters lie on and computation is spread over; None is one device.
    programs: of `cogvx compile`, to run instead of compiling; None compiles what is needed.
    exact: compute each video and branch of guidance alone; see `pipelines.exact`.
    memory: of `pipelines.memory_modes`, that `params` and `compute` are of.
    folder: that it was loaded from, in which a calibration may be; see `pipelines.calibration`.
    origin: what `params` were read from, for the record of a video; None where that is not known.
    """

    spec: ModelSpec
    params: Any
    tokenizer: Any
    compute: Compute = Compute()
    mesh: Mesh | None = None
    programs: StoredPrograms | None = None
    exact: bool = False
    memory: MemoryMode = RESIDENT
    folder: str | Path | None = None
    origin: Origin | None = None

    @property
    def transformer(self) -> Transformer:
        return Transformer(self.spec.transformer, self.compute.of("transformer"))

    @property
    def vae(self) -> VAE:
        return vae_of(self.spec.vae, self.compute.of("vae"))

    @property
    def text_encoder(self) -> T5Encoder:
        return T5Encoder(self.spec.text_encoder, self.compute.of("text_encoder"))

    @property
    def known_origin(self) -> Origin | None:
        """`origin`, where `params` still are what it tells of."""
        return self.origin if self.origin is not None and self.origin.is_of(self.params) else None

    def compiled(self, name: str, function: Any, branches: Sequence[ControlBranch] = ()) -> Any:
        """A jitted function, or before it the stored programs of its name; see `StoredPrograms.before`."""
        if self.programs is None or self.exact:  # exact ones are not stored
            return function
        return self.programs.before(function, name, self.spec, self.compute, branches)

    def __repr__(self) -> str:
        return f"Model({self.spec.name!r}, {self.spec.kind}, {self.compute.dtype})"


def load(
    source: str | os.PathLike,
    *,
    mesh: Mesh | None = None,
    dtype: str | None = None,
    components: tuple[str, ...] = COMPONENTS,
    verify: bool = False,
    programs: str | os.PathLike | None = None,
    quantize: str | None = None,
    lora: LoRA | None = None,
    memory: str | MemoryMode | None = None,
    **given: Any,
) -> Model:
    """Loads a model.

    Args:
      source: "tiny" or "tiny-inp", which ship with the package; a folder in the published (diffusers) layout, or of
        `cogvx convert`; the URL of such a folder, such as gs://bucket/model, of which fsspec reads the needed
        byte ranges; a hub id such as "zai-org/CogVideoX-2b"; a preset's name such as "2b"; or files of other
        makers, which docs/files.md lists: what was inferred of them is printed on stderr. A name of a published
        model comes before a folder of that name, which is "./2b"; a folder comes before a hub id.
      mesh: of `cogvx_jax.make_mesh`: where the parameters go, by the rules of `cogvx_jax.sharding`, and
        what `generate` computes on; None is the default device. Each host reads what its devices hold.
      dtype: of parameters and activations. None is the one the checkpoint was trained in on an
        accelerator (on TPUs, which have no float16, bfloat16 for it) and float32 on CPU. The VAE's
        parameters stay float32.
      components: what to load, such as ("vae",) to decode only; the tokenizer comes with the text encoder.
      verify: first read every array whole and compare it with the digest that `cogvx convert` wrote. Without it,
        missing and misshapen arrays are found, and a changed byte only where it breaks the compression.
      programs: a folder of `cogvx compile`, whose programs are run instead of compiling them; what it does not hold
        is compiled, with a warning. Its files are code: trust who wrote them.
      quantize: "int8", "w8a8" or another of `cogvx_jax.quantization`: keep the kernels of the transformer and the text
        encoder as integers. They are quantised layer by layer as they are read. Lossy. None is as they are stored.
      lora: of `find_lora`: adapters to add first, as a quantised model takes none; of several, `models.lora.stack`
        makes one.
      memory: a mode of `pipelines.memory_modes` by its name. None is "resident", or "turns" where a device says how
        much memory it has and the weights do not fit it together.
      given: what the files of the model do not tell, and other files to take parts from: fields of
        `cogvx_jax.given.Given`, such as vae="3d-vae.pt", text_encoder="t5-v1_1-xxl/" or position="rope".
    Raises: ValueError for an unknown name, a dtype the model cannot work in, a checkpoint that
      does not fit (every problem listed), programs that were compiled for something else, or a mode that the devices
      cannot do; FileNotFoundError for missing files.
    """
    asked = None if memory is None else find_mode(memory)
    check_kinds(mesh, components, lora)
    keep_freed_memory()
    enable_compilation_cache()
    folder, mesh = resolve(source), None if mesh is None else sharding.auto(mesh)
    about = Given.of(given)
    files = open_source(folder, about)
    spec = files.spec()
    report_inferred(files)
    check_parts(files, spec, components)
    how, compute = stored_or_asked(files, spec, quantize), choose_compute(spec, dtype)
    if how is not None:
        compute = dataclasses.replace(compute, quantize=how.name)
        if lora is not None and quantize is None:
            check_takes_lora(folder, how.name)
    mode = asked or _by_weights(spec, compute, components, mesh)
    compute = mode.of(compute)
    if compute.streamed:
        device = jax.local_devices()[0] if mesh is None else mesh.local_devices[0]
        check_slices(mode, compute, device.platform)
        check_streams(device)
    made = _components(files, spec, compute, components, mesh, None if quantize is None else how, lora)
    if programs is not None or mode.turns and "transformer" in made:  # before the weights are there
        added = made["transformer"].added if "transformer" in made else ()
        compute = bounded(files, spec, compute, added)
    stored = None if programs is None else read_programs(programs, spec, compute, mesh)
    if verify:
        verify_digests(folder, components)
    tokenizer = read_tokenizer(files.tokenizer, spec) if "text_encoder" in components else None
    params: Any
    if mode.turns:
        params = Turns(made)
        params.check()  # now, not after hours of sampling
    else:
        params = {name: component.load() for name, component in made.items()}
        give_back_freed_memory()  # reading leaves holes as large as the weights
        if "transformer" in params:
            compute = with_logit_bound(compute, spec, params["transformer"])
    origin = Origin(source=source_text(source), place=folder, given=about, quantize=quantize)
    used = () if lora is None else used_loras([(lora, 1.0)])
    return Model(
        spec=spec.distilled(None if lora is None else lora.distilled),
        params=params,
        tokenizer=tokenizer,
        compute=compute,
        mesh=mesh,
        programs=stored,
        memory=mode,
        folder=folder,
        origin=origin.of(params, *used),
    )


def check_kinds(mesh: Any, components: Any = COMPONENTS, lora: Any = None) -> None:
    """Raises ValueError for an argument of `load` of another kind, before any file is opened."""
    if not isinstance(mesh, Mesh | None):
        raise ValueError(f"mesh must be what `make_mesh` gives, got {quoted(mesh)}")
    if not isinstance(components, tuple | list) or not set(components) <= set(COMPONENTS):
        raise ValueError(f"components must be a tuple of some of {', '.join(COMPONENTS)}, got {quoted(components)}")
    if not isinstance(lora, LoRA | None):
        raise ValueError(f"lora must be what `find_lora` gives, got {quoted(lora)}")


def _by_weights(spec: ModelSpec, compute: Compute, components: tuple[str, ...], mesh: Mesh | None) -> MemoryMode:
    """Resident, or taking turns where the components together are too large for a device, which is said."""
    free = free_bytes()
    if free is None:
        return RESIDENT
    sizes = weight_bytes(spec, compute, mesh)
    needed = sum(sizes[name] for name in components)
    if needed <= free or len(components) < 2:
        return RESIDENT
    warnings.warn(
        f"the weights of {spec.name} take {needed / 1e9:.1f} GB, a device has {free / 1e9:.1f} GB free: it "
        f"{TURNS.changes} (memory mode turns); that costs {TURNS.costs}",
        stacklevel=3,
    )
    return TURNS


def _components(
    files: Source,
    spec: ModelSpec,
    compute: Compute,
    names: tuple[str, ...],
    mesh: Mesh | None,
    quantize: Quantization | None,
    lora: LoRA | None,
) -> dict[str, Component]:
    """Where each component is read from, and what is added to it."""
    found = {}
    for name in names:
        added: Added = ((lora, 1.0),) if lora is not None and name == "transformer" else ()
        found[name] = Component(
            files=files, spec=spec, name=name, compute=compute, mesh=mesh, quantize=quantize, added=added
        )
    return found


def report_inferred(source: Source) -> None:
    """Prints on stderr what of a model's spec no file says, and which files were found for it; each line once."""
    for line in source.inferred():
        text = f"cogvx: {source.place}: {line}"
        if text not in _reported:
            _reported.add(text)
            print(text, file=sys.stderr)


_reported: set[str] = set()  # by this process, as a command may open a model several times


def check_model(model: Any) -> None:
    """Raises ValueError where something else is given for a model."""
    if not isinstance(model, Model):
        raise ValueError(f"the model must be what `load` gives, got {quoted(model)}")


def check_spec(spec: Any) -> None:
    """Raises ValueError where something else is given for a model's spec."""
    if not isinstance(spec, ModelSpec):
        raise ValueError(f"the spec must be what `load_spec` gives, or a model's, as model.spec; got {quoted(spec)}")


def load_quantization(source: str | os.PathLike, quantize: str | None = None, given: Given = NOTHING) -> str | None:
    """The name of the quantisation that `load` would give a model, of which no weights are read.

    Raises: ValueError as `stored_or_asked`.
    """
    if _preset(source) is None:
        files = open_source(resolve(source, weights=False), given)
        how = stored_or_asked(files, files.spec(), quantize)
    else:  # those are published as they were trained
        how = None if quantize is None else find_quantization(quantize)
        if how is not None:
            check_groups(load_spec(source, given), how)
    return None if how is None else how.name


def stored_or_asked(files: Place | Source, spec: ModelSpec, quantize: str | None) -> Quantization | None:
    """How a model is quantised once it is loaded: as it is stored, or as `quantize` asks.

    Raises: ValueError for an unknown quantisation, one that its kernels cannot take, or one of a model that is
      quantised already.
    """
    stored = read_quantization(files)
    if quantize is None:
        return stored
    asked = find_quantization(quantize)
    if stored is not None:
        place = files if isinstance(files, str | Path) else files.place
        raise ValueError(
            f"{place} is quantised already, to {stored.name}: leave out the quantisation, or give the original"
        )
    check_groups(spec, asked)
    return asked


def check_trainable(name: object, stored: str | None) -> None:
    """Raises ValueError for a model whose kernels are integers, by the name of its quantisation."""
    if stored is not None:
        raise ValueError(f"{name} is quantised, to {stored}, and cannot be trained; give the original")


def check_takes_lora(source: object, stored: str | None) -> None:
    """Raises ValueError where adapters are for a folder whose kernels are integers, by the name of its quantisation."""
    if stored is not None:
        raise ValueError(
            f"{source} is quantised, to {stored}, and takes no LoRA; give the original, with both the LoRA and the "
            "quantisation"
        )


def load_spec(source: str | os.PathLike, given: Given = NOTHING, *, report: bool = False) -> ModelSpec:
    """The spec alone: no weights are read or fetched, and presets need no files at all.

    Args:
      given: as the keywords of `load`.
      report: print what of it no file says.
    """
    if not isinstance(given, Given):
        raise ValueError(f"given must be a `Given`, got {quoted(given)}")
    preset = _preset(source)
    if preset is not None and not given:
        return presets.PRESETS[preset]
    files = open_source(resolve(source, weights=False), given)
    spec = files.spec()
    if report:
        report_inferred(files)
    return spec


def _preset(source: str | os.PathLike) -> str | None:
    """The preset that a name or a hub id stands for; None where it is something else, such as a folder here."""
    name = source_text(source)
    if name in NAMES:
        _warn_of_both(name)
    preset = {hub.lower(): preset for preset, hub in presets.HUB.items()}.get(name.lower(), name)
    is_here = name not in NAMES and kind_of(Path(name)) != "nothing"
    return preset if preset in presets.PRESETS and not is_here else None


def source_text(source: Any) -> str:
    """The text of a source. Raises: ValueError for what is no text and no path."""
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    if not isinstance(name, str):
        raise ValueError(f"a model is a name, a path or a URL, got {quoted(source)}")
    return name


def absolute_source(source: str) -> str:
    """What a model is loaded from, such that it means the same in whatever folder it is loaded."""
    is_here = source not in NAMES and "://" not in source and kind_of(Path(source)) != "nothing"
    return str(Path(source).absolute()) if is_here else source


def _warn_of_both(name: str) -> None:
    """Where a name of `NAMES` is also that of a model's folder here: the name counts."""
    if kind_of(Path(name)) == "a folder" and find_layout(Path(name)) is not None:
        meant = "the model of the package" if name in presets.SHIPPED else f"{presets.HUB[name]} of the hub"
        warnings.warn(f"{name} is {meant}; the folder of that name here is ./{name}", stacklevel=1)  # once a process


def choose_compute(spec: ModelSpec, dtype: str | None, *, platform: str | None = None) -> Compute:
    """How to compute in `dtype`; see `load`. `platform` is "cpu", "gpu" or "tpu"; None is where jax computes.

    Raises: ValueError for a dtype that is unknown, or that the model cannot work in.
    """
    platform = platform or jax.default_backend()
    if dtype is None:
        dtype = "float32" if platform == "cpu" else spec.trained_dtype
        if platform == "tpu" and dtype == "float16":
            dtype = "bfloat16"  # TPUs have no float16: it would be computed as float32
    dtype = str(np.dtype(dtype)) if dtype in ("float", "single", "half") else str(getattr(dtype, "__name__", dtype))
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; the known ones are {', '.join(DTYPES)}")
    if dtype == "float16" and spec.trained_dtype == "bfloat16":
        raise ValueError(f"{spec.name} was trained in bfloat16 and overflows in float16; use bfloat16 or float32")
    return Compute(dtype=dtype)


def with_logit_bound(compute: Compute, spec: ModelSpec, transformer: Any) -> Compute:
    """`compute` with the bound on attention's logits that these parameters of the spec's transformer give.

    It holds for these weights alone: to train on, replace it by None.
    """
    block = transformer["blocks"]["attention"]
    norms = (block[norm][name] for norm in ("norm_q", "norm_k") for name in ("scale", "bias"))
    return dataclasses.replace(compute, logit_bound=logit_bound(*norms, scale=spec.transformer.head_dim**-0.5))


def bounded(files: Place | Source, spec: ModelSpec, compute: Compute, added: Added = ()) -> Compute:
    """`with_logit_bound` by what a model's files hold, of which no more than the norms of queries and keys is read.

    Args:
      added: LoRAs that are added to them.
    """

    def norms_only(path, shape, dtype, part):
        if not path.startswith(NORMS):
            return None
        index = tuple(slice(n) for n in shape)
        return add_to_block(added, path, index, part(index))

    dtype = compute.parameter_dtype("transformer")
    return with_logit_bound(compute, spec, load_params(files, spec, "transformer", dtype, put=norms_only))


def resolve(source: str | os.PathLike, *, weights: bool = True) -> str | Path:
    """The folder or file, or its URL, that a source stands for; a hub id's needed files are fetched into its cache.

    Raises: ValueError for a name that is neither a folder nor known; FileNotFoundError for a
      path without a model; OSError where the hub cannot give the files.
    """
    name = source_text(source)
    if not name:
        raise ValueError("the name of the model is empty; give tiny, a folder or a hub id")
    if name in NAMES:
        _warn_of_both(name)
        return ASSETS / name if name in presets.SHIPPED else _fetch(presets.HUB[name], weights)
    if "://" in name:
        if find_layout(name) is None:
            raise FileNotFoundError(f"there is no {name.rstrip('/')}/model_index.json, with which a model begins")
        return name.rstrip("/")
    kind = kind_of(Path(name))
    if kind in ("a file", "a folder"):
        check_place(name)
    if kind != "nothing" and find_layout(Path(name)) is not None:
        return Path(name)
    if kind == "a folder":
        raise FileNotFoundError(f"{name} has no model_index.json: it is {_folder_kind(Path(name))}")
    if kind != "nothing":
        is_lora = ", unless it is a LoRA, for --lora" if name.endswith(".safetensors") else ""
        raise ValueError(f"{name} is {kind}; give the folder of a model, in which model_index.json is{is_lora}")
    if _looks_local(name):
        raise FileNotFoundError(f"there is no folder {name}")
    if name in presets.SHIPPED_2022:
        raise ValueError(f"{name} is {MARKS[SIZES]}")
    if name.count("/") != 1:
        known = ", ".join((*NAMES, *presets.SHIPPED_2022))
        raise ValueError(
            f"unknown model {quoted(name)}; known are {known}, a folder, or a hub id such as zai-org/CogVideoX-2b"
        )
    return _fetch(name, weights)


def _folder_kind(folder: Path) -> str:
    """What a folder is that is no model's, in words, and what would be right."""
    names = sorted(path.name for path in folder.iterdir())
    found = next((words for mark, words in MARKS.items() if mark in names), None)
    if found is not None:
        return found
    there = ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])])
    return f"not a folder in the published layout; there is {there or 'nothing'}"


def is_hub_id(name: str) -> bool:
    """Whether a source that is nothing here looks like an id of the hub, such as "zai-org/CogVideoX-2b"."""
    return name.count("/") == 1 and not _looks_local(name) and kind_of(Path(name)) == "nothing"


def _looks_local(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith((os.sep, *FILE_ENDINGS))


def _fetch(hub: str, weights: bool) -> Path:
    patterns = ["model_index.json", "generation.json", MARK, "*/*.json"]
    if weights:
        patterns += [f"{c}/*.safetensors" for c in COMPONENTS] + ["tokenizer/*"]
    return fetch_hub(hub, patterns)
