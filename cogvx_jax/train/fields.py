"""Settings in TOML and JSON as the fields of dataclasses, each of its kind."""

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

T = typing.TypeVar("T")


def read_fields(of: type, said: Mapping[str, Any]) -> dict[str, Any]:
    """Those fields of a dataclass that a mapping holds, for its constructor; other keys are left alone.

    Lists become tuples, and mappings the dataclasses that stand there.

    Raises: ValueError naming a value that is not of its field's kind, or as the dataclass does.
    """
    hints = typing.get_type_hints(of)
    known = [field.name for field in dataclasses.fields(of) if field.name in said]
    return {name: _read(name, hints[name], said[name]) for name in known}


def part_of(value: Any, of: type[T]) -> T:
    """The part of a dataclass that a base of it holds."""
    return of(**{field.name: getattr(value, field.name) for field in dataclasses.fields(typing.cast(Any, of))})


def read_toml_rows(path: Path, name: str) -> list[dict[str, Any]]:
    """The tables [[name]] of a TOML file. Raises: FileNotFoundError; ValueError for a file that holds anything else."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {str(path)!r}; give a .toml file with a [[{name}]] for each {name}")
    try:
        found = tomllib.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, or bytes that are no text
        raise ValueError(f"{path} is not TOML: {error}") from None
    rows = found.get(name)
    if set(found) != {name} or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} must hold a [[{name}]] for each {name} and nothing else")
    return rows


def check_known(row: Mapping[str, Any], known: typing.Collection[str]) -> None:
    """Raises ValueError for a key that is not one of the known ones."""
    unknown = row.keys() - set(known)
    if unknown:
        raise ValueError(f"there is no setting {min(unknown)!r}; the known ones are {', '.join(known)}")


def _read(name: str, kind: Any, value: Any) -> Any:
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (kind,) = (one for one in arguments if one is not type(None))
        return _read(name, kind, value)
    if typing.get_origin(kind) is typing.Literal and value in arguments:
        return value
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_read(name, arguments[0], each) for each in value)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return typing.cast(Any, kind)(**read_fields(typing.cast(type, kind), value))
    if kind is float and type(value) is int:
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if type(value) is not kind:
        raise ValueError(f"{name} must be {_words(kind)}, got {value!r}")
    return value


def _words(kind: Any) -> str:
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(str, arguments))
    if typing.get_origin(kind) is tuple:
        return f"a list of {arguments[0].__name__}"
    return f"{'an' if kind is int else 'a'} {'table' if dataclasses.is_dataclass(kind) else kind.__name__}"
