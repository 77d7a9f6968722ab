"""Whether what comes last fits: the VAE's decode, asked of the compiler before the first step is sampled."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from cogvx_jax.models.tiling import Tiling
from cogvx_jax.pipelines.device_memory import free_bytes
from cogvx_jax.pipelines.latents import lower_decode, lower_encode
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
    Raises: MemoryError where the compiler finds that it does not fit.
    """
    known = None if model.programs is None else model.programs.decode_bytes(shape, padding, model.compute)
    if known is not None:
        return known
    return _vae_bytes(model, lambda params: lower_decode(model.vae, model.mesh, params, shape, padding))


def encode_bytes(model: Model, shape: tuple[int, ...]) -> int:
    """As `decode_bytes`, of encoding one clip of (B, F, H, W, 3)."""
    return _vae_bytes(model, lambda params: lower_encode(model.vae, model.mesh, params, shape))


def check_decode(
    model: Model, shape: tuple[int, ...], padding: int = 0, strips: int | None = None, *, tiling: bool = False
) -> Model:
    """The model with the fewest strips of its memory mode in which decoding fits, or with as many as are asked for.

    Where the device does not say how much memory it has, as on a CPU, nothing is compiled or changed.

    Args:
      shape, padding: as for `decode_bytes`.
      strips: None chooses.
      tiling: it is decoded in tiles, as it always is in some memory modes.
    Raises: ValueError where decoding needs more memory than is free.
    """
    work = "decoding"
    if tiling or model.memory.tiling:
        shape, work = Tiling.of(model.spec.vae).largest(shape), "decoding tiles of"
    size = f"{work} {shape[2] * 8}x{shape[3] * 8}"
    return _fitting(model, size, lambda tried: decode_bytes(tried, shape, padding), strips)


def check_encode(model: Model, shape: tuple[int, ...], strips: int | None = None) -> Model:
    """As `check_decode`, for encoding clips (B, F, H, W, 3), one at a time."""
    return _fitting(model, f"encoding {shape[2]}x{shape[3]}", lambda tried: encode_bytes(tried, shape), strips)


def in_strips(model: Model, strips: int) -> Model:
    """The model, its VAE in so many strips; 1 is whole frames."""
    return dataclasses.replace(model, compute=dataclasses.replace(model.compute, strips=strips))


def _fitting(model: Model, work: str, needs: Callable[[Model], int], strips: int | None) -> Model:
    own = strips or (model.compute.strips if model.programs is None else model.programs.strips)
    free = _free_for(model)
    if free is None:
        return in_strips(model, own)
    found = ""
    for count in [own, *(n for n in model.memory.strips if n > own and strips is None)]:
        tried, how = in_strips(model, count), f" in {count} strips of rows" if count > 1 else ""
        try:
            needed = needs(tried)
        except MemoryError as error:  # the compiler itself refuses
            found = f"does not fit the device{how}: {error}"
            continue
        if needed <= free:
            return tried
        found = f"takes {needed / 1e9:.1f} GB beside the weights{how}, the device has {free / 1e9:.1f} GB free"
    more = [] if strips is None else ["use more --strips"]
    turns = [] if model.memory.turns else ["let components take turns (--memory auto)"]
    tiles = [] if "tiles" in work else ["--tiling, which is lossy"]
    ways = ", or ".join([*more, *turns, "use more devices for it (--mesh)", *tiles])
    raise ValueError(f"{work} {found}; {ways}")


def _free_for(model: Model) -> int | None:
    """Bytes beside the VAE's weights on each device when it runs; None where the device does not say."""
    free = free_bytes()
    if free is None or not isinstance(model.params, Turns):
        return free
    return free + model.params.held_bytes() - device_bytes(_vae(model))  # nothing else is there then


def _vae_bytes(model: Model, lower: Callable[[Any], Iterator[Any]]) -> int:
    params = _vae(model)
    return round(beside_weights([compile_cost(lowered) for lowered in lower(params)], device_bytes(params)))


def _vae(model: Model) -> Any:
    """The VAE's parameters, or their shapes and places where it is not its turn."""
    return model.params.abstract("vae") if isinstance(model.params, Turns) else model.params["vae"]
