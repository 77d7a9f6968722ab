"""Model FLOPs utilisation: the FLOPs of an update's own products as a share of the devices' peak."""

import jax

from cogvx_jax.chips import chip_of


def utilisation(flops: int, seconds: float, devices: int, kind: str | None = None) -> float | None:
    """The share of the devices' peak, 0..1; None where the peak or the count is not known.

    It is of the peak in bfloat16, whatever was computed in.

    Args:
      flops: of an update, see `models.flops.training_flops`.
      seconds: it took.
      devices: that computed it together.
      kind: their `device_kind`; None is that of the first device here.
    """
    most = peak(jax.devices()[0].device_kind if kind is None else kind)
    return flops / (seconds * devices * most) if flops and most else None


def peak(kind: str) -> float | None:
    """Operations a second of a device by its `device_kind`, None if it is not known."""
    chip = chip_of(kind)
    return None if chip is None else chip.peak * 1e12
