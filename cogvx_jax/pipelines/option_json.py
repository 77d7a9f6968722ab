"""Options as JSON, whose keys are those of a prompts file: `Options(**as_json(options))` is the same value."""

import dataclasses
import fractions
import numbers
import os
from collections.abc import Mapping
from typing import Any

from cogvx_jax.json_files import Json
from cogvx_jax.pipelines.options import Options


def as_json(options: Options) -> Json:
    """Every option by its name. What has no text, such as pixels in memory, is null.

    A picture or a clip is its path as it was given. Of a ControlNet that was loaded, it is the place of its files.
    """
    found = {field.name: _value(getattr(options, field.name)) for field in dataclasses.fields(options)}
    several: Any = options.controlnet
    found["controlnet"] = [f"{_place(source)}:{weight!r}" for source, weight in several]
    return found


def _place(controlnet: Any) -> str:
    return os.fspath(controlnet) if isinstance(controlnet, str | os.PathLike) else controlnet.name


def _value(value: Any) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, fractions.Fraction):
        return value.numerator if value.denominator == 1 else f"{value.numerator}/{value.denominator}"
    if isinstance(value, numbers.Real):  # of numpy, too
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    if isinstance(value, Mapping):
        return {str(key): _value(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [_value(one) for one in value]
    if hasattr(value, "__array__") or hasattr(value, "__array_interface__"):
        return None
    return str(value)
