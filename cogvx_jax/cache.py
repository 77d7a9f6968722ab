"""Compiled programs are kept on disk, so that a second run starts in seconds."""

import os
from pathlib import Path

import jax


def enable_compilation_cache() -> None:
    """Turns jax's persistent cache on, in the user's cache folder, unless the user has set it up."""
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cogvx_jax" / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a read-only home is no reason to stop
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
