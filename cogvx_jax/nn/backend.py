"""Which formulation of an operation runs where: the one place that looks at the platform.

`docs/performance.md` holds the measurements behind the choices. All formulations of one operation
are equal up to rounding, which `tests/test_formulations.py` checks.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Literal

import jax

from cogvx_jax.configs import Remat


@dataclasses.dataclass(frozen=True, kw_only=True)
class Formulations:
    """One choice per operation; `nn.attention`, `nn.conv`, `nn.conv2d` and `nn.remat` explain the names."""

    attention: str = "chunked"  # of `nn.attention.BACKENDS`
    causal_conv: Literal["conv3d", "conv2d", "by_size", "by_frame"] = "conv3d"
    upsample_conv: Literal["repeat", "phase", "dilated"] = "repeat"
    transposed_conv: Literal["dilated", "phase"] = "dilated"
    spatial_norm: Literal["full", "latent"] = "full"
    rope: Literal["pairs", "product"] = "pairs"
    pixels: Literal["copy", "product"] = "copy"  # how `nn.conv2d` makes rows of pixels longer
    large_pictures: Literal["whole", "strips"] = "whole"  # how `finishing` resizes and interpolates those of 4K
    remat: Remat = "block"  # of training, unless told: long clips fit with it
    token_multiple: int = 1  # of the tokens a device holds where a sequence is split


PLAIN = Formulations(attention="plain")  # the definitions, for reference
BY_PLATFORM = {
    "cpu": Formulations(
        attention="by_head",
        causal_conv="by_frame",
        upsample_conv="phase",
        transposed_conv="phase",
        spatial_norm="latent",
        large_pictures="strips",
        remat="products",
    ),
    "tpu": Formulations(
        attention="pallas",
        causal_conv="by_size",
        upsample_conv="dilated",
        spatial_norm="full",
        rope="product",
        pixels="product",
        token_multiple=128,
    ),
    "gpu": Formulations(attention="cudnn", spatial_norm="latent"),
}

_override: contextvars.ContextVar[Formulations | None] = contextvars.ContextVar("formulations", default=None)


def formulations() -> Formulations:
    """The choices for the platform that jax computes on, or those of `using`."""
    chosen = _override.get()
    return chosen if chosen is not None else BY_PLATFORM.get(jax.default_backend(), BY_PLATFORM["gpu"])


def platform_of(device: jax.Device) -> str:
    """Which of "cpu", "tpu" and "gpu" it is, whoever made it."""
    return device.platform if device.platform in BY_PLATFORM else "gpu"


@contextlib.contextmanager
def using(choice: Formulations) -> Iterator[None]:
    """Fixes the choices inside the block: for tests, benchmarks, compiling for another platform.

    Only affects functions compiled later.
    """
    token = _override.set(choice)
    try:
        yield
    finally:
        _override.reset(token)
