"""The ControlNet that a run trains: where it begins, and what a run says of it."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh

from cogvx_jax.configs import ControlNetConfig, ModelSpec
from cogvx_jax.models.abstract import abstract_params
from cogvx_jax.models.controlnet import ControlBranch
from cogvx_jax.pipelines.controlnets import ControlNet, ControlUse, check_fits, held_controlnet, open_controlnet
from cogvx_jax.pipelines.model import Model, absolute_source
from cogvx_jax.pipelines.request import Request
from cogvx_jax.sharding import params_digest, shardings
from cogvx_jax.train.clips.cache import ClipCache
from cogvx_jax.train.transformer.settings import NEW, ControlNetTraining, RunConfig
from cogvx_jax.train.transformer.stages import Stage

LAYERS = 6  # of a new one, as the authors train beside 5B


class Beginning(NamedTuple):
    """What a run of a ControlNet begins with; `net` is None for a new one."""

    cfg: ControlNetConfig
    net: ControlNet | None = None


def find_beginning(spec: ModelSpec, training: ControlNetTraining) -> Beginning:
    """What is to be trained beside a model; no numbers are read.

    Raises: ValueError for a model that can have no ControlNet, or one that does not fit; FileNotFoundError; OSError.
    """
    if training.start not in (None, NEW):
        net = open_controlnet(training.start, spec)
        return Beginning(net.cfg, net)
    cfg = new_config(spec, training.layers)
    check_fits(cfg, "to be trained", spec)
    return Beginning(cfg)


def new_config(spec: ModelSpec, layers: int | None = None) -> ControlNetConfig:
    """Sizes of a ControlNet whose blocks are like the model's.

    It adds fixed positions beside rotary ones, too, as the authors train it: a file of weights alone counts as such.
    """
    base = spec.transformer
    return ControlNetConfig(
        layers=max(1, min(LAYERS, base.layers // 2)) if layers is None else layers,
        heads=base.heads,
        head_dim=base.head_dim,
        latent_channels=base.out_channels,
        downscale=spec.vae.spatial_compression,
        patch=base.patch,
        text_dim=base.text_dim,
        time_dim=base.time_dim,
        out_dim=base.width,
        spatial_interpolation=base.spatial_interpolation,
        temporal_interpolation=base.temporal_interpolation,
        norm_eps=base.norm_eps,
    )


def complete_controlnet(
    spec: ModelSpec, config: RunConfig, stages: Sequence[Stage]
) -> tuple[RunConfig, Beginning | None]:
    """The settings with what a ControlNet leaves open, and what it begins with; of other runs as they are, and None.

    Raises: ValueError for one that cannot be, before anything is read or compiled; as `find_beginning`.
    """
    if config.controlnet is None:
        return config, None
    if any(stage.pack for stage in stages):
        raise ValueError("a ControlNet takes no packed rows; leave out pack")
    begins = find_beginning(spec, config.controlnet)
    if begins.net is None:
        training = dataclasses.replace(config.controlnet, layers=begins.cfg.layers)
    else:
        training = ControlNetTraining(start=absolute_source(str(config.controlnet.start)))
    return dataclasses.replace(config, controlnet=training), begins


def check_controls(caches: Sequence[ClipCache]) -> None:
    """Raises: ValueError for encoded clips without control videos."""
    for cache in caches:
        if not cache.controls:
            raise ValueError(
                f"{cache.folder} holds no control videos; encode the clips to it again from data that has them, as "
                "docs/training.md says"
            )


def first_params(begins: Beginning, spec: ModelSpec, base: Any, seed: int, mesh: Mesh | None) -> Any:
    """The parameters that a run begins with, float32, placed on the mesh.

    Args:
      base: the transformer's parameters, of which a new one takes the first blocks and the embeddings.
    """
    if begins.net is not None:
        return begins.net.on(mesh, "float32")
    where = (
        None if mesh is None else traverse_util.unflatten_dict(shardings(abstract_params(begins.cfg), mesh), sep="/")
    )
    make = functools.partial(_new_params, begins.cfg, spec)
    return jax.jit(make, out_shardings=where)(base, jax.random.key(seed))


def _new_params(cfg: ControlNetConfig, spec: ModelSpec, base: Any, key: jax.Array) -> Any:
    """Random parameters, with the model's own where it has such, and projectors of zeros: it adds nothing yet."""
    patch, side = cfg.patch, cfg.patch * cfg.downscale
    inputs = (
        (1, 1, patch, patch, cfg.latent_channels),
        (1, 1, side, side, 3),
        (1, spec.transformer.text_length, cfg.text_dim),
        (1,),
    )
    drawn = nn.unbox(ControlBranch(cfg, spec.transformer).init(key, *map(jnp.zeros, inputs)))["params"]
    theirs = traverse_util.flatten_dict(base, sep="/")
    found = {}
    for path, own in traverse_util.flatten_dict(drawn, sep="/").items():
        if path.startswith("projectors/"):
            own = jnp.zeros_like(own)
        elif path in theirs:
            # Features of patches are in the order of channels, of which the noisy ones come first.
            count = patch**2 * cfg.latent_channels if path == "patch/kernel" else own.shape[0]
            own = own.at[:count].set(theirs[path][:count].astype(own.dtype))
        found[path] = own
    return traverse_util.unflatten_dict(found, sep="/")


def in_training(cfg: ControlNetConfig) -> ControlNet:
    """It as requests of videos on the way have it: its parameters come when they are made, of `following`."""
    return held_controlnet("in training", cfg, {})


def following(requests: Sequence[Request], params: Any, model: Model) -> list[Request]:
    """Requests of `in_training` with its parameters, which lie on the model's devices."""
    dtype = model.compute.parameter_dtype("transformer")
    placed = jax.tree.map(lambda x: x.astype(dtype), params)

    def with_params(use: ControlUse) -> ControlUse:
        return use._replace(net=dataclasses.replace(use.net, params=placed, placed_for=(model.mesh, dtype)))

    return [dataclasses.replace(one, controls=tuple(map(with_params, one.controls or ()))) for one in requests]


def facts_of(begins: Beginning | None, given: Any) -> Mapping[str, Any]:
    """What run.json says beside the settings: sizes, and which weights it went on from."""
    if begins is None:
        return {}
    digest = {} if begins.net is None else {"controlnet_digest": params_digest(given)}
    return {"controlnet_config": dataclasses.asdict(begins.cfg)} | digest
