"""Files of taehv's tiny autoencoder for CogVideoX: their names, which are numbers in two lists of layers.

Source: https://github.com/madebyollin/taehv, `taecvx.pth`, as safetensors or as it is.
"""

import dataclasses
from collections.abc import Iterable, Iterator

from cogvx_jax.configs import ModelSpec
from cogvx_jax.convert.tables import CONV2D, Row
from cogvx_jax.given import Given

MARK = "decoder.3.conv.0.weight"
# Layers without numbers count, too: clamps, activations, upsampling.
ENDS = {"encoder": (0, 17), "decoder": (1, 22)}  # the first convolution and the last
LEVELS = {"encoder": (2, 7, 12), "decoder": (3, 9, 15)}  # where each begins


def _conv(theirs: str, ours: str) -> tuple[Row, Row]:
    return Row(f"{theirs}.weight", f"{ours}/kernel", CONV2D), Row(f"{theirs}.bias", f"{ours}/bias")


def _blocks(side: str, first: int, ours: str) -> Iterator[Row]:
    for block in range(3):
        for i in range(3):
            yield from _conv(f"{side}.{first + block}.conv.{2 * i}", f"{ours}_memory_{block}/conv{i + 1}")


def _rows() -> Iterator[Row]:
    for side, ends in ENDS.items():
        for name, place in zip(("conv_in", "conv_out"), ends, strict=True):
            yield from _conv(f"{side}.{place}", f"{side}/{name}")
        for level, first in enumerate(LEVELS[side]):
            ours = f"{side}/level_{level}"
            pool, conv, blocks = (0, 1, 2) if side == "encoder" else (4, 5, 0)
            kind = "pool" if side == "encoder" else "grow"
            yield Row(f"{side}.{first + pool}.conv.weight", f"{ours}_{kind}/kernel", CONV2D)
            yield Row(f"{side}.{first + conv}.weight", f"{ours}_conv/kernel", CONV2D)
            yield from _blocks(side, first + blocks, ours)


TABLE = tuple(_rows())


def is_taehv(names: Iterable[str]) -> bool:
    """Whether these are the tensors of one, not of a VAE."""
    return MARK in names


def told_taehv(given: Given) -> str:
    """The line about it among what is inferred."""
    return f"vae: the tiny one of taehv; latents are divided by {_scaling(given)}"


def _scaling(given: Given) -> float:
    return 1.0 if given.scaling_factor is None else given.scaling_factor


def with_taehv(spec: ModelSpec, given: Given) -> ModelSpec:
    """The model with a tiny autoencoder for its VAE. It takes latents as they are sampled, unless a factor is given."""
    scaling = _scaling(given)
    vae = dataclasses.replace(
        spec.vae, taehv=True, scaling_factor=scaling, invert_scale_latents=False, encode_frames=None, decode_frames=2
    )
    return dataclasses.replace(spec, vae=vae)
