"""The one reader of JSON. Its files may come from strangers: every refusal is one short sentence.

Strict: UTF-8, finite numbers, no key twice, a bounded size. A value out of such a file is shown by `quoted`.
"""

import json
import math
import reprlib
from collections.abc import Sequence
from typing import Any

from cogvx_jax import git_lfs
from cogvx_jax.storage import Files, StoragePath, read_file

Json = dict[str, Any]

MAX_BYTES = 4 * 2**20  # of a file of settings; the largest published one, an index, takes 0.1 MiB
MAX_DIGITS = 40  # of an integer: 64 bits take 20
POINTER = "a git-lfs pointer, not the file itself; run `git lfs pull` where it lies"


def read_json(path: StoragePath, *, limit: int = MAX_BYTES) -> Json:
    """The object in a file.

    Raises: FileNotFoundError; ValueError, one sentence with the file's name, for whatever is no such file.
    """
    try:
        return parse_json(read_file(path, limit))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_json_of(files: Files, name: str) -> Json:
    """The object in a file of a folder or bucket. Raises: as `read_json`."""
    try:
        return parse_json(files.bytes(name, MAX_BYTES))
    except ValueError as error:
        raise ValueError(f"{files.where}/{name}: {error}") from None


def parse_json(text: bytes | str) -> Json:
    """The object that a text is. Raises: ValueError, which does not name the file; its message is short."""
    found = parse_value(text)
    if not isinstance(found, dict):
        raise ValueError(f"not a JSON object, but {quoted(found)}")
    return found


def parse_value(text: bytes | str) -> Any:
    """The value that a text is. Raises: as `parse_json`."""
    if isinstance(text, bytes):
        if text.startswith(git_lfs.START):
            raise ValueError(POINTER)
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"not JSON, its byte {error.start} is not UTF-8") from None
    try:
        found = _DECODER.decode(text)
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair cannot be printed
    except RecursionError:
        raise ValueError("not JSON that can be read, it is nested too deep") from None
    except UnicodeEncodeError:
        raise ValueError("not JSON, it holds half of a character") from None
    except ValueError as error:
        raise ValueError(f"not JSON, {error}") from None
    return found


def quoted(value: Any) -> str:
    """`repr`, at most about a line long, for messages."""
    return _REPR.repr(value)


def printable(text: str) -> str:
    """A stranger's text for a terminal, which must not obey what is in it: other characters become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _object(pairs: Sequence[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {quoted(twice)} stands in it twice")
    return found


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number in it has {len(text)} digits")
    return int(text)


def _real(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:MAX_DIGITS]} in it is not finite")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_real, parse_constant=_real)
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother = 2, 60, 60
_REPR.maxlist = _REPR.maxtuple = 6
