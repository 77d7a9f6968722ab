"""A model ready to use: its spec, its parameters and its tokenizer; and how to load one."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cogvx_jax import presets, sharding
from cogvx_jax.allocator import give_back_freed_memory, keep_freed_memory
from cogvx_jax.cache import enable_compilation_cache
from cogvx_jax.configs import DTYPES, Compute, ModelSpec
from cogvx_jax.convert import load_params, read_spec
from cogvx_jax.convert import verify as verify_digests
from cogvx_jax.json_files import quoted
from cogvx_jax.models.abstract import abstract_params
from cogvx_jax.models.t5 import T5Encoder
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.models.vae import VAE
from cogvx_jax.nn.attention import logit_bound
from cogvx_jax.pipelines.stored_programs import StoredPrograms, read_programs
from cogvx_jax.pipelines.tokenizer import load_tokenizer
from cogvx_jax.storage import kind_of, open_files

COMPONENTS = ("transformer", "vae", "text_encoder")
FILE_ENDINGS = (".safetensors", ".json", ".ckpt", ".pt", ".bin", ".gguf")
MARKS = {  # a file of a folder that is no model's -> what the folder is
    "run.json": "a run of `cogvx train` or `cogvx train-vae`; `cogvx export` makes a model of it",
    "cache.json": "a cache of `cogvx encode`, for --data of `cogvx train`",
    "programs.json": "a folder of `cogvx compile`, for --programs",
    "pytorch_lora_weights.safetensors": "a LoRA, for --lora",
    "adapter_model.safetensors": "a LoRA, for --lora",
    "scheduler_config.json": "a part of a model; give the folder above it",
    "config.json": "a part of a model, or a model of another layout; give the folder in which model_index.json is",
}
TINY = Path(__file__).parents[1] / "assets" / "tiny"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """What `load` gives and `generate` takes.

    spec: frozen configurations, the same wherever the model runs.
    params: {"transformer": ..., "vae": ..., "text_encoder": ...}, nested dicts of arrays.
    tokenizer: a `transformers` tokenizer for the text encoder.
    compute: the type to compute in, and what else decides how.
    mesh: what the parameters lie on and computation is spread over; None is one device.
    programs: of `cogvx compile`, to run instead of compiling; None compiles what is needed.
    exact: compute each video and branch of guidance alone; see `pipelines.exact`.
    """

    spec: ModelSpec
    params: dict[str, Any]
    tokenizer: Any
    compute: Compute = Compute()
    mesh: Mesh | None = None
    programs: StoredPrograms | None = None
    exact: bool = False

    @property
    def transformer(self) -> Transformer:
        return Transformer(self.spec.transformer, self.compute.of("transformer"))

    @property
    def vae(self) -> VAE:
        return VAE(self.spec.vae, self.compute.of("vae"))

    @property
    def text_encoder(self) -> T5Encoder:
        return T5Encoder(self.spec.text_encoder, self.compute.of("text_encoder"))

    def compiled(self, name: str, function: Any) -> Any:
        """A jitted function, or before it the stored programs of its name; see `StoredPrograms.before`."""
        if self.programs is None or self.exact:  # exact ones are not stored
            return function
        return self.programs.before(function, name, self.spec, self.compute)

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
) -> Model:
    """Loads a model.

    Args:
      source: "tiny", which ships with the package; a folder in the published (diffusers) layout, or of
        `cogvx convert`; the URL of such a folder, such as gs://bucket/model, of which fsspec reads the needed
        byte ranges; a hub id such as "zai-org/CogVideoX-2b"; or a preset's name such as "2b".
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
    Raises: ValueError for an unknown name, a dtype the model cannot work in, a checkpoint that
      does not fit (every problem listed), or programs that were compiled for something else; FileNotFoundError for
      missing files.
    """
    keep_freed_memory()
    enable_compilation_cache()
    folder, mesh = resolve(source), None if mesh is None else sharding.auto(mesh)
    spec = read_spec(folder)
    compute = choose_compute(spec, dtype)
    stored = None if programs is None else read_programs(programs, spec, bounded(folder, spec, compute), mesh)
    if verify:
        verify_digests(folder, components)
    tokenizer = load_tokenizer(folder, spec) if "text_encoder" in components else None
    params = {name: load_component(folder, spec, name, compute.parameter_dtype(name), mesh) for name in components}
    give_back_freed_memory()  # reading leaves holes as large as the weights
    if "transformer" in params:
        compute = with_logit_bound(compute, spec, params["transformer"])
    return Model(spec=spec, params=params, tokenizer=tokenizer, compute=compute, mesh=mesh, programs=stored)


def load_component(
    folder: str | Path, spec: ModelSpec, component: str, dtype: str, mesh: Mesh | None
) -> dict[str, Any]:
    """Parameters of one component in `dtype`, from the file to the devices that hold them.

    The text encoder, used once a video, is stored over all devices of the mesh, whatever the rules.
    """
    parameters = abstract_params(getattr(spec, component))
    where = sharding.shardings(parameters, mesh, store_spread=component == "text_encoder")

    def put(path, shape, dtype, part):
        return sharding.put(part, shape, dtype, where[path], stacked="layers" in parameters[path].names)

    return load_params(folder, spec, component, dtype, put=put)


def load_spec(source: str | os.PathLike) -> ModelSpec:
    """The spec alone: no weights are read or fetched, and presets need no files at all."""
    name = str(source)
    preset = {hub.lower(): preset for preset, hub in presets.HUB.items()}.get(name.lower(), name)
    return presets.PRESETS[preset] if preset in presets.PRESETS else read_spec(resolve(source, weights=False))


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


def bounded(folder: str | Path, spec: ModelSpec, compute: Compute) -> Compute:
    """`with_logit_bound` by what a folder holds, of which no more than the norms of queries and keys is read."""

    def norms_only(path, shape, dtype, part):
        wanted = path.startswith(("blocks/attention/norm_q", "blocks/attention/norm_k"))
        return part(tuple(slice(n) for n in shape)) if wanted else None

    dtype = compute.parameter_dtype("transformer")
    return with_logit_bound(compute, spec, load_params(folder, spec, "transformer", dtype, put=norms_only))


def resolve(source: str | os.PathLike, *, weights: bool = True) -> str | Path:
    """The folder, or its URL, that a source stands for; a hub id is fetched into the hub's cache, needed files only.

    Raises: ValueError for a name that is neither a folder nor known; FileNotFoundError for a
      path without a model; OSError where the hub cannot give the files.
    """
    name = os.fspath(source)
    if not name:
        raise ValueError("the name of the model is empty; give tiny, a folder or a hub id")
    if name == "tiny":
        return TINY
    if "://" in name:
        if not open_files(name).exists("model_index.json"):
            raise FileNotFoundError(f"there is no {name.rstrip('/')}/model_index.json, with which a model begins")
        return name.rstrip("/")
    kind = kind_of(Path(name))
    if kind == "a folder":
        if not (Path(name) / "model_index.json").is_file():
            raise FileNotFoundError(f"{name} has no model_index.json: it is {_folder_kind(Path(name))}")
        return Path(name)
    if kind != "nothing" and name not in presets.PRESETS:
        is_lora = ", unless it is a LoRA, for --lora" if name.endswith(".safetensors") else ""
        raise ValueError(f"{name} is {kind}; give the folder of a model, in which model_index.json is{is_lora}")
    hub = presets.HUB.get(name, name)
    looks_local = name.startswith((".", "/", "~")) or name.endswith((os.sep, *FILE_ENDINGS))
    if looks_local:
        raise FileNotFoundError(f"there is no folder {name}")
    if hub.count("/") != 1:
        known = ", ".join(["tiny", *presets.PRESETS])
        raise ValueError(
            f"unknown model {quoted(name)}; known are {known}, a folder, or a hub id such as zai-org/CogVideoX-2b"
        )
    return _fetch(hub, weights)


def _folder_kind(folder: Path) -> str:
    """What a folder is that is no model's, in words, and what would be right."""
    names = sorted(path.name for path in folder.iterdir())
    found = next((words for mark, words in MARKS.items() if mark in names), None)
    if found is not None:
        return found
    there = ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])])
    return f"not a folder in the published layout; there is {there or 'nothing'}"


def _fetch(hub: str, weights: bool) -> Path:
    import huggingface_hub

    patterns = ["model_index.json", "generation.json", "*/*.json"]
    if weights:
        patterns += [f"{c}/*.safetensors" for c in COMPONENTS] + ["tokenizer/*"]
    try:
        return Path(huggingface_hub.snapshot_download(hub, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises many kinds, httpx's among them
        raise OSError(
            f"could not get {hub} from the hub ({type(error).__name__}: {' '.join(str(error)[:300].split())}); "
            "check the name and the connection, or give a folder"
        ) from error
