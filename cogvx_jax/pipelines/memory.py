"""Whether what comes last fits: the VAE's decode, asked of the compiler before the first step is sampled."""

import jax
import jax.numpy as jnp

from cogvx_jax.models.vae import frame_batches
from cogvx_jax.pipelines.latents import decode_batch
from cogvx_jax.pipelines.model import Model


def decode_bytes(model: Model, shape: tuple[int, ...], padding: int = 0) -> int:
    """Bytes that decoding one video takes on each device beside the weights: the most any frame batch takes.

    The program is compiled, which the decode needs anyway, and kept in the cache.

    Args:
      shape: of the sampled latents (B, T, h, w, 16); videos are decoded one at a time.
      padding: latent frames that are dropped first.
    """
    cfg = model.spec.vae
    run, params, cache = decode_batch(cfg, model.mesh), model.params["vae"], None
    most = 0
    for start, stop in frame_batches(shape[1] - padding, cfg.decode_frames)[:2]:  # the others are like the second
        latents = jax.ShapeDtypeStruct((1, stop - start, *shape[2:]), jnp.float32)
        lowered = run.lower(params, latents, cache)
        used = lowered.compile().memory_analysis()
        weights = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(params))
        own = used.temp_size_in_bytes + used.output_size_in_bytes + used.argument_size_in_bytes
        most = max(most, own - used.alias_size_in_bytes - weights)
        cache = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), lowered.out_info[1])
    return most


def check_decode(model: Model, shape: tuple[int, ...], padding: int = 0) -> None:
    """Raises ValueError where the device says how much memory it has free and decoding needs more."""
    free = free_bytes()
    if free is None:
        return
    needed = decode_bytes(model, shape, padding)
    if needed > free:
        ways = "use more devices for it (--mesh), or --tiling, which is lossy"
        raise ValueError(
            f"decoding {shape[2] * 8}x{shape[3] * 8} takes {needed / 1e9:.1f} GB beside the weights, "
            f"the device has {free / 1e9:.1f} GB free; {ways}"
        )


def free_bytes() -> int | None:
    """Memory left on the first device of this process; None where the platform does not say, as on CPU."""
    stats = jax.local_devices()[0].memory_stats()
    if not stats or "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
