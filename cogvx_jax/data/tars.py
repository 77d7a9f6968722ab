"""Tars of samples, as webdataset has them: files of one sample share a name up to its first dot.

Nothing is unpacked: members are found once, by their headers, and read where they lie.
"""

import collections
import dataclasses
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from cogvx_jax.git_lfs import START, refuse_pointer


@dataclasses.dataclass(frozen=True)
class Member:
    """A file in an uncompressed tar: `size` bytes from `start` on."""

    tar: Path
    name: str
    start: int
    size: int

    def __str__(self) -> str:
        return f"{self.tar}/{self.name}"

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def url(self) -> str:
        """How ffmpeg reads it in place."""
        return f"subfile,,start,{self.start},end,{self.start + self.size},,:{self.tar.absolute()}"


File = Path | Member
HEADERS = (ValueError, ArithmeticError, LookupError, EOFError)  # what tarfile raises for a header unlike any


def read_chunks(file: File, size: int = 1 << 20) -> Iterator[bytes]:
    """The bytes of a file, at most `size` at a time."""
    path, start, left = (file.tar, file.start, file.size) if isinstance(file, Member) else (file, 0, None)
    with path.open("rb") as opened:
        opened.seek(start)
        while chunk := opened.read(size if left is None else min(size, left)):
            left = None if left is None else left - len(chunk)
            yield chunk


def open_file(file: File) -> io.BytesIO:
    return io.BytesIO(b"".join(read_chunks(file)))


def read_samples(tar: Path) -> dict[str, dict[str, Member]]:
    """The samples of a tar by name, each with its files by what follows the first dot, in lower case.

    Hidden files and names without a dot are passed over.
    Raises: ValueError for a file that is no whole uncompressed tar, or if a name is there twice.
    """
    refuse_pointer(next(read_chunks(tar, len(START)), b""), tar)
    samples: dict[str, dict[str, Member]] = collections.defaultdict(dict)
    twice, count = [], 0
    try:
        with tarfile.open(tar, "r:") as opened:
            for info in opened:
                folder, _, name = info.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if not info.isreg() or not stem or not suffix:
                    continue
                sample, count = samples[f"{folder}/{stem}" if folder else stem], count + 1
                if suffix.lower() in sample:
                    twice.append(info.name)
                sample[suffix.lower()] = Member(tar, info.name, info.offset_data, info.size)
    except (tarfile.TarError, *HEADERS) as error:
        raise ValueError(f"{tar} is no whole uncompressed tar ({error}); make or download it again") from None
    if twice:
        raise ValueError(f"{tar} holds {len(twice)} of {count} files twice, the first is {twice[0]}")
    return dict(samples)
