"""Model FLOPs utilisation: which share of what the devices could compute an update's own products are."""

import jax

# Products in bfloat16, 1e12 operations a second, of one device as jax counts them, by the first words of its
# `device_kind`; the longest match counts. From the vendors' pages, without sparsity. jax counts a chip of v4 as one
# device, and of TPU7x each of its two halves.
PEAKS = {
    "TPU v4": 275.0,
    "TPU v5": 459.0,  # v5p
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
    "TPU7x": 1153.5,
    "NVIDIA A100": 312.0,
    "NVIDIA H100": 989.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H200": 989.0,
}


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
    """Operations a second of a device, None if it is not known."""
    found = [name for name in PEAKS if kind.startswith(name)]
    return PEAKS[max(found, key=len)] * 1e12 if found else None
