"""What is kept on disk between runs: compiled programs, so that a second run starts in seconds."""

import os
from pathlib import Path

import jax


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
