"""Tora beside a model: opened and checked before any work, read when sampling begins."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cogvx_jax.configs import Compute, ModelSpec, ToraConfig
from cogvx_jax.convert.fingerprints import fingerprint
from cogvx_jax.convert.tora import StoredTora, find_files, open_tora
from cogvx_jax.data.trajectory import Points, motion_field, motion_pictures, read_trajectory
from cogvx_jax.models.tora import Motion, Tora
from cogvx_jax.models.vae import sample
from cogvx_jax.pipelines.controlnets import abstract_beside, check_sizes, read_beside
from cogvx_jax.pipelines.latents import encode_moments
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.noise import NoiseSource
from cogvx_jax.pipelines.options import Options, check_alone
from cogvx_jax.sharding import everywhere, replicate

KINDS = ("t2v", "i2v")  # of models that may have it
OTHERS = {  # what a request with Tora cannot have -> why
    "windows": "a trajectory is of a whole clip",
    "reuse": "reuse leaves out blocks that a trajectory changes",
    "guidance": "ways of guidance leave out what a trajectory changes",
    "extend": "a trajectory is of one clip",
    "edit": "an edit's clip moves by itself",
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ToraFiles:
    """Tora's two files, which were found to fit a model."""

    name: str
    stored: StoredTora
    digest: str  # of their names, sizes and times

    @property
    def cfg(self) -> ToraConfig:
        return self.stored.cfg

    def __repr__(self) -> str:
        return f"ToraFiles({self.digest})"


class MotionUse(NamedTuple):
    """Tora with the trajectories that videos follow."""

    files: ToraFiles
    weight: float  # of the features
    trajectories: tuple[Points, ...]


def read_motion(spec: ModelSpec, asked: Options, frames: int) -> MotionUse | None:
    """The trajectories that are asked for, and the files that make a model follow them; no numbers are read.

    Raises: ValueError, one sentence, for files that do not fit the model, or what else is asked; OSError.
    """
    tora: Any = asked.tora
    trajectories: Any = asked.trajectory
    if tora is None and not trajectories:
        return None
    if tora is None:
        raise ValueError("a trajectory needs Tora's files, by which a model follows it; give tora=..., or leave it out")
    if not trajectories:
        raise ValueError("Tora needs a trajectory to follow; give trajectory=..., or leave out Tora")
    check_alone("trajectory", OTHERS, vars(asked))
    check_frames(frames)
    points = tuple(read_trajectory(one) for one in trajectories)
    source, weight = tora
    return MotionUse(open_files(source, spec), weight, points)


def check_frames(frames: int) -> None:
    """Raises: ValueError for a clip in which nothing moves."""
    if frames < 2:
        raise ValueError(f"a trajectory needs at least 2 frames to move in, got {frames}")


def open_files(source: str | Path, spec: ModelSpec) -> ToraFiles:
    """Tora's files, which fit a model; no numbers are read. Raises: ValueError for others; FileNotFoundError."""
    files = find_files(source)
    stored = open_tora(files)
    check_fits(stored.cfg, str(source), spec)
    return ToraFiles(name=str(source), stored=stored, digest=" ".join(map(fingerprint, files.values())))


def check_fits(cfg: ToraConfig, name: str, spec: ModelSpec) -> None:
    """Raises: ValueError, one sentence, where Tora's files are not for a model."""
    base = spec.transformer
    if spec.kind not in KINDS or base.patch_t is not None:
        raise ValueError(f"Tora is for text- and image-to-video models of 1.0's layout such as 5B, not for {spec.name}")
    pairs = (
        ("blocks", cfg.layers, base.layers),
        ("width", cfg.width, base.width),
        ("latents of channels", cfg.latent_channels, base.out_channels),
        ("patches of", cfg.patch, base.patch),
    )
    check_sizes(f"Tora's {name}", spec, pairs)


def motion_inputs(
    model: Model, use: MotionUse, frames: int, size: tuple[int, int], noise: NoiseSource, *, tiling: bool
) -> Motion:
    """What the blocks are given of trajectories: features of their pictures' latents, and the fusers.

    Args:
      size: of the video, (height, width).
    Raises: NotFiniteError; ValueError for numbers that are not finite.
    """
    pictures = motion_pictures(motion_field(use.trajectories, frames, *size))
    moments = encode_moments(model, pictures[None].astype("float32") / 127.5 - 1, tiling=tiling)
    drawn = noise.motion((*moments.shape[:-1], model.spec.vae.latent_channels))
    latents = sample(moments, replicate(drawn, model.mesh)) * model.spec.vae.scaling_factor
    dtype = model.compute.parameter_dtype("transformer")
    params = read_beside(use.files.cfg, use.files.stored.source, model.mesh, dtype, use.files.name)
    features = extract_program(Tora(use.files.cfg), model.mesh)({"extractor": params["extractor"]}, latents)
    return Motion((features * use.weight).astype(jnp.dtype(dtype)), params["fusers"])


def abstract_motion(cfg: ToraConfig, compute: Compute, mesh: Mesh | None, latents: tuple[int, ...]) -> Motion:
    """What `motion_inputs` gives beside latents (B, T, h, w, C), without its numbers."""
    _, frames, height, width, _ = latents
    shape = (cfg.layers, 1, frames, height // cfg.patch, width // cfg.patch, cfg.channels)
    dtype = jnp.dtype(compute.parameter_dtype("transformer"))
    features = jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere(mesh))
    return Motion(features, abstract_beside(cfg, compute, mesh)["fusers"])


@functools.lru_cache
def extract_program(tora: Tora, mesh: Mesh | None) -> Callable[..., jax.Array]:
    """`Tora.extract`, jitted: (params, latents) -> features, on every device."""

    def extract(params, latents):
        return tora.apply({"params": params}, latents, method="extract")

    return jax.jit(extract, out_shardings=everywhere(mesh))
