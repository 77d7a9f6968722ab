"""Whether what comes last fits: the VAE's decode, asked of the compiler before the first step is sampled."""

from typing import Any

from cogvx_jax.pipelines.device_memory import free_bytes
from cogvx_jax.pipelines.latents import lower_decode
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.program_cost import beside_weights, compile_cost
from cogvx_jax.pipelines.turns import Turns
from cogvx_jax.pipelines.weights import device_bytes


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
    params = _vae(model)
    programs = lower_decode(model.vae, model.mesh, params, shape, padding)
    return round(beside_weights([compile_cost(lowered) for lowered in programs], device_bytes(params)))


def check_decode(model: Model, shape: tuple[int, ...], padding: int = 0) -> None:
    """Raises ValueError where the device says how much memory it has free and decoding needs more."""
    free = free_bytes()
    if free is None:
        return
    if isinstance(model.params, Turns):  # when it comes to that, the VAE is there and nothing else
        free += model.params.held_bytes() - device_bytes(_vae(model))
    turns = [] if model.memory.turns else ["let components take turns (--memory auto)"]
    ways = ", or ".join([*turns, "use more devices for it (--mesh)", "--tiling, which is lossy"])
    try:
        needed = decode_bytes(model, shape, padding)
    except MemoryError as error:  # the compiler itself refuses
        raise ValueError(f"decoding {shape[2] * 8}x{shape[3] * 8} does not fit the device: {error}; {ways}") from error
    if needed > free:
        raise ValueError(
            f"decoding {shape[2] * 8}x{shape[3] * 8} takes {needed / 1e9:.1f} GB beside the weights, "
            f"the device has {free / 1e9:.1f} GB free; {ways}"
        )


def _vae(model: Model) -> Any:
    """The VAE's parameters, or their shapes and places where it is not its turn."""
    return model.params.abstract("vae") if isinstance(model.params, Turns) else model.params["vae"]
