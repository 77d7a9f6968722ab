"""A name for a tree of parameters by its numbers."""

import hashlib
from typing import Any

import numpy as np
from flax import traverse_util

from cogvx_jax.sharding.placement import host_blocks


def params_digest(params: Any) -> str:
    """A name for a tree of parameters: different numbers, another name; the same on any mesh."""
    found = hashlib.sha256()
    for path, leaf in sorted(traverse_util.flatten_dict(params, sep="/").items()):
        found.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
        for block in host_blocks(leaf):
            found.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    return found.hexdigest()[:16]
