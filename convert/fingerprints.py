"""Names for files of weights by some of their bytes: to read all of a model would take as long as loading it.

Of each file its size counts, and 16 pieces of 64 KiB that are evenly spread from its first byte to its last; a file of
up to 1 MiB counts whole. Another training changes every piece, so it has another name; a changed byte between the
pieces has not. The same files have the same name on every disk and in every bucket.
"""

import contextlib
import hashlib
from pathlib import Path

from cogvx_jax.convert.sources import Source
from cogvx_jax.storage import Files, Span, below, open_files, parent_and_name

PIECES, PIECE = 16, 64 * 2**10
DEPTH = 4  # of folders; those of Orbax are the deepest
CALIBRATION = "reuse.json"  # of `cogvx calibrate`, which is no part of the model that it lies beside


def fingerprint(place: str | Path) -> str:
    """Of a file, whatever its name, or of the files in a folder: 16 hexadecimal digits.

    Args:
      place: a path, or a URL.
    Raises: OSError.
    """
    found, files = hashlib.sha256(), open_files(place)
    if files.is_folder():
        _add_folder(found, files, place, "", DEPTH)
    else:
        parent, name = parent_and_name(place)
        _add_file(found, open_files(parent), name)
    return found.hexdigest()[:16]


def part_fingerprints(source: Source) -> dict[str, str]:
    """Of each part of a model by its name, and of the configurations beside them. Raises: OSError."""
    found, places = dict[str, str](), dict(source.places())
    with contextlib.suppress(FileNotFoundError):
        places["tokenizer"] = source.tokenizer
    for part, place in places.items():
        if part:
            found |= {part: fingerprint(place)} if is_there(place) else {}
            continue
        files, digest = open_files(place), hashlib.sha256()
        for name in files.names():
            if name.endswith(".json") and name != CALIBRATION and files.exists(name):
                digest.update(name.encode())
                _add_file(digest, files, name)
        found["configuration"] = digest.hexdigest()[:16]
    return found


def is_there(place: str | Path) -> bool:
    """Whether there is such a file or folder."""
    parent, name = parent_and_name(place)
    return open_files(place).is_folder() or open_files(parent).exists(name)


def _add_folder(found, files: Files, place: str | Path, path: str, depth: int) -> None:
    for name in files.names():
        if name.startswith(".") or name.endswith(".md"):  # what version control and people keep beside weights
            continue
        if files.exists(name):
            found.update(f"{path}{name}\n".encode())
            _add_file(found, files, name)
        elif depth > 1:
            inner = below(place, name)
            _add_folder(found, open_files(inner), inner, f"{path}{name}/", depth - 1)


def _add_file(found, files: Files, name: str) -> None:
    size = files.size(name)
    found.update(f"{size}\n".encode())
    spans = _spans(name, size)
    files.prefetch(spans)
    for span in spans:
        found.update(files.read(span).data)
    files.release()


def _spans(name: str, size: int) -> list[Span]:
    if size <= PIECES * PIECE:
        return [(name, 0, size)] if size else []
    last = size - PIECE
    return [(name, last * i // (PIECES - 1), PIECE) for i in range(PIECES)]
