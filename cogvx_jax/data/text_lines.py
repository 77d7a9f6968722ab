"""Text files that users write: one rule for prompts files, lists, tables and captions.

They are UTF-8, with or without a byte order mark, whatever the locale. Lines end at \\n or \\r\\n, and nowhere else: a
prompt may hold U+2028 or a form feed.
"""

from collections.abc import Sequence
from typing import Any

from cogvx_jax.data.files import existing
from cogvx_jax.data.tars import File, Member, open_file
from cogvx_jax.git_lfs import refuse_pointer
from cogvx_jax.json_files import parse_value

UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_text(file: File) -> str:
    """The text of a file or a member of a tar.

    Raises: FileNotFoundError; ValueError, which names it, for a file of another encoding or none at all.
    """
    data = open_file(file if isinstance(file, Member) else existing(file)).read()
    refuse_pointer(data, file)
    if data.startswith(UTF16):
        raise ValueError(f"{file} is UTF-16 text; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}; save it as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{file} is no text: it holds a NUL at character {text.index(chr(0))}; save it as UTF-8")
    return text


def read_lines(file: File) -> list[str]:
    """The lines of a text file, without empty ones at its end. Line n is item n - 1. Raises: as `read_text`."""
    lines = [line.removesuffix("\r") for line in read_text(file).split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def read_json_lines(file: File) -> dict[int, dict[str, Any]]:
    """The JSON objects of a file, one a line, by the number of their line; empty lines are passed over.

    Raises: as `read_text`; ValueError, with file and line, for a line that is no JSON object.
    """
    lines = {number: line for number, line in enumerate(read_lines(file), 1) if line.strip()}
    rows = {number: parse_json(line, f"{file}, line {number}") for number, line in lines.items()}
    wrong = [f"line {number}" for number, row in rows.items() if not isinstance(row, dict)]
    refuse(file, wrong, len(rows), "lines are no JSON objects")
    return rows


def parse_json(text: str, where: object) -> Any:
    """The value of JSON as its standard has it: no NaN, no Infinity, no name twice in an object.

    Raises: ValueError, one sentence that begins with `where`.
    """
    try:
        return parse_value(text)
    except ValueError as error:
        raise ValueError(f"{where} is {error}") from None


def refuse(where: object, bad: Sequence[object], total: int, problem: str, error: type[Exception] = ValueError) -> None:
    """Raises `error` if anything is bad: how many of how many have the problem, and the first of them."""
    if bad:
        raise error(f"{where}: {len(bad)} of {total} {problem}, the first is {bad[0]}")
