"""The programs of a video, lowered from shapes alone: `plan`, `compile` and `scripts/tpu_cost.py` compile them.

They are the ones that `generate` runs: text encoder, denoising step or all steps in one, and the VAE's first two
frame batches, which the others are like.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from cogvx_jax import sharding
from cogvx_jax.configs import Compute, ModelSpec
from cogvx_jax.diffusion.samplers import COLUMNS, SAMPLERS
from cogvx_jax.diffusion.update import SamplerState
from cogvx_jax.models.abstract import Abstract, abstract_params, quantized
from cogvx_jax.models.t5 import T5Encoder
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.models.vae import VAE
from cogvx_jax.nn.backend import BY_PLATFORM, using
from cogvx_jax.pipelines import denoise, latents, text
from cogvx_jax.pipelines.model import COMPONENTS
from cogvx_jax.pipelines.noise import SeededNoise
from cogvx_jax.quantization import find_quantization


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoPrograms:
    """All inputs that programs depend on: videos of equal values run the same programs."""

    spec: ModelSpec
    compute: Compute
    mesh: Mesh | None
    shape: tuple[int, ...]  # of the sampled latents (B, T, h, w, C)
    padding: int = 0  # latent frames that are dropped before decoding
    guided: bool = True
    sampler: str | None = None  # None: the model's own
    steps: int | None = None  # in one program; None is one step a program
    source: tuple[int, ...] | None = None  # (B, F, H, W, 3) of a video to start from

    def names(self) -> tuple[str, ...]:
        """The programs of a video, in the order of use."""
        encodes = self.spec.kind == "i2v" or self.source is not None
        return ("text", *(["encode"] if encodes else []), "step" if self.steps is None else "loop", "decode")

    def lower(self, name: str) -> Iterator[Any]:
        """The program, or the programs of the first and of later frame batches, lowered."""
        spec, compute, mesh, shape = self.spec, self.compute, self.mesh, self.shape
        if name == "text":
            yield lower_text(spec, compute, mesh, shape[0], guided=self.guided)
        elif name == "step":
            yield lower_step(spec, compute, mesh, shape, guided=self.guided, sampler=self.sampler)
        elif name == "loop":
            assert self.steps is not None
            yield lower_loop(spec, compute, mesh, shape, self.steps, guided=self.guided, sampler=self.sampler)
        elif name == "decode":
            yield from lower_decode(spec, compute, mesh, shape, self.padding)
        else:
            scale = spec.vae.spatial_compression
            image = (1, 1, shape[2] * scale, shape[3] * scale, 3)
            yield from lower_encode(spec, compute, mesh, self.source or image)


@contextlib.contextmanager
def compiling_for(platform: str, mesh: Mesh) -> Iterator[None]:
    """Inside, programs are traced as they would be on `platform`, and kernels see the mesh's devices."""
    with using(BY_PLATFORM[platform]), jax.set_mesh(mesh):
        yield


def abstract_weights(spec: ModelSpec, compute: Compute, component: str, mesh: Mesh | None) -> dict[str, Any]:
    """A component's parameters as `load` places them on the mesh, without their numbers."""
    parameters = _parameters(spec, compute, component)
    where = sharding.shardings(parameters, mesh, store_spread=component == "text_encoder")
    own = compute.parameter_dtype(component)
    flat = {
        path: jax.ShapeDtypeStruct(p.shape, np.dtype(p.dtype or own), sharding=where[path])
        for path, p in parameters.items()
    }
    return traverse_util.unflatten_dict(flat, sep="/")


def _parameters(spec: ModelSpec, compute: Compute, component: str) -> dict[str, Abstract]:
    how = compute.of(component).quantize
    return quantized(abstract_params(getattr(spec, component)), None if how is None else find_quantization(how))


def weight_bytes(spec: ModelSpec, compute: Compute, mesh: Mesh | None) -> dict[str, int]:
    """Bytes of each component's parameters on a device."""

    def bytes_of(component: str) -> int:
        parameters = _parameters(spec, compute, component)
        placed = traverse_util.flatten_dict(abstract_weights(spec, compute, component, mesh), sep="/")
        dtype, total = compute.parameter_dtype(component), 0
        for path, leaf in placed.items():
            part = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
            total += parameters[path].bytes(part, dtype)
        return total

    return {component: bytes_of(component) for component in COMPONENTS}


def lower_text(spec: ModelSpec, compute: Compute, mesh: Mesh | None, videos: int, *, guided: bool) -> Any:
    """The text encoder over the prompts, and with guidance over the negative prompts."""
    ids = (videos * (1 + guided), spec.transformer.text_length)
    encode = text.encode_program(T5Encoder(spec.text_encoder, compute.of("text_encoder")), mesh)
    return encode.lower(abstract_weights(spec, compute, "text_encoder", mesh), _everywhere(ids, "int32", mesh))


def lower_step(
    spec: ModelSpec,
    compute: Compute,
    mesh: Mesh | None,
    shape: tuple[int, ...],
    *,
    guided: bool,
    sampler: str | None = None,
) -> Any:
    """One denoising step on latents (B, T, h, w, 16)."""
    transformer = Transformer(spec.transformer, compute.of("transformer"))
    step, drawn = denoise.step_program(transformer, guided, mesh), _everywhere(shape, "float32", mesh)
    arguments = _denoising(spec, compute, mesh, shape, (), guided=guided)
    return step.lower(*arguments, drawn if _draws(spec, sampler) else None)


def lower_loop(
    spec: ModelSpec,
    compute: Compute,
    mesh: Mesh | None,
    shape: tuple[int, ...],
    steps: int,
    *,
    guided: bool,
    sampler: str | None = None,
) -> Any:
    """All denoising steps as one program, which draws its noise itself."""
    loop = denoise.loop_program(Transformer(spec.transformer, compute.of("transformer")), guided, mesh)
    arguments = _denoising(spec, compute, mesh, shape, (steps,), guided=guided)
    return loop.lower(*arguments, SeededNoise.abstract() if _draws(spec, sampler) else None)


def _denoising(
    spec: ModelSpec,
    compute: Compute,
    mesh: Mesh | None,
    shape: tuple[int, ...],
    steps: tuple[int, ...],
    *,
    guided: bool,
):
    """Arguments of step and loop, without the noise; `steps` is the leading axis of those that differ a step."""

    def array(shape, dtype="float32"):
        return _everywhere(shape, dtype, mesh)

    cfg = spec.transformer
    return (
        abstract_weights(spec, compute, "transformer", mesh),
        SamplerState(array(shape), array(shape)),
        array((shape[0] * (1 + guided), cfg.text_length, cfg.text_dim), compute.of("text_encoder").dtype),
        array(shape) if spec.kind == "i2v" else None,
        array(steps, "int32"),
        array((*steps, COLUMNS)),
        array(steps),
    )


def _draws(spec: ModelSpec, sampler: str | None) -> bool:
    return SAMPLERS[sampler or spec.defaults.sampler].stochastic


def lower_encode(spec: ModelSpec, compute: Compute, mesh: Mesh | None, shape: tuple[int, ...]) -> Iterator[Any]:
    """The VAE's encoder on the first two frame batches of one of the clips (B, F, H, W, 3)."""
    vae = VAE(spec.vae, compute.of("vae"))
    return latents.lower_encode(vae, mesh, abstract_weights(spec, compute, "vae", mesh), shape)


def lower_decode(
    spec: ModelSpec, compute: Compute, mesh: Mesh | None, shape: tuple[int, ...], padding: int = 0
) -> Iterator[Any]:
    """The VAE's decoder on the first frame batch of one video, and on the second, which takes its cache."""
    vae = VAE(spec.vae, compute.of("vae"))
    return latents.lower_decode(vae, mesh, abstract_weights(spec, compute, "vae", mesh), shape, padding)


def _everywhere(shape: tuple[int, ...], dtype: str, mesh: Mesh | None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.dtype(dtype), sharding=sharding.everywhere(mesh))
