"""The loss of CogVideo's (2022) transformers: cross entropy of the codes of the frames that a stage makes.

Shapes: B clips, L text tokens, F slots of frames, n codes of a frame.

Source: Hong et al. 2022, arXiv:2205.15868; branch CogVideo of zai-org/CogVideo, `pretrain_cogvideo.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cogvx_jax.models.cogvideo2022.transformer import CogVideo2022, Frames, Text
from cogvx_jax.train.cogvideo2022.settings import CodesObjective
from cogvx_jax.train.parts import join
from cogvx_jax.train.step import Loss

Batch = Mapping[str, Any]


def codes_loss(network: CogVideo2022, params: Any, text: Text, codes: jax.Array) -> jax.Array:
    """Of the frames that a stage makes, a mean over codes and clips: (B,) float32.

    The first stage makes all frames but the first, which the base makes; the second those between the given ones.
    All windows fall apart at the frame's edge, as `Frames.training_mask` says.

    Args:
      codes: (B, F, n) of all slots, which are those of `network.cfg.order`.
    """
    cfg = network.cfg
    frames = Frames(cfg.order, cfg.given, training_mask=True)
    hidden, _ = network.apply({"params": params}, text, codes, frames)
    return _entropy(network, params, hidden, codes, max(cfg.given, 1))


def first_loss(network: CogVideo2022, params: Any, text: Text, codes: jax.Array) -> jax.Array:
    """Of first frames, (B, n) codes, that the base makes without the channel: (B,) float32."""
    alone = codes[:, None]
    hidden, _ = network.apply({"params": params}, text, alone, Frames((0,), temporal=False))
    return _entropy(network, params, hidden, alone, 0)


def make_loss(network: CogVideo2022, objective: CodesObjective) -> Loss:
    """The loss of a run, of batches with "base", which is frozen, and rows of `batches`."""

    def mean(params: Any, rows: Batch, batch: Batch) -> jax.Array:
        return jnp.mean(weighted(network, objective, join(batch["base"], params), rows))

    return Loss(draw=lambda batch, key: rows_of(batch), mean=mean)


def weighted(network: CogVideo2022, objective: CodesObjective, params: Any, rows: Batch) -> jax.Array:
    """The terms of the objective by their weights, (B,)."""
    total = jnp.zeros(len(rows["codes"]))
    if objective.later:
        text = Text(rows["ids"], rows["real"])
        total += objective.later * codes_loss(network, params, text, rows["codes"])
    if objective.first:
        text = Text(rows["first_ids"], rows["first_real"])
        total += objective.first * first_loss(network, params, text, rows["codes"][:, 0])
    return total


def rows_of(batch: Batch) -> dict[str, Any]:
    """Those arrays of a batch that have a row for each clip."""
    return {name: x for name, x in batch.items() if name != "base"}


def _entropy(network: CogVideo2022, params: Any, hidden: jax.Array, codes: jax.Array, begin: int) -> jax.Array:
    """Of the slots from `begin` on, by the last norm's output of text and frames: (B,)."""
    count, n = codes.shape[1:]
    rows = hidden[:, hidden.shape[1] - (count - begin) * n :]
    logits: Any = network.apply({"params": params}, rows, method="logits")
    wanted = codes[:, begin:].reshape(len(codes), -1)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, wanted), axis=-1)


Measure = Callable[[Any, Batch], jax.Array]
