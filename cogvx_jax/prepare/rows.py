"""Rows: JSON objects of fields, one of each film or clip; and the key of what a step makes of one."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cogvx_jax.data.text_lines import read_json_lines
from cogvx_jax.storage import write_whole

Row = dict[str, Any]


def key_of(*parts: Any) -> str:
    """A digest of JSON values, in which the order of names does not count."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def finite(value: Any) -> Any:
    """A value for JSON: numbers that are not finite are null, floats have six digits after the first."""
    if isinstance(value, Mapping):
        return {str(name): finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One row a line, as `data.text_lines` reads them. Raises: OSError."""
    lines = "".join(json.dumps(row, ensure_ascii=_has_halves(row)) + "\n" for row in rows)
    write_whole(path, lines.encode())


def read_rows(path: Path) -> list[Row]:
    """Raises: FileNotFoundError; ValueError naming the line that is none."""
    return list(read_json_lines(path).values())


def _has_halves(row: Mapping[str, Any]) -> bool:
    """Whether a text in it, as the name of a file may be, is no UTF-8."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False
