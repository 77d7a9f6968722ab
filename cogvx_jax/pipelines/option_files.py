"""The files that options name, and what stands in memory in their place: listed, and named anew.

A row of `SOURCES` says where an option holds them. Nothing here needs jax.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

from cogvx_jax.data.trajectory import is_text
from cogvx_jax.pipelines.options import INPUTS, Options, control_sources

Change = Callable[[Any], Any]


def sources_of(asked: Options, name: str) -> list[Any]:
    """Paths, pixels and arrays of an option, in its order; nothing where it is not given."""
    return sources_in(name, _value(asked, name))


def sources_in(name: str, value: Any) -> list[Any]:
    """The same of an option's checked value."""
    found: list[Any] = []

    def keep(source: Any) -> Any:
        found.append(source)
        return source

    change_sources(name, value, keep)
    return found


def with_paths(asked: Options, change: Callable[[str], Any]) -> Options:
    """The same options with each path changed. What is in memory stays."""
    return with_paths_of(asked, lambda name, path: change(path))


def with_paths_of(asked: Options, change: Callable[[str, str], Any]) -> Options:
    """The same; `change` is given the option's name, too."""

    def of(name: str) -> Change:
        return lambda one: change(name, os.fspath(one)) if isinstance(one, str | os.PathLike) else one

    return dataclasses.replace(asked, **{name: change_sources(name, _value(asked, name), of(name)) for name in SOURCES})


def change_sources(name: str, value: Any, change: Change) -> Any:
    """An option's checked value with each of its sources changed; of an option without any, the value."""
    return SOURCES[name](value, change) if name in SOURCES and value is not None else value


def _value(asked: Options, name: str) -> Any:
    value = getattr(asked, name)
    if name == "control" and len(several := control_sources(asked)) > 1:  # in one text perhaps
        return several
    return value


def _one(value: Any, change: Change) -> Any:
    """Of a source, or a list of them."""
    return [change(one) for one in value] if isinstance(value, list | tuple) else change(value)


def _by_frame(value: Any, change: Change) -> Any:
    return {frame: change(one) for frame, one in value.items()}


def _weighted(value: Any, change: Change) -> Any:
    source, weight = value
    return change(source), weight


def _all_weighted(value: Any, change: Change) -> Any:
    return tuple(_weighted(one, change) for one in value)


def _trajectories(value: Any, change: Change) -> Any:
    """Of those that are files; the others are text or points."""
    return tuple(change(one) if isinstance(one, str | os.PathLike) and not is_text(str(one)) else one for one in value)


def _regions(value: Any, change: Change) -> Any:
    """Of those that are no boxes."""
    return tuple(one if one.box is not None else dataclasses.replace(one, place=change(one.place)) for one in value)


def _warped(value: Any, change: Change) -> Any:
    return dataclasses.replace(value, source=change(value.source))


# Of each option that names files: (value, change) -> the value with `change` of each of its sources.
SOURCES: Mapping[str, Callable[[Any, Change], Any]] = {
    **dict.fromkeys(INPUTS, _one),
    "keyframes": _by_frame,
    "trajectory": _trajectories,
    "region": _regions,
    "noises": _warped,
    "flow": _warped,
    "finish": lambda value, change: value.with_paths(change),
    "calibration": _one,
    "controlnet": _all_weighted,
    "tora": _weighted,
}
# Not hashed whole, as they may be large, or folders: a fingerprint is taken where they are opened.
FINGERPRINTED = ("calibration", "controlnet", "tora")
