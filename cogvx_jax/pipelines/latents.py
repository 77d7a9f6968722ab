"""Images and videos to model latents, and sampled latents back to pixels, a video at a time."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from cogvx_jax.axes import constrain
from cogvx_jax.configs import ModelSpec
from cogvx_jax.data.video import to_uint8
from cogvx_jax.models import tiling as tiles
from cogvx_jax.models import vae as vaes
from cogvx_jax.pipelines.finite import NotFiniteError, all_finite
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.noise import NoiseSource
from cogvx_jax.sharding import activate, everywhere, replicate, spec


def encode_pixels(model: Model, pixels: np.ndarray, noise: NoiseSource, *, tiling: bool = False) -> jax.Array:
    """Posterior samples of clips (B, F, H, W, 3) in [-1, 1]: (B, T, h, w, 16), not scaled; as `encode_moments`."""
    return _drawn(model, encode_moments(model, pixels, tiling=tiling), noise)


def encode_moments(model: Model, pixels: np.ndarray, *, tiling: bool = False) -> jax.Array:
    """The posteriors of clips (B, F, H, W, 3) in [-1, 1]: mean and log variance, (B, T, h, w, 32), not scaled.

    One clip is encoded at a time, so memory does not grow with the batch. `tiling` encodes it in
    tiles, which is lossy; see `models.tiling`.

    Raises: NotFiniteError.
    """
    run = model.compiled("encode", encode_batch(model.vae, _mesh(model)))
    params = model.params["vae"]
    encode = tiles.encode_tiled if tiling or model.memory.tiling else vaes.encode
    each = [encode(model.vae, params, replicate(clip[None], model.mesh), encode_batch=run) for clip in pixels]
    moments = jnp.concatenate(each)
    if not all_finite(moments):
        raise NotFiniteError.of(model, "vae", "encoding the image or video")
    return moments


def _drawn(model: Model, moments: jax.Array, noise: NoiseSource) -> jax.Array:
    drawn = noise.posterior((*moments.shape[:-1], model.spec.vae.latent_channels))
    return vaes.sample(moments, replicate(drawn, model.mesh))


def clip_modes(model: Model, pixels: np.ndarray, frames: int, *, tiling: bool = False) -> jax.Array:
    """As `video_latents`, the most likely latents in place of drawn ones."""
    return _lengthened(vaes.mode(encode_moments(model, pixels, tiling=tiling)) * model.spec.vae.scaling_factor, frames)


def image_condition(
    model: Model,
    images: np.ndarray,
    shape: tuple[int, ...],
    noise: NoiseSource,
    scale: float | None = None,
    *,
    places: Sequence[int] = (0,),
    tiling: bool = False,
) -> jax.Array:
    """What an image-to-video model sees beside the noisy latents: the images' latents at their places, else zeros.

    Args:
      images: (B, K, H, W, 3) in [-1, 1], each encoded as a clip of its own.
      shape: of the sampled latents (B, T, h, w, 16).
      scale: of the image latents; None is `image_scale` of the model.
      places: latent frame of each image. The first image's is 0, which for 1.5 is the padding frame: so was it trained.
      tiling: as for `encode_moments`.
    """
    scale = image_scale(model.spec) if scale is None else scale
    stills = images.reshape(-1, 1, *images.shape[2:])
    moments = encode_moments(model, stills, tiling=tiling)
    latents = _drawn(model, moments.reshape(*images.shape[:2], *moments.shape[2:]), noise) * scale
    condition = jnp.pad(latents[:, :1], _beside(places[0], shape[1]))
    for i, place in enumerate(places[1:], 1):
        condition = condition + jnp.pad(latents[:, i : i + 1], _beside(place, shape[1]))
    return condition


def _beside(place: int, frames: int) -> tuple[tuple[int, int], ...]:
    """Padding that puts one frame of (B, 1, h, w, C) among so many."""
    return ((0, 0), (place, frames - 1 - place), (0, 0), (0, 0), (0, 0))


def image_scale(spec: ModelSpec) -> float:
    """The factor of image latents as diffusers has it: 1.5-I2V divides by the scaling factor.

    The authors' own sampling script uses 1.0 there, their trainer the scaling factor.
    """
    factor = spec.vae.scaling_factor
    return 1 / factor if spec.vae.invert_scale_latents else factor


def video_latents(
    model: Model, pixels: np.ndarray, frames: int, noise: NoiseSource, *, tiling: bool = False
) -> jax.Array:
    """Scaled latents of clips (B, F, H, W, 3) in [-1, 1], (B, `frames`, h, w, 16).

    Where patches of two frames need one more, the first is repeated at the front, as in training.
    """
    return _lengthened(encode_pixels(model, pixels, noise, tiling=tiling) * model.spec.vae.scaling_factor, frames)


def _lengthened(latents: jax.Array, frames: int) -> jax.Array:
    extra = frames - latents.shape[1]
    return jnp.concatenate([jnp.repeat(latents[:, :1], extra, axis=1), latents], axis=1)


def decode_frames(
    model: Model, latents: jax.Array | np.ndarray, padding: int = 0, *, tiling: bool = False
) -> Iterator[np.ndarray]:
    """Pixel frames of one video, (F', H, W, 3) uint8 at a time, first to last.

    Memory does not grow with the clip's length, but for the pixels themselves with `tiling`.

    Args:
      latents: (1, T, h, w, 16) as sampled.
      padding: latent frames to drop from the front.
      tiling: decode in tiles, all frames of them: lossy, see `models.tiling`.
    Raises: NotFiniteError, on the way.
    """
    run = model.compiled("decode", decode_batch(model.vae, _mesh(model)))
    params = model.params["vae"]
    latents = replicate(latents, model.mesh)[:, padding:] / model.spec.vae.scaling_factor
    if tiling or model.memory.tiling:
        batches = iter([tiles.decode_tiled(model.vae, params, latents, decode_batch=run, on_host=True)])
    else:
        batches = vaes.decode_stream(model.vae, params, latents, decode_batch=run)
    for batch in batches:
        pixels = np.asarray(batch[0])
        if not np.isfinite(pixels).all():
            raise NotFiniteError.of(model, "vae", "decoding the latents")
        yield to_uint8(pixels)


def _mesh(model: Model) -> Mesh | None:
    """What frames are spread over: the sums of norms then differ, so for exact results each device has all of them."""
    return None if model.exact else model.mesh


@functools.lru_cache
def encode_batch(vae: vaes.VAE, mesh: Mesh | None = None):
    return _compiled(vae, mesh, "encode_batch")


@functools.lru_cache
def decode_batch(vae: vaes.VAE, mesh: Mesh | None = None):
    return _compiled(vae, mesh, "decode_batch")


def lower_decode(
    vae: vaes.VAE, mesh: Mesh | None, params: Any, shape: tuple[int, ...], padding: int = 0
) -> Iterator[Any]:
    """The decoder lowered for the first frame batch of one video, and for the second, which the others are like.

    Args:
      params: the VAE's, or their shapes and places.
      shape: of the sampled latents (B, T, h, w, 16).
      padding: latent frames that are dropped first.
    """
    batches = vaes.frame_batches(shape[1] - padding, vae.cfg.decode_frames)
    sizes = [(1, stop - start, *shape[2:]) for start, stop in batches]
    return _lower(vae, decode_batch(vae, mesh), mesh, params, sizes)


def lower_encode(vae: vaes.VAE, mesh: Mesh | None, params: Any, shape: tuple[int, ...]) -> Iterator[Any]:
    """The encoder like `lower_decode`, for clips (B, F, H, W, 3), which are encoded one at a time."""
    sizes = [(1, stop - start, *shape[2:]) for start, stop in vaes.frame_batches(shape[1], vae.cfg.encode_frames)]
    return _lower(vae, encode_batch(vae, mesh), mesh, params, sizes)


def _lower(vae: vaes.VAE, run: Any, mesh: Mesh | None, params: Any, sizes: list[tuple[int, ...]]) -> Iterator[Any]:
    cache = None
    for size in sizes[:2]:
        lowered = run.lower(params, jax.ShapeDtypeStruct(size, jnp.float32, sharding=everywhere(mesh)), cache)
        cache = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_cache_place(vae, x.shape, mesh)),
            lowered.out_info[1],
        )
        yield lowered


def _compiled(vae: vaes.VAE, mesh: Mesh | None, method: str):
    """One frame batch, its height and width spread over the mesh; the result is on every device.

    In strips each device works through whole frames.
    """
    spread = mesh if vae.compute.strips == 1 else None

    def run(params, x, cache):
        with activate(spread):
            x = constrain(x, None, None, "height", "width", None)
            y, cache = vae.apply({"params": params}, x, cache, method=method)
        if mesh is None:
            return y, cache
        # Said here, every batch after the first runs one program: the cache lies as it came.
        cache = jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, _cache_place(vae, x.shape, mesh)), cache)
        return jax.lax.with_sharding_constraint(y, everywhere(mesh)), cache

    return jax.jit(run, donate_argnums=2)


def _cache_place(vae: vaes.VAE, shape: tuple[int, ...], mesh: Mesh | None) -> NamedSharding | None:
    """Where frames (B, 2, h, w, C) of the causal cache lie between batches."""
    if mesh is None or vae.compute.strips > 1:
        return everywhere(mesh)
    return NamedSharding(mesh, spec((None, None, "height", "width", None), mesh, shape, even=True))
