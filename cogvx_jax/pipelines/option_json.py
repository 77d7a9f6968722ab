"""Options as JSON, whose keys are those of a prompts file: `Options(**as_json(options))` is the same value."""

import dataclasses
import fractions
import numbers
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cogvx_jax.diffusion.travel import format_travel
from cogvx_jax.diffusion.warped import format_warped
from cogvx_jax.json_files import Json
from cogvx_jax.pipelines.options import Options


def as_json(options: Options) -> Json:
    """Every option by its name. What has no text, such as pixels in memory, is null.

    A picture or a clip is its path as it was given. Of a ControlNet that was loaded, it is the place of its files.
    """
    return {field.name: as_value(field.name, getattr(options, field.name)) for field in dataclasses.fields(options)}


def as_value(name: str, value: Any) -> Any:
    """The JSON of one option's checked value."""
    return FORMS.get(name, _value)(value)


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


def _controlnets(value: Any) -> list[str]:
    return [_weighted((source if isinstance(source, str | os.PathLike) else source.name, w)) for source, w in value]


def _weighted(value: Any) -> str:
    source, weight = value
    return f"{os.fspath(source)}:{weight!r}"


def _regions(value: Any) -> list[list[Any]]:
    return [[_value(region.place), region.prompt] for region in value]


def _trajectories(value: Any) -> list[Any]:
    """Points in an array are lists, as they are few."""
    return [_value(np.asarray(one).tolist() if hasattr(one, "__array__") else one) for one in value]


# Of options that `_value` would give no text that is read back: the value, if there is one -> its JSON.
FORMS: Mapping[str, Callable[[Any], Any]] = {
    "controlnet": _controlnets,
    "travel": lambda value: format_travel(value) if value else [],
    "trajectory": _trajectories,
    "tora": lambda value: value and _weighted(value),
    "region": _regions,
    "noises": lambda value: value and format_warped(value),
    "flow": lambda value: value and format_warped(value),
    "finish": lambda value: value and value.as_json,
}
