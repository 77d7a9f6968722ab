"""Compiled programs are forgotten between files of tests once a process holds many.

A process keeps each program it compiled, as a few mapped pieces of memory. Linux allows it 65,530 of those
(`vm.max_map_count`), and a process that asks for one more is ended by LLVM, or by the signal of a wild address: no test
is named. All tests of `full` come near; their processes held 6 GB by then, too.
"""

import gc
from pathlib import Path

import jax

MAPPINGS = Path("/proc/self/maps")
ENOUGH = 16_000  # mapped pieces: a quarter of what is allowed


def pytest_runtest_teardown(item, nextitem):
    file_ends = nextitem is None or nextitem.path != item.path
    if file_ends and MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > ENOUGH:
        jax.clear_caches()
        gc.collect()
