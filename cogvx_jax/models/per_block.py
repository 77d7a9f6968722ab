"""What the blocks of one evaluation do beside their own: one extension point of the scanned blocks, see `Transformer`.

Every array but `States.values` and `regions` has a leading axis that counts layers, which the scan takes apart; the
block gets its entry. A field that is None leaves nothing in the compiled program. What else works on single blocks
becomes a field.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


class States(NamedTuple):
    """What other networks add to the tokens after the first n of the blocks; zeros at the text.

    It is for fewer blocks than there are: as entries of all of them most would be zeros, of gigabytes.
    """

    values: Any  # (n, B, S, D), all of them in every block
    place: Any  # (layers,) int32: which of them is the block's; from n on, none

    @classmethod
    def of(cls, values: jax.Array, layers: int) -> "States":
        return cls(values, np.arange(layers, dtype=np.int32))

    def add_to(self, x: jax.Array, pick: Callable[[jax.Array], jax.Array] | None) -> jax.Array:
        """The tokens (B, S, D) after a block, of which this is the entry; `pick` as in `Block`."""
        count = self.values.shape[0]
        own = jax.lax.dynamic_index_in_dim(self.values, jnp.minimum(self.place, count - 1), keepdims=False)
        own = own if pick is None else pick(own)
        return x + jnp.where(self.place < count, own, 0).astype(x.dtype)


class PerBlock(NamedTuple):
    """Of all layers, or inside a block its own entry."""

    skip: Any = None  # (layers,) float32: 1 leaves the block out, for text and video
    values: Any = None  # (layers,) float32: 1 has attention give each token its own value
    enhance: Any = None  # (layers, branches) float32: the weight of `enhancement`
    states: States | None = None
    joined: Any = None  # (): rows are of `paired`, and a video meets the keys of its reference, too
    motion: Any = None  # `tora.Motion`: what trajectories change before attention
    regions: Any = None  # (B, S) int32, of all blocks: the sets of `models.regions`, of which tokens meet

    def of_rows(self, pick: Callable[[jax.Array], jax.Array] | None) -> "PerBlock":
        """What attention needs of some rows, `pick` as in `Block`."""
        return self if pick is None or self.regions is None else self._replace(regions=pick(self.regions))


def paired(x: jax.Array, reference: jax.Array) -> jax.Array:
    """Rows (B, ...) of videos and of their references as (2 B, ...), each beside its own, which meshes then keep."""
    return jnp.stack([x, reference], axis=1).reshape(2 * x.shape[0], *x.shape[1:])


def unpaired(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `paired` was given."""
    pairs = x.reshape(x.shape[0] // 2, 2, *x.shape[1:])
    return pairs[:, 0], pairs[:, 1]


def rows_together(per_block: PerBlock | None) -> int:
    """How many rows beside each other a block needs at a time."""
    return 1 if per_block is None or per_block.joined is None else 2


def axes_of(per_block: PerBlock | None) -> Any:
    """The axes of `nn.scan` over layers."""
    if per_block is None:
        return 0
    states: Any = 0 if per_block.states is None else States(values=nn.broadcast, place=0)
    return PerBlock(skip=0, values=0, enhance=0, states=states, joined=0, motion=0, regions=nn.broadcast)


def entry(per_block: PerBlock | None, layer: jax.Array) -> PerBlock | None:
    """That of one layer, whose number may be traced."""
    if per_block is None:
        return None
    alone = per_block._replace(states=None, regions=None)
    found = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False), alone)
    states = per_block.states
    return found._replace(states=None if states is None else states._replace(place=layer), regions=per_block.regions)


def enhancement(q: jax.Array, k: jax.Array, weight: jax.Array, frames: int) -> jax.Array:
    """The factor of a block's video attention by Enhance-A-Video, (B,) float32, at least 1.

    It is m (T + weight), where m is the mean attention that a position's frame pays to its other frames: over all
    positions, heads and pairs of frames, and over the branches of a video's guidance. With one frame it is 1.

    Args:
      q, k: (B, A, N, K) of the video tokens, after norm and rotation; branch after branch on the first axis.
      weight: (branches,) float32.
      frames: T, temporal tokens.
    Source: Luo et al. 2025, arXiv:2502.07508, whose mean is over all rows of a batch; for one video it is the same.
    """
    rows, heads, tokens, width = q.shape
    branches = weight.shape[0]
    if frames == 1:
        return jnp.ones(rows, jnp.float32)
    q, k = (x.reshape(rows, heads, frames, tokens // frames, width) for x in (q, k))
    scores = jnp.einsum("batpk,baspk->bapts", q, k, preferred_element_type=jnp.float32) * width**-0.5
    attention = jax.nn.softmax(scores, axis=-1)
    own = jnp.trace(attention, axis1=-2, axis2=-1).mean(axis=(1, 2)) / frames  # (B,), of a frame to itself
    others = (1 - own) / (frames - 1)  # rows of attention sum to 1
    mean = others.reshape(branches, -1).mean(axis=0)
    factor = mean[None] * (frames + weight[:, None])
    return jnp.maximum(factor, 1).reshape(rows)
