"""Files and folders while they are written: hidden beside their final name, and removed when their process has died.

A hidden folder `.cogvx-partial-<random>` holds them, and a file that its process keeps locked (flock). The kernel
unlocks it when the process ends, however it ends. So a free lock means a dead process: the next one that writes to the
same place removes the folder. On a disk that several hosts share, a lock may not be seen by the others. A folder of
another host, or of this one before a restart, is therefore removed only when nothing in it has changed for a day.

Work of hours is done in parts, each whole under its name. A folder of them is marked by what was asked for: its process
may die, and who asks for the same carries them over. Such a folder, too, stays for a day.
"""

import atexit
import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = ".cogvx-partial-"
LOCK = ".cogvx-lock"
MARK = ".cogvx-parts"  # in a folder of parts: the path of what they are for, and a hash of what was asked
UNCHANGED = 24 * 3600.0  # seconds after which a folder of another host is taken for dead
STUBBORN = 3.0  # seconds to remove a folder in which something is still written
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_own: dict[Path, int] = {}  # hidden folders of this process, and the descriptors of their locks
_failed: set[Path] = set()  # those whose block has ended by an exception
_kept: set[Path] = set()  # those of parts that another process may go on with
_searched: set[Path] = set()  # folders in which this process has looked for remains


@contextlib.contextmanager
def temporary_beside(path: str | os.PathLike) -> Iterator[Path]:
    """A path to write a file or folder to, which gets its final name, `path`, when the block ends well.

    It has the name of `path` and its suffix, in a hidden folder beside it. A file at `path` is replaced, and so is an
    empty folder. Where `path` is a link, what it names is written; see `written_place`. When the block ends by an
    exception, `path` is as before and nothing is left behind.

    Raises: OSError that names `path`, if its folder cannot be written to or the disk is full.
    """
    final = written_place(path)
    with hidden_folder(final.parent) as folder:
        partial = folder / (Path(path).name if Path(path).is_symlink() else final.name)
        try:
            yield partial
            partial.replace(final)
        except OSError as error:
            if error.errno in FULL or str(error.filename) == str(partial):
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise


def written_place(path: str | os.PathLike) -> Path:
    """The absolute path that writing to `path` makes or replaces: of a link, what it names, there or not.

    Every output goes there, so a link stays a link.

    Raises: ValueError as `check_local`; OSError that names `path`, for links in a circle.
    """
    check_local(path, "what is written here")
    final = Path(os.path.realpath(path))
    if final.is_symlink():
        raise OSError(errno.ELOOP, "it is a link in a circle of links, which names no place to write to", str(path))
    return final


def check_local(path: str | os.PathLike, what: str) -> None:
    """Raises ValueError for what is no path, or a URL, also one that was made a `Path`, which has a slash less.

    A folder whose name ends in a colon is no URL where it exists.

    Args:
      what: is to be a path, for the message.
    """
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(name, str):
        raise ValueError(f"{what} is a path, got {path!r:.100}")
    match = re.match(r"([A-Za-z][\w+.-]+:)//?(?=[^/])", name, re.ASCII)
    if match and not Path(match[1]).is_dir():
        raise ValueError(f"{what} is a path of this machine, not a URL such as {match[1]}//{name[match.end() :]}")


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in the system's temporary one, deleted when the block ends, or later if this process is killed."""
    with hidden_folder(Path(tempfile.gettempdir())) as folder:
        yield folder


@contextlib.contextmanager
def hidden_folder(parent: Path) -> Iterator[Path]:
    """A locked folder in `parent`, deleted when the block ends. Raises: OSError that names `parent`."""
    if parent not in _searched:
        _searched.add(parent)
        remove_dead(parent)
    try:
        folder = _create(parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(parent)) from None
    try:
        yield folder
    except BaseException:
        _failed.add(folder)
        raise
    else:
        _kept.discard(folder)
    finally:
        if folder in _own:
            if folder not in _kept:
                _remove(folder)
            os.close(_own.pop(folder))


def keep_parts(folder: Path, final: Path, asked: str) -> None:
    """From now on a hidden folder stays if its block ends by an exception, or its process dies.

    Args:
      final: what its files are parts of.
      asked: all that decides about their bytes.
    """
    partial = folder / f"{MARK}.new"
    partial.write_text(_mark(final, asked), encoding="utf-8")
    partial.replace(folder / MARK)
    _kept.add(folder)


def is_kept(folder: Path) -> bool:
    """Whether `keep_parts` was called of it."""
    return folder in _kept


def carry_parts(folder: Path, final: Path, asked: str) -> None:
    """Takes over what dead processes left that were asked for the same, and removes what is of another wish.

    Files come to `folder` under their names. Those of another host, or of this one before a restart, are linked: its
    process may live unseen.
    """
    mark = _mark(final, asked)
    with contextlib.suppress(OSError):
        for other in sorted(folder.parent.glob(f"{PREFIX}*/{MARK}")):
            with contextlib.suppress(OSError):
                theirs = other.read_text(encoding="utf-8")
                if theirs == mark or theirs.partition("\n")[0] == mark.partition("\n")[0]:
                    _carry(other.parent, folder, theirs == mark)


def _carry(theirs: Path, mine: Path, same: bool) -> None:
    """Moves or links the files of a folder whose lock is free, if it is of the same wish, and removes it."""
    if theirs == mine or theirs.stat().st_uid != os.geteuid():
        return
    lock = os.open(theirs / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        dead = os.read(lock, 100) == _machine() != b""
        for file in sorted(theirs.rglob("*")) if same else ():
            if file.is_file() and not file.is_symlink() and file.name not in (LOCK, MARK):
                place = mine / file.relative_to(theirs)
                place.parent.mkdir(exist_ok=True)
                (os.replace if dead else os.link)(file, place)
        if dead:
            _remove(theirs)
    finally:
        os.close(lock)


def _mark(final: Path, asked: str) -> str:
    return f"{str(final)!r}\n{hashlib.sha256(asked.encode()).hexdigest()}\n"


@contextlib.contextmanager
def never_made_again(folder: Path) -> Iterator[Path]:
    """Another name of a folder, for writers whose threads may outlive an error and make the folders they need.

    The name stands for the folder itself, not for its place: once the folder is removed, nothing can be made in it.
    Where a system has no such names, it is the folder's own.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    name = Path(f"/proc/self/fd/{handle}")
    yield name if name.is_dir() else folder
    os.close(handle)  # not after an error, or its number could come to stand for another folder


def remove_dead(parent: Path) -> None:
    """Removes the hidden folders that dead processes left in a folder. What cannot be removed stays."""
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                        _remove_if_dead(Path(entry.path))


@atexit.register
def remove_own() -> None:
    """Removes the hidden folders of this process but those of parts, for an end that leaves no block in order.

    Where a block has failed, threads of its writer, such as tensorstore's, may have made its folder once more.
    """
    for folder in {*_own, *_failed} - _kept:
        _remove(folder)


def _create(parent: Path) -> Path:
    while True:
        folder = parent / f"{PREFIX}{secrets.token_hex(6)}"
        folder.mkdir()
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileNotFoundError:  # another process found it empty and removed it
            continue
        except OSError:
            folder.rmdir()
            raise
        try:
            os.write(lock, _machine())
        except OSError:  # the disk is full
            os.close(lock)
            _remove(folder)
            raise
        if _take(lock) and (folder / LOCK).exists():
            _own[folder] = lock
            return folder
        os.close(lock)  # another process took it for dead in between


def _take(lock: int) -> bool:
    """Locks a file; false if another process has. A file system without locks lets everyone through."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _remove_if_dead(folder: Path) -> None:
    old = time.time() - _changed(folder) > UNCHANGED
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:  # its process died before it locked anything, or while it removed the folder
        _remove(folder) if old else folder.rmdir()  # which raises unless it is empty
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if it is held, or if there are no locks here
        written_by = os.read(lock, 100)
        if old or (written_by and written_by == _machine() and not (folder / MARK).exists()):
            _remove(folder)
    finally:
        os.close(lock)


def _remove(folder: Path) -> None:
    """Removes a hidden folder, its lock last: what is half removed is still known for dead.

    Tries again for a while, as threads of a writer that was interrupted may go on in it.
    """
    end = time.monotonic() + STUBBORN
    while folder.exists() and time.monotonic() < end:
        with contextlib.suppress(OSError):
            inside = [path for path in folder.iterdir() if path.name != LOCK]
            for path in inside:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            if not inside:
                (folder / LOCK).unlink(missing_ok=True)
                folder.rmdir()
                return
            continue
        time.sleep(0.05)


def _changed(folder: Path) -> float:
    """When anything in a folder was written last, in seconds since 1970."""
    return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))


def _machine() -> bytes:
    """This host since its last start, the same in all its containers; empty where it is not known."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:
        return b""


def _forget() -> None:
    """In a forked process: the folders are its parent's."""
    _own.clear()
    _failed.clear()
    _kept.clear()


os.register_at_fork(after_in_child=_forget)
