"""Rematerialization: which activations of a block are saved for the backward pass. It recomputes the rest.

none      saves everything that the backward pass reads
products  saves results of matrix products and attention; norms, activations, gates and rotations are recomputed
block     saves the block's input; the whole block is recomputed
offload   as "block", and the inputs wait in host memory (on accelerators)
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from cogvx_jax.configs import Remat

PRODUCT, _INPUT = "product", "block input"  # names of saved activations
_POLICIES: dict[str, Callable[..., Any]] = {
    "products": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "block": jax.checkpoint_policies.nothing_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def product(x: jax.Array) -> jax.Array:
    """Marks an activation that "products" saves."""
    return checkpoint_name(x, PRODUCT)


def block_input(x: jax.Array) -> jax.Array:
    """Marks the activation that "offload" saves."""
    return checkpoint_name(x, _INPUT)


def rematerialized(block: type[nn.Module], remat: Remat) -> Any:
    """The module class of a scanned block, with the policy of `remat`."""
    return block if remat == "none" else nn.remat(block, prevent_cse=False, policy=_POLICIES[remat])
