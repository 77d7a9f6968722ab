"""The tokenizer of a checkpoint. Its files are checked before a library reads them: it trusts what they say."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cogvx_jax import git_lfs
from cogvx_jax.configs import ModelSpec
from cogvx_jax.convert.containers import SUFFIXES
from cogvx_jax.convert.tokenizer_files import SOURCES, check_tokenizer
from cogvx_jax.json_files import POINTER, Json, parse_json, quoted
from cogvx_jax.storage import LocalFiles, below, copy_files, open_files

MAX_JSON = 16 * 2**20  # bytes; T5's tokenizer.json takes 2.4 MB
MAX_EXTRA = 1000  # tokens that tokenizer_config.json asks for; T5 has 100
EXPRESSIONS = {" {2,}"}  # regular expressions of T5's; a stranger's may take for ever
SAMPLE = "A photo of 2 red circles, moving left: 'é' — ﬁ 你好 😀"  # every part of the tokenizer has work with it


def load_tokenizer(folder: str | Path, spec: ModelSpec) -> Any:
    """The tokenizer of a folder in the published layout; see `read_tokenizer`."""
    return read_tokenizer(below(folder, "tokenizer"), spec)


def read_tokenizer(place: str | Path, spec: ModelSpec) -> Any:
    """The tokenizer of a folder, from its `tokenizer.json` or the published `spiece.model`.

    Raises: FileNotFoundError; ValueError, one sentence with the file's name, for a damaged file or another model's
      tokenizer.
    """
    check_tokenizer(place)
    files = open_files(place)
    names = files.names()
    wanted = [name for name in names if not name.endswith(SUFFIXES)]  # T5's weights may lie beside them
    with contextlib.ExitStack() as stack:
        if not isinstance(files, LocalFiles) or len(wanted) < len(names):
            here = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            copy_files(place, here, wanted)
            files = LocalFiles(here)
        tokenizer = _read(files, str(place))
    if len(tokenizer) > spec.text_encoder.vocab:
        raise ValueError(
            f"{place} has {len(tokenizer)} tokens but the text encoder only {spec.text_encoder.vocab}: "
            "they are not of one model"
        )
    return tokenizer


def _read(files: LocalFiles, place: str) -> Any:
    for name in files.names():
        try:
            _check(files, name)
        except ValueError as error:
            raise ValueError(f"{place}/{name}: {error}") from None
    # Imported late, as the import takes seconds; its advice about torch is not for us.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import T5Tokenizer

    try:
        with _nothing_on_stderr():
            tokenizer = T5Tokenizer.from_pretrained(files.folder)
            tokenizer([SAMPLE], padding="max_length", max_length=9, truncation=True)
            return tokenizer
    except BaseException as error:  # a panic of Rust is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        source = next(name for name in SOURCES if files.exists(name))
        said = " ".join(str(error)[:200].split())
        raise ValueError(f"{place}/{source} is damaged, or not of T5: {type(error).__name__}, {said}") from None


def _check(files: LocalFiles, name: str) -> None:
    """Raises ValueError for a file of the folder that cannot be right."""
    if (files.folder / name).is_dir():
        return
    data = files.bytes(name, MAX_JSON if name.endswith(".json") else 4 * MAX_JSON)
    if not name.endswith(".json"):
        if data.startswith(git_lfs.START):
            raise ValueError(POINTER)
        if name == "spiece.model":
            check_sentencepiece(data)
        return
    found = parse_json(data)
    if name == "tokenizer.json":
        _check_expressions(found)
    elif name == "tokenizer_config.json":
        extra = found.get("extra_ids", 0)
        if type(extra) is not int or not 0 <= extra <= MAX_EXTRA:
            raise ValueError(f"extra_ids {quoted(extra)} is not supported, only 0 to {MAX_EXTRA} is")


def check_sentencepiece(data: bytes) -> None:
    """The table of characters begins with the size of its first part, for which a library would take the memory."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2 as messages

    try:
        table = messages.ModelProto.FromString(data).normalizer_spec.precompiled_charsmap  # type: ignore[attr-defined]
    except DecodeError:
        raise ValueError("it is damaged, or no SentencePiece model") from None
    if table and int.from_bytes(table[:4], "little") > len(table):
        raise ValueError("it is damaged: its table of characters is cut off")


def _check_expressions(found: Json) -> None:
    left: list[Any] = [found]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            expression = value.get("Regex")
            if expression is not None and not (isinstance(expression, str) and expression in EXPRESSIONS):
                raise ValueError(f"the regular expression {quoted(expression)} is not one of T5's")
            left += value.values()
        elif isinstance(value, list):
            left += value


@contextlib.contextmanager
def _nothing_on_stderr() -> Iterator[None]:
    """Inside, nothing that is written to the process's stderr is seen: Rust writes a trace of each panic there."""
    try:
        kept = os.dup(2)
    except OSError:  # of a process without one
        yield
        return
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
