"""Freed memory stays with the process until something has been compiled, unless its user has set malloc up."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FREE = """
import ctypes
from pathlib import Path
from cogvx_jax.allocator import keep_freed_memory
keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
size = 256 * 2**20
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096
import jax.monitoring
before = resident()
block = libc.malloc(size)
ctypes.memset(block, 1, size)
libc.free(block)
print(resident() - before > size / 2)
jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 2.0)
print(resident() - before > size / 2)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
@pytest.mark.parametrize(
    "own, kept",
    [
        ({}, ["True", "False"]),
        pytest.param({"MALLOC_TRIM_THRESHOLD_": "131072"}, ["False", "False"], marks=pytest.mark.full),
    ],
)
def test_freed_memory_is_kept(own, kept):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"))}
    done = subprocess.run(
        [sys.executable, "-c", FREE],
        env=clean | {"PYTHONPATH": str(ROOT)} | own,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == kept
