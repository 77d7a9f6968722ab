"""Frames per second as exact fractions."""

import fractions
import math


def frame_rate(fps: float | fractions.Fraction) -> fractions.Fraction:
    """`fps` as a fraction: 12.5 is 25/2, and 29.97003 the 30000/1001 of NTSC.

    Raises: ValueError unless it is positive, finite and in the range of rates, 0.001 to 100000.
    """
    if isinstance(fps, fractions.Fraction):
        rate = fps
    elif isinstance(fps, str | bytes | bool | None) or not hasattr(fps, "__float__"):
        raise ValueError(f"fps must be a number, got {fps!r}")
    elif math.isfinite(fps):
        rate = fractions.Fraction(fps).limit_denominator(1001)
    else:
        rate = fractions.Fraction(0)
    if not fractions.Fraction(1, 1001) <= rate <= 100_000:
        raise ValueError(f"fps must be positive and at most 100000, got {fps}")
    return rate
