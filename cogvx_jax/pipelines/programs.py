"""The programs that a video takes, lowered from shapes alone: what `plan` and `scripts/tpu_cost.py` compile.

They are the ones that `generate` runs: text encoder, denoising step, and the VAE's first two frame batches,
which the others are like.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding

from cogvx_jax import sharding
from cogvx_jax.configs import ModelSpec
from cogvx_jax.diffusion.samplers import SamplerState
from cogvx_jax.models.abstract import abstract_params
from cogvx_jax.nn.backend import BY_PLATFORM, using
from cogvx_jax.pipelines import generate, latents, text
from cogvx_jax.pipelines.model import COMPONENTS, parameter_dtype

TABLE_COLUMNS = 6  # of a sampler's table


@contextlib.contextmanager
def compiling_for(platform: str, mesh: Mesh) -> Iterator[None]:
    """Inside, programs are traced as they would be on `platform`, and kernels see the mesh's devices."""
    with using(BY_PLATFORM[platform]), jax.set_mesh(mesh):
        yield


def abstract_weights(spec: ModelSpec, component: str, mesh: Mesh) -> dict[str, Any]:
    """A component's parameters as `load` places them on the mesh, without their numbers."""
    parameters = abstract_params(getattr(spec, component))
    where = sharding.shardings(parameters, mesh, store_spread=component == "text_encoder")
    dtype = np.dtype(parameter_dtype(spec, component))
    flat = {path: jax.ShapeDtypeStruct(p.shape, dtype, sharding=where[path]) for path, p in parameters.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def weight_bytes(spec: ModelSpec, mesh: Mesh) -> dict[str, int]:
    """Bytes of each component's parameters on a device."""

    def bytes_of(leaf) -> int:
        return int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize

    return {c: sum(map(bytes_of, jax.tree.leaves(abstract_weights(spec, c, mesh)))) for c in COMPONENTS}


def lower_text(spec: ModelSpec, mesh: Mesh, videos: int, *, guided: bool) -> Any:
    """The text encoder over the prompts, and with guidance over what to steer away from."""
    ids = (videos * (1 + guided), spec.transformer.text_length)
    encode = text._encode(spec.text_encoder, mesh)
    return encode.lower(abstract_weights(spec, "text_encoder", mesh), _everywhere(ids, "int32", mesh))


def lower_step(spec: ModelSpec, mesh: Mesh, shape: tuple[int, ...], *, guided: bool) -> Any:
    """One denoising step on latents (B, T, h, w, 16)."""
    cfg = spec.transformer

    def array(shape, dtype="float32"):
        return _everywhere(shape, dtype, mesh)

    states = array((shape[0] * (1 + guided), cfg.text_length, cfg.text_dim), spec.text_encoder.dtype)
    return generate._step(cfg, guided, mesh).lower(
        abstract_weights(spec, "transformer", mesh),
        SamplerState(array(shape), array(shape)),
        states,
        array(shape) if spec.kind == "i2v" else None,
        array((), "int32"),
        array((TABLE_COLUMNS,)),
        array(()),
        array(shape) if spec.defaults.sampler == "dpm" else None,
    )


def lower_decode(spec: ModelSpec, mesh: Mesh, shape: tuple[int, ...], padding: int = 0) -> Iterator[Any]:
    """The VAE's decoder on the first frame batch of one video, and on the second, which takes its cache."""
    return latents.lower_decode(spec.vae, mesh, abstract_weights(spec, "vae", mesh), shape, padding)


def _everywhere(shape: tuple[int, ...], dtype: str, mesh: Mesh) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.dtype(dtype), sharding=NamedSharding(mesh, jax.sharding.PartitionSpec()))
