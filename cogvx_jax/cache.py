"""What is kept on disk between runs: compiled programs, so that a second run starts in seconds."""

import contextlib
import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

MAX_COMPILED = 10 * 2**30  # bytes: those of a step of 5B are 5 to 50 MB
MAX_PLANS = 16 * 2**20  # of a few kB each


def folder() -> Path:
    """Where this project keeps what it can make again; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cogvx_jax"


def enable_compilation_cache() -> None:
    """Turns jax's persistent cache on, in the user's cache folder, unless the user has set it up."""
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    programs = folder() / "xla"
    try:
        programs.mkdir(parents=True, exist_ok=True)
    except OSError:  # a read-only home is no reason to stop
        return
    # Not by jax_compilation_cache_max_size: jax 0.10 then fails on entries written without it, and locks at each read.
    trim(programs, MAX_COMPILED)
    jax.config.update("jax_compilation_cache_dir", str(programs))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def trim(where: Path, most: int) -> None:
    """Deletes the files in a folder that were not used for longest, once all take more than `most` bytes.

    A quarter more than need be goes, so that this is rare. Other processes may do the same.
    """
    found = []
    for file in where.glob("*"):
        with contextlib.suppress(OSError):
            stat = file.stat()
            found.append((max(stat.st_atime, stat.st_mtime), stat.st_size, file))
    total = sum(size for _, size, _ in found)
    if total <= most:
        return
    for _, size, file in sorted(found):
        if total <= most * 3 // 4:
            return
        with contextlib.suppress(OSError):
            file.unlink()
        total -= size


@contextlib.contextmanager
def nothing_on_disk() -> Iterator[None]:
    """Inside, no program comes from the disk or goes there: those for devices that are not here could not be read."""
    kept = jax.config.values["jax_enable_compilation_cache"]

    def use(cache: bool) -> None:
        jax.config.update("jax_enable_compilation_cache", cache)
        reset_cache()  # or what jax found out about it at first would hold

    use(False)
    try:
        yield
    finally:
        use(kept)


@contextlib.contextmanager
def nothing_kept() -> Iterator[None]:
    """Inside, all is compiled anew: what jax read from its cache lacks parts when it is stored again (on CPU)."""
    jax.clear_caches()
    with nothing_on_disk():
        yield


def versions() -> dict[str, str]:
    """Of what compiles, by name: programs of others are not to be trusted to be the same."""
    found = {}
    for name in ("jax", "jaxlib", "libtpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found
