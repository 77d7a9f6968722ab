"""Whether CogVideo (2022) fits a slice of devices, on which mesh: its programs are compiled from shapes alone.

A code is a pass that reads all weights for a few rows, so what a device reads is what a step takes. "tensor" splits
that, and comes first. "fsdp" splits what is stored alone: each layer's weights go over the wires for every code.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from cogvx_jax import sharding
from cogvx_jax.models.cogvideo2022.abstract import abstract_network, network_of
from cogvx_jax.models.cogvideo2022.configs import (
    IMAGE_TOKENIZER,
    MAX_TEXT,
    CogVideo2022Config,
    ImageTokenizerConfig,
    SuperResolutionConfig,
)
from cogvx_jax.models.cogvideo2022.transformer import Cache, CogVideo2022, Frames, Text
from cogvx_jax.pipelines.cogvideo2022.clusters import Clusters, Draw
from cogvx_jax.pipelines.cogvideo2022.programs import enlarged, first_pass, frame
from cogvx_jax.pipelines.cogvideo2022.system import INTERPOLATION, SEQUENTIAL, SUPER_RESOLUTION
from cogvx_jax.pipelines.cogvideo2022.weights import abstract_stages
from cogvx_jax.pipelines.program_bytes import moved_bytes
from cogvx_jax.pipelines.program_cost import compile_fitting, read_cost
from cogvx_jax.pipelines.weights import device_bytes
from cogvx_jax.planning.lower import compiling_for
from cogvx_jax.planning.targets import GIB, Target, find_target
from cogvx_jax.quantization import Quantization

CLUSTERS = (500, 133)  # of the published table, and codes of the largest
PUBLISHED: Mapping[str, CogVideo2022Config] = {
    SEQUENTIAL: CogVideo2022Config(),
    INTERPOLATION: CogVideo2022Config(stage="interpolation"),
    SUPER_RESOLUTION: SuperResolutionConfig(),
}
Report = Callable[[str], object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is planned for. The defaults are the published model's, and those of `Settings`.

    rows: sequences that are computed together where frames are put in between.
    guided: key frames are, which takes two rows a video.
    """

    stages: Mapping[str, CogVideo2022Config] = dataclasses.field(default_factory=lambda: PUBLISHED)
    images: ImageTokenizerConfig = IMAGE_TOKENIZER
    dtype: str = "bfloat16"
    how: Quantization | None = None
    rows: int = 8
    guided: bool = True

    def rows_of(self, stage: str) -> int:
        return {SEQUENTIAL: 1 + self.guided, INTERPOLATION: self.rows, SUPER_RESOLUTION: 1}[stage]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """A mesh. Sizes are GiB on each device.

    weights: of all stages, the base once, and of the image tokenizer.
    cache: keys and values of the rows that are computed together, the most of any stage.
    beside: what each program takes at its fullest beside weights, its cache among it.
    reads: weights and cache that a code of each stage reads.
    """

    mesh: dict[str, int]
    weights: float
    cache: float
    beside: dict[str, float] = dataclasses.field(default_factory=dict)
    reads: dict[str, float] = dataclasses.field(default_factory=dict)
    moved: dict[str, float] = dataclasses.field(default_factory=dict)
    fits: bool = False
    why: str = ""

    @property
    def memory(self) -> float:
        return self.weights + max(self.beside.values(), default=self.cache)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The meshes that were tried, the best first."""

    model: str
    topology: str
    devices: int
    limit: float | None  # GiB of a device
    dtype: str
    quantize: str | None
    trials: list[Trial]

    @property
    def chosen(self) -> Trial | None:
        return next((trial for trial in self.trials if trial.fits), None)

    def json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)


def plan(
    model: str, sizes: Sizes, *, topology: str | None, device_gb: float | None, every: bool, report: Report
) -> Plan:
    """Tries meshes up to the first that fits; with `every`, all of them.

    Raises: ValueError for an unknown slice, or where libtpu is missing.
    """
    target = find_target(topology, device_gb=device_gb)
    trials: list[Trial] = []
    for shape in meshes(len(target.devices), sizes.stages[SEQUENTIAL].heads):
        trials.append(_try(sizes, target, shape, report))
        if trials[-1].fits and not every:
            break
    return Plan(
        model=model,
        topology=target.name,
        devices=len(target.devices),
        limit=target.memory,
        dtype=sizes.dtype,
        quantize=None if sizes.how is None else sizes.how.name,
        trials=trials,
    )


def meshes(devices: int, heads: int) -> Iterator[dict[str, int]]:
    """Axis -> size, those first on which a device reads the least for a code."""
    ways = [n for n in range(devices, 0, -1) if devices % n == 0 and heads % n == 0]
    for tensor in ways:
        yield {axis: size for axis, size in (("data", devices // tensor), ("tensor", tensor)) if size > 1}
    for tensor in ways:
        if tensor < devices:
            yield {axis: size for axis, size in (("fsdp", devices // tensor), ("tensor", tensor)) if size > 1}


def _try(sizes: Sizes, target: Target, shape: dict[str, int], report: Report) -> Trial:
    mesh = sharding.make_mesh(**shape, devices=target.devices)
    words = sharding.format_mesh(shape)
    params = abstract_stages(sizes.stages, sizes.dtype, mesh, sizes.how)
    images = abstract_network(sizes.images)
    weights = device_bytes({id(leaf): leaf for leaf in jax.tree.leaves(params)}) / GIB
    weights += sum(4 * int(np.prod(p.shape)) for p in images.values()) / GIB
    made = [stage for stage in sizes.stages if stage != SUPER_RESOLUTION]
    caches = {stage: device_bytes(abstract_cache(sizes, stage, mesh)) / GIB for stage in made}
    trial = Trial(
        mesh=shape,
        weights=weights,
        cache=max(caches.values()),
        reads={stage: _read(sizes, stage, params[stage]) / GIB + caches[stage] for stage in made},
    )
    limit = target.memory
    if limit is not None and trial.memory > limit:
        return dataclasses.replace(trial, why=f"weights and cache take {trial.memory:.1f} of {limit:.1f} GiB")
    beside, moved = dict[str, float](), dict[str, float]()
    with compiling_for(target.platform, mesh):
        for name, stage, lowered in lower_all(sizes, mesh):
            report(f"compiling {name} for {words}")
            try:
                compiled = compile_fitting(lowered)
            except MemoryError as error:
                return dataclasses.replace(trial, beside=beside, why=f"{name}: {error}")
            cost = read_cost(compiled, chip=target.slice_chip)
            # Not all of a stage's weights are arguments of each of its programs.
            beside[name] = (cost.peak - min(device_bytes(params[stage]), cost.arguments)) / GIB
            if target.slice_chip is not None and name == frame_of(stage):
                moved[stage] = moved_bytes(compiled.as_text()) / sizes.stages[stage].frame_codes / GIB
    trial = dataclasses.replace(trial, beside=beside, moved=moved)
    if limit is not None and trial.memory > limit:
        return dataclasses.replace(trial, why=f"it takes {trial.memory:.1f} of {limit:.1f} GiB")
    return dataclasses.replace(trial, fits=True)


def _read(sizes: Sizes, stage: str, params: Mapping[str, Any]) -> int:
    """Bytes of the weights that a code reads: those of the layers, and the words that scores are computed with."""
    words = params["words"]
    part = words.shape if words.sharding is None else words.sharding.shard_shape(words.shape)
    return device_bytes(params["blocks"]) + sizes.stages[stage].codes * part[1] * words.dtype.itemsize


def frame_of(stage: str) -> str:
    """What the program of a stage's frame is called."""
    return f"a frame of the {stage} stage"


def lower_all(sizes: Sizes, mesh: Mesh | None) -> Iterator[tuple[str, str, Any]]:
    """The programs of a video that take the most: name, stage, and what to compile."""
    for stage in sizes.stages:
        if stage == SUPER_RESOLUTION:
            yield "super-resolution", stage, _lower_enlarged(sizes, mesh)
        else:
            yield f"first pass of the {stage} stage", stage, _lower_first(sizes, stage, mesh)
            yield frame_of(stage), stage, _lower_frame(sizes, stage, mesh)


def _lower_first(sizes: Sizes, stage: str, mesh: Mesh | None) -> Any:
    network = _network(sizes, stage)
    given = max(network.cfg.given, 1)
    rows, order = sizes.rows_of(stage), network.cfg.order[:given]
    codes = _array((rows, given, network.cfg.frame_codes), "int32", mesh)
    text_bias = 0.0 if sizes.guided and stage == SEQUENTIAL else 1.4
    frames = Frames(order, given, text_bias=text_bias)
    params = abstract_stages(sizes.stages, sizes.dtype, mesh, sizes.how)[stage]
    return first_pass.lower(params, _text(rows, MAX_TEXT, mesh), codes, network=network, frames=frames, mesh=mesh)


def _lower_frame(sizes: Sizes, stage: str, mesh: Mesh | None) -> Any:
    """The last slot's, which sees the most."""
    network, rows = _network(sizes, stage), sizes.rows_of(stage)
    guided = sizes.guided and stage == SEQUENTIAL
    return frame.lower(
        abstract_stages(sizes.stages, sizes.dtype, mesh, sizes.how)[stage],
        abstract_cache(sizes, stage, mesh),
        _array((rows, MAX_TEXT), "bool", mesh),
        Clusters(_array(CLUSTERS, "int32", mesh), _array(CLUSTERS, "bool", mesh)),
        _keys(rows // 2 if guided else rows, mesh),
        network=network,
        slot=network.cfg.frames - 1,
        how=Draw(12, 1.05),
        guidance=3.0 if guided else None,
        text_bias=0.0 if guided else 1.4,
        mesh=mesh,
    )


def _lower_enlarged(sizes: Sizes, mesh: Mesh | None) -> Any:
    cfg = sizes.stages[SUPER_RESOLUTION]
    return enlarged.lower(
        abstract_stages(sizes.stages, sizes.dtype, mesh, sizes.how)[SUPER_RESOLUTION],
        _text(1, cfg.text_length, mesh),
        _array((1, cfg.frame_codes), "int32", mesh),
        Clusters(_array(CLUSTERS, "int32", mesh), _array(CLUSTERS, "bool", mesh)),
        _keys(1, mesh),
        network=network_of(cfg, sizes.dtype),
        how=Draw(6, 1.0, 0.6),
        mesh=mesh,
    )


def abstract_cache(sizes: Sizes, stage: str, mesh: Mesh | None) -> Cache:
    """The cache of a stage's rows, as it lies on the mesh."""
    cfg, rows = sizes.stages[stage], sizes.rows_of(stage)

    def of(length: int) -> tuple[Any, Any]:
        shape = (cfg.layers, rows, length, cfg.heads, cfg.head_dim)
        where = None
        if mesh is not None:
            where = NamedSharding(mesh, sharding.spec(("layers", "batch", None, "heads", None), mesh, shape))
        made = jax.ShapeDtypeStruct(shape, jnp.dtype(sizes.dtype), sharding=where)
        return made, made

    spatial, temporal = (MAX_TEXT + frames * cfg.frame_codes for frames in (1, cfg.frames))
    return Cache(of(spatial), of(temporal))


def _network(sizes: Sizes, stage: str) -> CogVideo2022:
    network = network_of(sizes.stages[stage], sizes.dtype)
    assert isinstance(network, CogVideo2022)
    return network


def _array(shape: tuple[int, ...], dtype: Any, mesh: Mesh | None) -> Any:
    kind = dtype if not isinstance(dtype, str) else np.dtype(dtype)
    return jax.ShapeDtypeStruct(shape, kind, sharding=sharding.everywhere(mesh))


def _text(rows: int, length: int, mesh: Mesh | None) -> Text:
    return Text(_array((rows, length), "int32", mesh), _array((rows, length), "bool", mesh))


def _keys(rows: int, mesh: Mesh | None) -> Any:
    return _array((rows,), jax.eval_shape(jax.random.key, 0).dtype, mesh)
