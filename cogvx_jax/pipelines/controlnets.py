"""ControlNets beside a model: opened and checked before any work, read when sampling begins."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from cogvx_jax import sharding
from cogvx_jax.configs import Compute, ControlNetConfig, Kind, ModelSpec, ToraConfig
from cogvx_jax.convert.checkpoint import Published
from cogvx_jax.convert.controlnet import CONFIG, Held, StoredControlNet
from cogvx_jax.convert.controlnet import open_controlnet as open_stored
from cogvx_jax.convert.fingerprints import fingerprint
from cogvx_jax.convert.runs import find_run, read_run_controlnet, run_controlnet_config
from cogvx_jax.data.video import to_model_pixels
from cogvx_jax.hub import fetch_hub
from cogvx_jax.json_files import quoted
from cogvx_jax.models.abstract import abstract_params
from cogvx_jax.models.controlnet import ControlBranch
from cogvx_jax.pipelines.conditions import Control
from cogvx_jax.pipelines.finite import find_not_finite
from cogvx_jax.pipelines.model import Model, check_model, is_hub_id, source_text
from cogvx_jax.sharding import everywhere, params_digest, replicate

CONTROLLED: tuple[Kind, ...] = ("t2v", "i2v")  # kinds of models that may have ControlNets


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ControlNet:
    """A ControlNet that was found to fit a model; `load_controlnet` gives it.

    name: where it lies.
    digest: its `fingerprint`.
    params: on the devices, of `placed_for`; None: they are read whenever sampling begins, and freed after it.
    """

    name: str
    stored: StoredControlNet
    digest: str
    params: Any = None
    placed_for: tuple[Mesh | None, str] | None = None

    @property
    def cfg(self) -> ControlNetConfig:
        return self.stored.cfg

    def __repr__(self) -> str:
        return f"ControlNet({self.name!r}, {self.digest})"

    def on(self, mesh: Mesh | None, dtype: str) -> Any:
        """The parameters on the devices. Raises: ValueError for numbers that are not finite."""
        if self.params is not None and self.placed_for == (mesh, dtype):
            return self.params
        return read_beside(self.cfg, lambda path: self.stored.parameters, mesh, dtype, self.name)


def read_beside(
    cfg: ControlNetConfig | ToraConfig,
    source_of: Callable[[str], Published | Held],
    mesh: Mesh | None,
    dtype: str,
    name: str,
) -> Any:
    """The parameters of a network beside the transformer, on the devices.

    Args:
      source_of: where the parameter of a path is read.
      name: of the network, for messages.
    Raises: ValueError for numbers that are not finite.
    """
    parameters, flat = abstract_params(cfg), {}
    where = sharding.shardings(parameters, mesh)
    for path, parameter in parameters.items():
        source = source_of(path)
        read = functools.partial(source.read, path, np.dtype(dtype))
        flat[path] = sharding.put(read, parameter.shape, np.dtype(dtype), where[path], stacked=parameter.stacked)
        source.release()
    params = traverse_util.unflatten_dict(flat, sep="/")
    if (bad := find_not_finite(params)) is not None:
        raise ValueError(f"{name} holds numbers that are not finite in {bad}: the file is damaged")
    return params


class ControlUse(NamedTuple):
    """A ControlNet with the video that it follows."""

    net: ControlNet
    weights: tuple[float, ...]  # of what each of its blocks gives
    clip: np.ndarray  # (F, H, W, 3) uint8


def load_controlnet(source: str | os.PathLike, model: Model) -> ControlNet:
    """A ControlNet on a model's devices, for `controlnet` of `generate`, which would read it for every video else.

    Args:
      source: a folder in TheDenk's layout, its file of weights alone, a run of `cogvx train --controlnet`, the URL of
        any of them, or a hub id.
    Raises: ValueError for one that does not fit the model, or cannot be read; FileNotFoundError; OSError.
    """
    check_model(model)
    net, dtype = open_controlnet(source, model.spec), model.compute.parameter_dtype("transformer")
    return dataclasses.replace(net, params=net.on(model.mesh, dtype), placed_for=(model.mesh, dtype))


def open_controlnet(source: Any, spec: ModelSpec) -> ControlNet:
    """A ControlNet that fits a model, of which no numbers are read. Raises: as `load_controlnet`."""
    if isinstance(source, ControlNet):
        check_fits(source.cfg, source.name, spec)
        return source
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"controlnet must be a path or what `load_controlnet` gives, got {quoted(source)}")
    name = source_text(source)
    if (run := find_run(name)) is not None:
        check_fits(run_controlnet_config(run), name, spec)
        return held_controlnet(name, *read_run_controlnet(run))
    place = fetch_hub(name, [CONFIG, "*.safetensors"]) if is_hub_id(name) else name
    if "://" not in str(place) and not Path(place).exists():
        raise FileNotFoundError(f"there is no ControlNet {name}; give a folder, a file or a hub id")
    stored = open_stored(place)
    check_fits(stored.cfg, name, spec)
    return ControlNet(name=name, stored=stored, digest=fingerprint(place))


def held_controlnet(name: str, cfg: ControlNetConfig, params: Any) -> ControlNet:
    """One whose parameters, nested, are in memory. Raises: ValueError for numbers that are not finite."""
    if (bad := find_not_finite(params)) is not None:
        raise ValueError(f"{name} holds numbers that are not finite in {bad}: its training diverged")
    return ControlNet(
        name=name, stored=StoredControlNet(cfg=cfg, parameters=Held(params)), digest=params_digest(params)
    )


def check_kind(spec: ModelSpec) -> None:
    """Raises: ValueError for a model of a kind that has no ControlNets."""
    if spec.kind not in CONTROLLED:
        raise ValueError(
            f"{spec.name} is of the kind {spec.kind} and takes no ControlNet; use a text- or image-to-video model"
        )


def check_fits(cfg: ControlNetConfig, name: str, spec: ModelSpec) -> None:
    """Raises: ValueError, one sentence, where a ControlNet is not one for a model."""
    check_kind(spec)
    base, vae = spec.transformer, spec.vae
    if base.patch_t is not None:
        raise ValueError(f"{name} is a ControlNet, and models of 1.5's layout such as {spec.name} can have none")
    pairs = (
        ("width", cfg.state_width, base.width),
        ("latents of channels", cfg.latent_channels, base.out_channels),
        ("text of width", cfg.text_dim, base.text_dim),
        ("patches of", cfg.patch, base.patch),
        ("latents of pixels", cfg.downscale, vae.spatial_compression),
        *([] if base.position == "sincos" else [("heads of width", cfg.head_dim, base.head_dim)]),
    )
    check_sizes(f"the ControlNet {name}", spec, pairs)
    if cfg.layers > base.layers:
        raise ValueError(
            f"the ControlNet {name} does not fit {spec.name}: it has {cfg.layers} blocks, the model {base.layers}"
        )


def check_sizes(name: str, spec: ModelSpec, pairs: Sequence[tuple[str, int, int]]) -> None:
    """Raises: ValueError where a network does not fit a model; pairs are of what, its own size, the model's."""
    for what, ours, theirs in pairs:
        if ours != theirs:
            raise ValueError(
                f"{name} does not fit {spec.name}: it has {what} {ours}, and the model {theirs}; use one that was "
                "trained beside this model"
            )


def branch_of(cfg: ControlNetConfig, spec: ModelSpec, compute: Compute) -> ControlBranch:
    """Its module, computed as the transformer is but for what is of that one's weights, and all rows at once."""
    return ControlBranch(cfg, spec.transformer, branch_compute(compute))


def abstract_beside(cfg: ControlNetConfig | ToraConfig, compute: Compute, mesh: Mesh | None) -> Any:
    """Its parameters as `read_beside` places them, without their numbers."""
    parameters, dtype = abstract_params(cfg), np.dtype(compute.parameter_dtype("transformer"))
    where = sharding.shardings(parameters, mesh)
    flat = {path: jax.ShapeDtypeStruct(p.shape, dtype, sharding=where[path]) for path, p in parameters.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def branch_compute(compute: Compute) -> Compute:
    """How a ControlNet is computed beside a model that is computed so."""
    return Compute(dtype=compute.of("transformer").dtype, mlp_tokens=compute.mlp_tokens)


def control_inputs(
    model: Model, controls: Sequence[ControlUse], videos: int, size: tuple[int, int], shown: np.ndarray | None
) -> tuple[tuple[ControlBranch, ...], Control]:
    """The modules of ControlNets, and what the loop passes to them.

    Args:
      videos: B.
      size: of the videos, (height, width).
      shown: (N,) bool, the steps that see them; None: all.
    """
    dtype = model.compute.parameter_dtype("transformer")
    branches = tuple(branch_of(use.net.cfg, model.spec, model.compute) for use in controls)
    params = tuple(use.net.on(model.mesh, dtype) for use in controls)
    channels = []
    for use, branch, own in zip(controls, branches, params, strict=True):
        clip = replicate(to_model_pixels(use.clip, *size)[None], model.mesh)
        one = encode_program(branch, model.mesh)({"encoder": own["encoder"]}, clip)
        channels.append(jnp.broadcast_to(one, (videos, *one.shape[1:])))
    weights = tuple(np.asarray(use.weights, np.float32) for use in controls)
    return branches, Control(params=params, channels=tuple(channels), weights=weights, active=shown)


@functools.lru_cache
def encode_program(branch: ControlBranch, mesh: Mesh | None):
    """`ControlBranch.encode`, jitted: (params, frames) -> channels, on every device."""

    def encode(params, frames):
        return branch.apply({"params": params}, frames, method="encode")

    return jax.jit(encode, out_shardings=everywhere(mesh))
