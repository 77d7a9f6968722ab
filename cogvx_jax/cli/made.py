"""What a rerun of a prompts file need not make again: each video's name, the hash of its request, and of its bytes.

They stand in `cogvx-made.jsonl` beside the videos, a line for each, added when the video is whole. A video counts as
made where its bytes are those that were written for the same request; else, as where the file is gone, it is made
anew.
"""

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from cogvx_jax.cli.options import report
from cogvx_jax.cli.prompts_file import Job
from cogvx_jax.convert.fingerprints import part_fingerprints
from cogvx_jax.convert.sources import open_source
from cogvx_jax.given import NOTHING, Given
from cogvx_jax.json_files import parse_json
from cogvx_jax.pipelines.model import resolve
from cogvx_jax.pipelines.options import RANDOM, Options
from cogvx_jax.pipelines.origin import lora_digest
from cogvx_jax.storage import read_file

NAME = "cogvx-made.jsonl"
MAX_BYTES = 64 * 2**20  # of it; a video takes 200


def is_made(out: Path, digest: str) -> bool:
    """Whether the video is there, whole and of this request."""
    noted = _read(out.parent / NAME).get(out.name)
    return noted is not None and noted.get("request") == digest and noted.get("sha256") == _file_digest(out)


def note_made(out: Path, digest: str) -> None:
    """Adds a video that is whole. Where that fails it is made again next time, so nothing is said."""
    line = json.dumps({"video": out.name, "request": digest, "sha256": _file_digest(out)})
    notes = out.parent / NAME
    if notes.exists() and not notes.is_file():  # opening a FIFO would wait for ever
        return
    with contextlib.suppress(OSError), notes.open("ab") as file:
        file.write(f"{line}\n".encode())  # one write: lines of several processes do not mix


class Digested(Protocol):
    def digest(self, *, seed: bool = True) -> str: ...


def request_digest(request: Digested, options: Options, model: str) -> str:
    """A hash of all that decides a video; `model` is of `model_digest`. One random seed is as good as another."""
    asked = f"{RANDOM} seed" if options.seed == RANDOM else ""
    version = importlib.metadata.version("cogvx_jax")
    found = hashlib.sha256(f"{version} {model} {asked}".encode())
    found.update(request.digest(seed=options.seed != RANDOM).encode())
    return found.hexdigest()


class Noted(Protocol):
    """A video to make, and the hash of its request."""

    @property
    def job(self) -> Job: ...
    @property
    def digest(self) -> str: ...


One = TypeVar("One", bound=Noted)


def not_made(work: Sequence[One], *, again: bool) -> list[One]:
    """The work that no earlier run has done, which is reported; with `again`, all of it."""
    from cogvx_jax.sharding import first_process, of_first_process

    # The first process writes the files, and perhaps only it can see them.
    made = [not again and first_process() and is_made(one.job.out, one.digest) for one in work]
    made = [bool(found) for found in of_first_process(made)]
    if any(made) and first_process():
        report(f"{sum(made)} of {len(work)} videos are whole already; --again makes them anew")
    return [one for one, found in zip(work, made, strict=True) if not found]


def model_digest(source: str, adapters: list[tuple[Any, float]], how: dict[str, Any], given: Given = NOTHING) -> str:
    """A hash of a model's files by their fingerprints, of its LoRAs' numbers, and of how it computes."""
    return digest_of(part_fingerprints(open_source(resolve(source), given)), how, adapters, given)


def digest_of(
    files: Mapping[str, str], how: dict[str, Any], adapters: Sequence[tuple[Any, float]] = (), given: Given = NOTHING
) -> str:
    """The same of a model whose files' fingerprints are known."""
    found = hashlib.sha256(repr(sorted(how.items())).encode())
    if given:
        found.update(str(given).encode())
    found.update(repr(dict(files)).encode())
    for lora, weight in adapters:
        found.update(f"{lora_digest(lora)} {weight}".encode())
    return found.hexdigest()


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """The newest line of each video; what is damaged is passed over."""
    found = {}
    with contextlib.suppress(OSError, ValueError):
        for line in read_file(file, MAX_BYTES).splitlines():
            with contextlib.suppress(ValueError, KeyError):
                noted = parse_json(line)
                found[str(noted["video"])] = noted
    return found


def _file_digest(path: Path) -> str | None:
    """Of the bytes of a file, or of all files in a folder; None where there is none."""
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    digests = [file.name.encode() + hashlib.sha256(file.read_bytes()).digest() for file in files if file.is_file()]
    return hashlib.sha256(b"".join(digests)).hexdigest() if digests else None
