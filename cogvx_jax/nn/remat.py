"""What is kept of a block for the backward pass; the rest is computed anew there.

none      all that the backward pass reads
products  what matrix products and attention gave: norms, activations, gates and rotations are computed again
block     the block's input: all of it is computed again
offload   as "block", and the inputs wait in the memory of the host (on accelerators)
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from cogvx_jax.configs import Remat

PRODUCT, _INPUT = "product", "block input"  # names of what is kept
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
    """Marks what "products" keeps."""
    return checkpoint_name(x, PRODUCT)


def block_input(x: jax.Array) -> jax.Array:
    """Marks what "offload" keeps."""
    return checkpoint_name(x, _INPUT)


def rematerialized(block: type[nn.Module], remat: Remat) -> Any:
    """The module class of a scanned block, which keeps what `remat` says."""
    return block if remat == "none" else nn.remat(block, prevent_cse=False, policy=_POLICIES[remat])
