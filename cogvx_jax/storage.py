"""Folders and files on a disk or in a bucket: paths to write to, and the files of a model to read ranges of."""

import contextlib
import errno
import mmap
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import fsspec
import numpy as np
from etils import epath

from cogvx_jax.temporaries import check_local, remove_dead, temporary_beside, written_place

StoragePath: TypeAlias = Path | epath.Path  # one that begins with a scheme, such as gs://, is always an epath.Path
BUCKETS = ("gs", "s3")  # whose folders are written to
URLS = (*BUCKETS, "http", "https", "file")  # from which tensorstore reads by itself
Span = tuple[str, int, int]  # file, first byte, count
KEPT_BYTES = 512 * 2**20  # of what was read below a URL, until `release`
MAPPED_BYTES = 256 * 2**20  # read of local files; it stays in memory until `release`, or until more is read
SMALL_FILE = 64 * 2**20  # bytes; configurations and tokenizers take less, weights are read in ranges


def storage_path(text: str | os.PathLike) -> StoragePath:
    """The folder or file of that path or URL.

    Raises: ValueError for a URL of a kind that is not written to, or that nothing installed can write to.
    """
    name = os.fspath(text)
    scheme, found, _ = name.partition("://")
    if not found:
        return Path(name)
    if scheme not in BUCKETS:
        raise ValueError(f"{name} is no place known here; give a path, or {' or '.join(f'{b}://' for b in BUCKETS)}")
    try:
        protocols = fsspec.get_filesystem_class(scheme).protocol
    except ImportError as error:
        raise ValueError(f"cannot use {name}: {error}") from None
    for protocol in (protocols,) if isinstance(protocols, str) else protocols:
        # Other hosts write, too: what a listing said before says nothing now.
        fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
    return epath.Path(name)


def is_bucket(where: StoragePath) -> bool:
    return "://" in str(where)


def kvstore(folder: str | os.PathLike) -> Any:
    """The files in a folder or below a URL, as tensorstore says it. Raises: ValueError for a URL it cannot read."""
    name = os.fspath(folder)
    if "://" not in name:
        return {"driver": "file", "path": f"{Path(name).absolute()}/"}
    if name.partition("://")[0] not in URLS:
        known = ", ".join(f"{scheme}://" for scheme in URLS)
        raise ValueError(f"tensorstore cannot read {name}; it reads folders and {known}")
    return f"{name.rstrip('/')}/"


def write_whole(file: StoragePath, data: bytes) -> None:
    """Writes a file that appears under its name only when it is whole, as each object of a bucket does.

    Raises: OSError, naming the file, also where the disk is full.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if is_bucket(file):
        file.write_bytes(data)
        return
    with temporary_beside(file) as partial:
        partial.write_bytes(data)


def read_file(path: StoragePath, limit: int = SMALL_FILE) -> bytes:
    """All of a file. Raises: FileNotFoundError; ValueError for a folder, a FIFO or more than `limit` bytes."""
    _check_size(file_size(path), limit)
    return path.read_bytes()


def file_size(path: StoragePath) -> int:
    """Bytes. Raises: FileNotFoundError; ValueError for a folder or a FIFO."""
    if isinstance(path, Path):
        if (kind := kind_of(path)) not in ("a file", NOTHING):
            raise ValueError(f"{kind}, not a file")
        return path.stat().st_size
    if path.is_dir():
        raise ValueError("a folder, not a file")
    return path.stat().length


NOTHING = "nothing"
KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def kind_of(path: Path) -> str:
    """In words: a value of `KINDS`, `NOTHING` where it is not there, or what keeps it from being looked at."""
    try:
        return KINDS[stat.S_IFMT(path.stat().st_mode)]
    except PermissionError:
        return "in a folder that this user may not look into"
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a link that leads back to itself"
        return f"a link to {os.readlink(path)}, which is not there" if os.path.islink(path) else NOTHING


def check_place(place: str | os.PathLike) -> None:
    """Raises, before anything is read, where a place is neither a file nor a folder that can be read.

    A URL is left to those who read it. What is read is asked this first, so that no reader says "no such file" of a
    FIFO, a device, a link that leads nowhere or a folder of another user.

    Raises: FileNotFoundError where there is nothing; PermissionError; ValueError for another kind of place.
    """
    name = os.fspath(place)
    if "://" in name:
        return
    kind = kind_of(Path(name))
    if kind == NOTHING:
        raise FileNotFoundError(f"there is no file or folder {name}")
    if kind not in ("a file", "a folder"):
        raise ValueError(f"{name} is {kind}, not a file or folder that can be read")
    if not os.access(name, os.R_OK | (os.X_OK if kind == "a folder" else 0)):
        raise PermissionError(f"{name} is {kind} that this user may not read")


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise ValueError(f"{size} bytes, where at most {limit} are read")


def check_folder_writable(folder: StoragePath) -> None:
    """Raises OSError where nothing can be written to a folder, which need not exist; leaves nothing behind."""
    try:
        if is_bucket(folder):
            probe = folder / f".writable-{uuid.uuid4().hex[:12]}"
            probe.write_bytes(b"")
            probe.unlink()
            return
        above = Path(folder).absolute()
        while not above.exists():
            above = above.parent
        with tempfile.TemporaryDirectory(prefix=".writable-", dir=above):
            pass
    except Exception as error:  # of buckets, whatever their packages raise
        raise OSError(f"cannot write to {folder}: {getattr(error, 'strerror', None) or error}") from None


class Files(Protocol):
    """Files by their names below one place, such as "vae/config.json"."""

    where: str  # for messages
    name: str  # the last part of `where`

    def is_folder(self) -> bool: ...

    def exists(self, file: str) -> bool:
        """Whether it is a file, not a folder or a FIFO."""

    def names(self) -> list[str]:
        """Of the files and folders in this place."""

    def size(self, file: str) -> int:
        """Bytes. Raises: FileNotFoundError; ValueError for what is no file."""

    def bytes(self, file: str, limit: int = SMALL_FILE) -> bytes:
        """All of a small file. Raises: FileNotFoundError; ValueError for what is no file, or larger than `limit`."""

    def prefetch(self, spans: Sequence[Span]) -> None:
        """Says what will be read next, so that it can come in one go."""

    def read(self, span: Span) -> np.ndarray:
        """Bytes of a file, (count,) uint8, read-only."""

    def release(self) -> None:
        """Gives back the memory of what was read so far; arrays remain valid."""


def open_files(place: str | Path) -> Files:
    """The files in a folder or, where `place` has "://" in it, below a URL.

    Raises: ValueError for a URL that nothing installed can read.
    """
    return RemoteFiles(place) if isinstance(place, str) and "://" in place else LocalFiles(Path(place))


def below(place: str | Path, name: str) -> str | Path:
    """The place of a folder in a place."""
    return f"{place.rstrip('/')}/{name}" if isinstance(place, str) and "://" in place else Path(place) / name


def parent_and_name(place: str | Path) -> tuple[str | Path, str]:
    """The place that a file lies in, and its name there."""
    if isinstance(place, str) and "://" in place:
        parent, _, name = place.rstrip("/").rpartition("/")
        return parent, name
    return Path(place).parent, Path(place).name


def copy_files(place: str | Path, target: Path, names: Collection[str] | None = None) -> None:
    """Copies a folder of small files; of `names`, those that are there. Raises: FileNotFoundError without a folder."""
    files = open_files(place)
    if not files.is_folder():
        raise FileNotFoundError(f"there is no folder {files.where}")
    if isinstance(files, LocalFiles) and names is None:
        shutil.copytree(files.folder, target, dirs_exist_ok=True)
        return
    target.mkdir(parents=True, exist_ok=True)
    for name in files.names() if names is None else filter(files.exists, names):
        (target / name).write_bytes(files.bytes(name))


def is_empty(folder: StoragePath) -> bool:
    """Whether a folder holds nothing; what dead processes left in it is removed first. Raises: OSError."""
    if not is_bucket(folder):
        remove_dead(Path(folder))
    return not any(folder.iterdir())


def check_new(folder: str | os.PathLike) -> Path:
    """The absolute path of a folder to write, of a link what it names.

    Raises: FileExistsError if it exists and holds something; OSError for links in a circle.
    """
    check_local(folder, "the folder to write")
    target = written_place(folder)
    if target.exists() and not (target.is_dir() and is_empty(target)):
        raise FileExistsError(f"{Path(folder).absolute()} exists and is not an empty folder; nothing was written")
    return target


@contextlib.contextmanager
def new_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """A folder to fill, which gets its name when the block ends well and is deleted when it does not.

    A process that is killed leaves a hidden folder, which the next one removes; see `temporaries`.

    Raises: FileExistsError as `check_new`.
    """
    target = check_new(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(target) as partial:
        partial.mkdir()
        yield partial
        check_new(target)


class LocalFiles:
    """`Files` of a folder; what is read is mapped, not copied."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.where, self.name = str(folder), folder.absolute().name
        self._maps: dict[str, mmap.mmap] = {}
        self._mapped = 0  # bytes that were read since `release`

    def is_folder(self) -> bool:
        return os.path.isdir(self.folder)  # as `Path.is_dir`, but False of what may not be looked at, in every Python

    def exists(self, file: str) -> bool:
        return os.path.isfile(self.folder / file)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def size(self, file: str) -> int:
        return file_size(self.folder / file)

    def bytes(self, file: str, limit: int = SMALL_FILE) -> bytes:
        return read_file(self.folder / file, limit)

    def prefetch(self, spans: Sequence[Span]) -> None:
        pass

    def read(self, span: Span) -> np.ndarray:
        file, start, count = span
        if file not in self._maps:
            with (self.folder / file).open("rb") as opened:
                self._maps[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        if self._mapped + count > MAPPED_BYTES:  # as of a parameter of all layers, which takes gigabytes
            self.release()
        self._mapped += count
        return np.frombuffer(self._maps[file], np.uint8, count, start)

    def release(self) -> None:
        self._mapped = 0
        for mapped in self._maps.values():
            if hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)


class RemoteFiles:
    """`Files` below a URL such as gs://bucket/model; a read fetches its own bytes only."""

    def __init__(self, url: str):
        self.where = url.rstrip("/")
        self.name = self.where.rpartition("/")[2]
        try:
            with self._named():
                self._system, root = fsspec.core.url_to_fs(self.where)
        except (ImportError, ValueError) as error:  # a package for this kind of URL that is not installed, or none
            raise ValueError(f"cannot read {url}: {error}") from None
        self._root = root.rstrip("/")
        self._kept: dict[Span, bytes] = {}  # the devices of a host want parts of the same tensor one after another

    @contextlib.contextmanager
    def _named(self, file: str = "") -> Iterator[None]:
        """Inside, an error of the filesystem gets the URL that was asked for."""
        url = below(self.where, file) if file else self.where
        try:
            yield
        except OSError as error:
            # fsspec says of files on a host that is not there that they are not there.
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            if isinstance(cause, FileNotFoundError):
                raise FileNotFoundError(f"there is no file or folder {url}") from None
            raise OSError(f"cannot reach {url}: {cause.strerror or cause}") from None

    def is_folder(self) -> bool:
        with self._named():
            return self._system.isdir(self._root)

    def exists(self, file: str) -> bool:
        with self._named(file):
            return self._system.isfile(self._path(file))

    def names(self) -> list[str]:
        with self._named():
            found = self._system.ls(self._root, detail=False)
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def size(self, file: str) -> int:
        with self._named(file):
            found = self._system.info(self._path(file))
        if found["type"] == "directory":
            raise ValueError("a folder, not a file")
        return found["size"]

    def bytes(self, file: str, limit: int = SMALL_FILE) -> bytes:
        _check_size(self.size(file), limit)
        with self._named(file):
            return self._system.cat_file(self._path(file))

    def prefetch(self, spans: Sequence[Span]) -> None:
        room, wanted = KEPT_BYTES - sum(map(len, self._kept.values())), []
        for span in spans:
            room -= span[2]
            if room >= 0 and span not in self._kept:
                wanted.append(span)
        if wanted:
            files, starts, counts = zip(*wanted, strict=True)
            ends = [start + count for start, count in zip(starts, counts, strict=True)]
            with self._named():
                found = self._system.cat_ranges([*map(self._path, files)], [*starts], ends, on_error="raise")
            for span, data in zip(wanted, found, strict=True):
                self._kept[span] = self._counted(span, data)

    def read(self, span: Span) -> np.ndarray:
        if span not in self._kept:
            if sum(map(len, self._kept.values())) + span[2] > KEPT_BYTES:
                self._kept.clear()
            file, start, count = span
            with self._named(file):
                data = self._system.cat_file(self._path(file), start, start + count)
            self._kept[span] = self._counted(span, data)
        return np.frombuffer(self._kept[span], np.uint8)

    def _counted(self, span: Span, data: Any) -> Any:
        """Raises ValueError where a server gave other bytes than were asked for, such as all of them."""
        file, _, count = span
        if len(data) != count:
            raise ValueError(
                f"{self.where}/{file}: {count} bytes of it were asked for and {len(data)} came; where the server gives "
                "no ranges of bytes, copy the file to a disk first"
            )
        return data

    def release(self) -> None:
        self._kept.clear()

    def check_empty(self) -> None:
        """Raises: FileExistsError where something is here."""
        with self._named():
            is_empty = not self._system.exists(self._root) or not self._system.ls(self._root, detail=False)
        if not is_empty:
            raise FileExistsError(f"{self.where} is not empty; nothing was written")

    def upload(self, folder: Path, last: str) -> None:
        """Writes all files of a folder here, those named `last` after the others."""
        files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.name == last)
        for path in files:
            name = path.relative_to(folder).as_posix()
            with self._named(name):
                self._system.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
                self._system.put_file(str(path), self._path(name))

    def _path(self, file: str) -> str:
        return f"{self._root}/{file}" if file else self._root
