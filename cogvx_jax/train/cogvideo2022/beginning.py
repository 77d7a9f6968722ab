"""Where a run of CogVideo (2022) begins: a stage of a model, a new channel beside its base, or nothing at all."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from cogvx_jax.convert.cogvideo2022_folder import COMMON, Parts, read_stages
from cogvx_jax.convert.finite import is_finite, not_finite
from cogvx_jax.models.cogvideo2022.abstract import abstract_network, init_network
from cogvx_jax.models.cogvideo2022.configs import CogVideo2022Config
from cogvx_jax.models.cogvideo2022.transformer import of_base
from cogvx_jax.pipelines.cogvideo2022.weights import check_axes
from cogvx_jax.sharding import put_sharded, shardings
from cogvx_jax.train.cogvideo2022.settings import Trained

OF_FRAMES = tuple("first_position frames text_length".split())  # which super-resolution has others of


class Beginning(NamedTuple):
    """A stage and its parameters: nested dicts of the base and of its channel, float32."""

    cfg: CogVideo2022Config
    params: Mapping[str, Any]
    new: bool  # whether the channel is a new one


def begin(parts: Parts, channel: Trained, *, new: bool = False, seed: int = 0, mesh: Mesh | None = None) -> Beginning:
    """The stage of a folder whose channel is trained, on the mesh; where there is none, with a new channel.

    Args:
      new: begin with a new channel where there is one, too.
    Raises: ValueError for a folder whose kernels are integers, for numbers that are not finite and for a mesh that
      splits what is not here; as `read_stages`.
    """
    check_axes(mesh)
    if parts.how is not None:
        raise ValueError(f"{parts.place} is quantised, and is not trained; give the folder that it was made of")
    cfg, there = stage_of(parts, channel), channel in parts.stages
    source = channel if there else next(iter(parts.stages))
    read = read_stages(dataclasses.replace(parts, stages={source: parts.stages[source]}))[source]
    flat = traverse_util.flatten_dict(read, sep="/")
    if new or not there:
        flat = new_channel(cfg, {path: x for path, x in flat.items() if of_base(path)}, seed)
    if wrong := next((path for path, x in flat.items() if not is_finite(np.asarray(x))), None):
        raise not_finite(parts.place, wrong, with_loras=False)
    where = shardings(abstract_network(cfg), mesh)
    placed = {path: put_sharded(x, where[path]) for path, x in flat.items()}
    return Beginning(cfg, traverse_util.unflatten_dict(placed, sep="/"), new or not there)


def stage_of(parts: Parts, channel: Trained) -> CogVideo2022Config:
    """The sizes of a stage: those that the folder says, or those of a new one beside the same base."""
    if channel in parts.stages:
        return parts.stages[channel]
    base = next(iter(parts.stages.values()))
    names = COMMON if base.stage == "super_resolution" else (*COMMON, *OF_FRAMES)
    return new_stage(channel, {name: getattr(base, name) for name in names})


def new_stage(channel: Trained, sizes: Mapping[str, Any]) -> CogVideo2022Config:
    """A stage of these sizes, with positions for twice the frames after the first and windows of half the grid."""
    grid, frames = sizes["grid"], sizes.get("frames", CogVideo2022Config.frames)
    own: dict[str, Any] = {"extra_positions": frames * grid**2, "window": max(grid // 2, 1)}
    return CogVideo2022Config(stage=channel, **own | dict(sizes))


def new_channel(cfg: CogVideo2022Config, base: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Parameters of a base by path, and a channel that begins as the makers' does.

    Its queries, keys and values are the base's, its positions those of the base's frame, its gate is even and its last
    matrix random.
    """
    found = dict(base)
    for path, own in abstract_network(cfg).items():
        if path in base:
            continue
        if path == "extra_positions":
            frame = base["positions"][cfg.first_position : cfg.first_position + cfg.frame_codes]
            found[path] = np.resize(np.asarray(frame, np.float32), own.shape)  # copies, one after the other
        elif path.startswith("blocks/channel/dense/kernel"):
            found[path] = 0.02 * np.random.default_rng(seed).standard_normal(own.shape, np.float32)
        elif path in ("blocks/channel/gate", "blocks/channel/dense/bias"):
            found[path] = np.zeros(own.shape, np.float32)
        else:
            found[path] = jnp.asarray(base[path.replace("/channel/", "/base/")], "float32")
    return found


def from_nothing(cfg: CogVideo2022Config, seed: int) -> Beginning:
    """A stage whose base, too, is random, as a small model's."""
    flat = init_network(cfg, jax.random.key(seed))
    base = {path: x for path, x in flat.items() if of_base(path)}
    return Beginning(cfg, traverse_util.unflatten_dict(new_channel(cfg, base, seed), sep="/"), True)
