"""Whether what comes last fits: the VAE's decode, asked of the compiler before the first step is sampled."""

import jax

from cogvx_jax.pipelines.latents import lower_decode
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.program_cost import beside_weights, compile_cost


def decode_bytes(model: Model, shape: tuple[int, ...], padding: int = 0) -> int:
    """Bytes that decoding one video takes on each device beside the weights: the most any frame batch takes.

    Where the model's stored programs do not tell, the program is compiled, which the decode needs anyway.

    Args:
      shape: of the sampled latents (B, T, h, w, 16); videos are decoded one at a time.
      padding: latent frames that are dropped first.
    """
    known = None if model.programs is None else model.programs.decode_bytes(shape, padding)
    if known is not None:
        return known
    params = model.params["vae"]
    weights = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(params))
    programs = lower_decode(model.vae, model.mesh, params, shape, padding)
    return round(beside_weights([compile_cost(lowered) for lowered in programs], weights))


def check_decode(model: Model, shape: tuple[int, ...], padding: int = 0) -> None:
    """Raises ValueError where the device says how much memory it has free and decoding needs more."""
    free = free_bytes()
    if free is None:
        return
    ways = "use more devices for it (--mesh), or --tiling, which is lossy"
    try:
        needed = decode_bytes(model, shape, padding)
    except MemoryError as error:  # the compiler itself refuses
        raise ValueError(f"decoding {shape[2] * 8}x{shape[3] * 8} does not fit the device: {error}; {ways}") from error
    if needed > free:
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
