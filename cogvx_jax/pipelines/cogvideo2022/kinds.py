"""What numbers of CogVideo (2022) may be, of a stranger's file or of Python: each field has a kind, and a range."""

import math
import numbers
from typing import Any

from cogvx_jax.json_files import quoted


def check_whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raises ValueError for what is no whole number, or out of range."""
    within = f"at least {least}" if most is None else f"from {least} to {most}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError(f"{name} is {quoted(value)}; it must be a whole number, {within}")
    number: Any = value
    if number < least or (most is not None and number > most):
        raise ValueError(f"{name} {quoted(value)} is not {within}")


def check_number(name: str, value: Any, least: float, most: float) -> None:
    """Raises ValueError for what is no finite number, or out of range."""
    within = f"from {least:g} to {most:g}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"{name} is {quoted(value)}; it must be a finite number, {within}")
    number: Any = value
    if not least <= number <= most:
        raise ValueError(f"{name} {quoted(value)} is not {within}")


def check_switch(name: str, value: Any) -> None:
    """Raises ValueError for what is neither true nor false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {quoted(value)}; it must be true or false")
