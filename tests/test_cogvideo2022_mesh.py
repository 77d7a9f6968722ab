"""CogVideo (2022) on meshes of virtual devices: the same codes and caches as on one device, parts where they belong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import close
from cogvideo2022_small import random_parameters, write_folder
from flax import traverse_util

import cogvx_jax as cx
from cogvx_jax.models.cogvideo2022.abstract import network_of
from cogvx_jax.models.cogvideo2022.configs import CogVideo2022Config, SuperResolutionConfig
from cogvx_jax.models.cogvideo2022.transformer import Frames, Text
from cogvx_jax.pipelines.cogvideo2022.clusters import Clusters, Draw, table_of
from cogvx_jax.pipelines.cogvideo2022.load import load_cogvideo2022
from cogvx_jax.pipelines.cogvideo2022.programs import enlarged, first_pass, frame
from cogvx_jax.pipelines.cogvideo2022.weights import abstract_stages
from cogvx_jax.sharding import replicate

SIZES = dict(layers=2, heads=4, head_dim=4, vocab=100, codes=48, start_of_image=90, grid=4)
STAGES = {
    "sequential": CogVideo2022Config(**SIZES),
    "interpolation": CogVideo2022Config(stage="interpolation", window=2, **SIZES),
    "super_resolution": SuperResolutionConfig(**SIZES),
}
ROWS, LENGTH = 4, 6
MESHES = (dict(data=2), dict(fsdp=2), dict(tensor=2), dict(data=2, fsdp=2, tensor=2), dict(fsdp=8))


def mesh_of(sizes):
    return cx.make_mesh(**sizes, devices=jax.devices()[: int(np.prod(list(sizes.values())))])


def name(sizes):
    return ",".join(f"{k}{v}" for k, v in sizes.items())


@functools.cache
def parameters():
    return random_parameters(STAGES)


def placed(stage, mesh):
    where = abstract_stages(STAGES, "float32", mesh)[stage]
    put = (lambda x, like: jnp.asarray(x)) if mesh is None else (lambda x, like: jax.device_put(x, like.sharding))
    return jax.tree.map(put, parameters()[stage], where)


def inputs(mesh, length=LENGTH, rows=ROWS):
    rng = np.random.default_rng(0)
    real = np.arange(length) >= np.array([0, 2, 1, 3])[:rows, None]
    text = Text(*(replicate(x, mesh) for x in (rng.integers(50, 90, (rows, length)).astype(np.int32), real)))
    clusters = Clusters(*(replicate(x, mesh) for x in table_of(np.arange(48) % 7)))
    keys = jax.random.wrap_key_data(replicate(jax.random.key_data(jax.random.split(jax.random.key(3), rows)), mesh))
    return text, clusters, keys, rng


@functools.cache
def made(stage, mesh):
    """Codes of a frame with guidance, and the cache after it."""
    network = network_of(STAGES[stage])
    params, (text, clusters, keys, rng) = placed(stage, mesh), inputs(mesh)
    given = max(network.cfg.given, 1)
    codes = replicate(rng.integers(0, 48, (ROWS, given, 16)).astype(np.int32), mesh)
    frames = Frames(network.cfg.order[:given], given, text_bias=1.4)
    cache = first_pass(params, text, codes, network=network, frames=frames, mesh=mesh)
    how = dict(slot=given, how=Draw(3), guidance=2.0, text_bias=1.4, mesh=mesh)
    codes, cache, finite = frame(params, cache, text.real, clusters, keys[: ROWS // 2], network=network, **how)
    assert bool(finite)
    return np.asarray(codes), jax.tree.map(np.asarray, cache)


def cases():
    for stage in ("sequential", "interpolation"):
        for sizes in MESHES:
            quick = stage == "sequential" and len(sizes) == 3
            yield pytest.param(stage, sizes, id=f"{stage}-{name(sizes)}", marks=() if quick else pytest.mark.full)


@pytest.mark.parametrize("stage, sizes", list(cases()))
def test_frames_are_the_same_on_every_mesh(stage, sizes):
    codes, cache = made(stage, None)
    theirs, spread = made(stage, mesh_of(sizes))
    np.testing.assert_array_equal(theirs, codes)
    for ours, other in zip(jax.tree.leaves(cache), jax.tree.leaves(spread), strict=True):
        close(other, ours)


@pytest.mark.full
@pytest.mark.parametrize("sizes", MESHES, ids=name)
def test_larger_frames_are_the_same_on_every_mesh(sizes):
    cfg = STAGES["super_resolution"]
    small = np.random.default_rng(1).integers(0, 48, (1, 16)).astype(np.int32)
    found = []
    for mesh in (None, mesh_of(sizes)):
        text, clusters, keys, _ = inputs(mesh, cfg.text_length, 1)
        args = placed("super_resolution", mesh), text, replicate(small, mesh), clusters, keys
        found.append(np.asarray(enlarged(*args, network=network_of(cfg), how=Draw(6, 1.0, 0.6), mesh=mesh)[0]))
    np.testing.assert_array_equal(*found)


@pytest.mark.full
def test_weights_are_split_as_the_rules_say(tmp_path):
    folder = write_folder(tmp_path / "cogvideo")
    system = load_cogvideo2022(folder, mesh=mesh_of(dict(fsdp=2, tensor=2)), quantize="int8")
    up = system.params["sequential"]["blocks"]["base"]["up"]
    assert up["kernel"].addressable_shards[0].data.nbytes * 4 == up["kernel"].nbytes
    assert up["kernel"] is system.params["interpolation"]["blocks"]["base"]["up"]["kernel"]
    flat = traverse_util.flatten_dict(system.params["super_resolution"], sep="/")
    assert flat["blocks/channel/q/kernel"].dtype == "int8"
    assert flat["blocks/channel/q/kernel_scale"].sharding.spec[-1] is not None
