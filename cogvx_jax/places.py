"""Folders on a disk or in a bucket, under one type: what outlives a host may lie in either."""

import os
import uuid
from pathlib import Path
from typing import Any, TypeAlias

import fsspec
from etils import epath

Place: TypeAlias = Path | epath.Path  # one that begins with a scheme, such as gs://, is always an epath.Path
BUCKETS = ("gs", "s3")  # whose folders are written to
URLS = (*BUCKETS, "http", "https", "file")  # from which tensorstore reads by itself


def place(text: str | os.PathLike) -> Place:
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


def is_bucket(where: Place) -> bool:
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


def write_whole(file: Place, data: bytes) -> None:
    """Writes a file that appears under its name only when it is whole, as each object of a bucket does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if is_bucket(file):
        file.write_bytes(data)
        return
    partial = Path(file).with_name(f".{file.name}.{uuid.uuid4().hex[:12]}")  # of any process of any host
    try:
        partial.write_bytes(data)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
