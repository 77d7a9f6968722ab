"""What is kept on disk between runs: compiled programs, so that a second run starts in seconds."""

import contextlib
import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache


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
    jax.config.update("jax_compilation_cache_dir", str(programs))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@contextlib.contextmanager
def nothing_kept() -> Iterator[None]:
    """Inside, all is compiled anew: what jax read from its cache lacks parts when it is stored again (on CPU)."""
    kept = jax.config.values["jax_enable_compilation_cache"]

    def use(cache: bool) -> None:
        jax.config.update("jax_enable_compilation_cache", cache)
        reset_cache()  # or what jax found out about it at first would hold

    jax.clear_caches()
    use(False)
    try:
        yield
    finally:
        use(kept)


def versions() -> dict[str, str]:
    """Of what compiles, by name: programs of others are not to be trusted to be the same."""
    found = {}
    for name in ("jax", "jaxlib", "libtpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found
