"""The one reader of JSON: what strangers may write, and the one sentence that it becomes."""

import json
import os
import time

import pytest

from cogvx_jax.json_files import MAX_BYTES, parse_json, quoted, read_json

WRONG = {
    "nested": (b'{"a":' * 100_000, "nested too deep"),
    "list": (b"[" * 100_000, "nested too deep"),
    "infinity": (b'{"a": Infinity}', "not finite"),
    "minus": (b'{"a": -Infinity}', "not finite"),
    "nan": (b'{"a": NaN}', "the number NaN in it is not finite"),
    "too large": (b'{"a": 1e400}', "not finite"),
    "digits": (b'{"a": 1%s}' % (b"0" * 10_000), "a number in it has 10001 digits"),
    "latin": ('{"a": "é"}'.encode("latin-1"), "its byte 7 is not UTF-8"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "its byte 0 is not UTF-8"),
    "twice": (b'{"a": {"b": 1, "c": 2, "b": 3}}', "the key 'b' stands in it twice"),
    "half": (rb'{"a": "\ud800"}', "half of a character"),
    "kind": (b"[1]", r"not a JSON object, but \[1\]"),
    "null": (b"null", "not a JSON object, but None"),
    "long": (b'"%s"' % (b"x" * 100_000), r"not a JSON object, but 'xxx.*\.\.\.x+'"),
    "empty": (b"", "Expecting value"),
    "cut": (b'{"a": ', "Expecting value"),
    "more": (b"{} {}", "Extra data"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    "large": (b" " * (MAX_BYTES + 1), f"{MAX_BYTES + 1} bytes, where at most {MAX_BYTES} are read"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_object_is_one_short_sentence(tmp_path, name):
    text, words = WRONG[name]
    file = tmp_path / "x.json"
    file.write_bytes(text)
    began = time.monotonic()
    with pytest.raises(ValueError, match=words) as raised:
        read_json(file)
    assert str(raised.value).startswith(f"{file}: ") and len(str(raised.value)) < 300 + len(str(file))
    assert "\n" not in str(raised.value) and time.monotonic() - began < 5


def test_what_stands_in_the_place_of_a_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="fifo: a FIFO, not a file"):
        read_json(tmp_path / "fifo")
    with pytest.raises(ValueError, match=": a folder, not a file"):
        read_json(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none")


def test_what_is_right_is_read():
    value = {"a": [1, -2.5, 1e-300, None, True, "é😀\n"], "b": {"a": {}}}
    for text in (json.dumps(value), json.dumps(value).encode(), json.dumps(value, ensure_ascii=False).encode()):
        assert parse_json(text) == value
    assert parse_json(b"\xef\xbb\xbf{}") == {}  # with the mark that Windows writes


def test_values_are_quoted_within_a_line():
    assert [quoted(value) for value in ("a\n", 5, [1, 2], None)] == ["'a\\n'", "5", "[1, 2]", "None"]
    deep = [[[[[]]]]]
    for value in (
        "x" * 10**6,
        list(range(10**5)),
        {str(i): "y" * 1000 for i in range(100)},
        [deep] * 100,
        "\ud800" * 99,
    ):
        assert len(quoted(value)) < 500
        quoted(value).encode()
