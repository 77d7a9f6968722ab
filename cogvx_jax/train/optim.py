"""Optimizers: AdamW with the paper's betas, Adafactor, and Muon, which reaches the same loss in fewer updates.

All warm up, decay by a cosine or not at all, and clip the gradient's norm to 1.
"""

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers


def adamw(
    peak: float, steps: int | None = None, *, warmup: int = 100, weight_decay: float = 1e-4, start: int = 0
) -> optax.GradientTransformation:
    """AdamW at the learning rate of `schedule`.

    Source: betas 0.9 and 0.95, eps 1e-8, weight decay 1e-4, clip 1.0 are those of arXiv:2408.06072.
    """
    rate = schedule(peak, steps, warmup=warmup, start=start)
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, b1=0.9, b2=0.95, eps=1e-8, weight_decay=weight_decay)
    )


def adafactor(
    peak: float, steps: int | None = None, *, warmup: int = 100, weight_decay: float = 1e-4, start: int = 0
) -> optax.GradientTransformation:
    """Second moments as rows and columns of a matrix, and no first ones: of AdamW's state next to nothing is left.

    Source: Shazeer & Stern 2018, arXiv:1804.04235; updates are not scaled by the parameters' size.
    """
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(schedule(peak, steps, warmup=warmup, start=start)),
    )


def schedule(peak: float, steps: int | None, *, warmup: int, start: int = 0) -> optax.Schedule:
    """Learning rate 0 -> `peak` over `warmup` updates, then down to 1% of it at `steps`.

    With None it stays at `peak`: what was trained to some step is the start of a longer run.

    Args:
      start: the update at which all of this begins. What an optimizer keeps does not depend on it.
    """
    if steps is not None:
        rate = optax.warmup_cosine_decay_schedule(0, peak, warmup, steps, peak / 100)
    elif warmup:
        rate = optax.warmup_constant_schedule(0, peak, warmup)
    else:
        rate = optax.constant_schedule(peak)
    return lambda count: rate(count - start)


def muon(peak: float, steps: int, *, warmup: int = 50, weight_decay: float = 1e-4) -> optax.GradientTransformation:
    """The same schedule with orthogonalised updates for kernels; the rest takes AdamW's.

    A kernel is a matrix from all its input axes to its last one; in a scanned stack (a path through
    "blocks"), each layer is a matrix of its own.
    Source: Jordan et al. 2024, "Muon"; updates scaled to AdamW's size as in arXiv:2502.16982.
    """
    rate = schedule(peak, steps, warmup=warmup)
    update = optax.contrib.muon(
        rate,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=0.2,
        weight_decay=weight_decay,
        adam_b1=0.9,
        adam_b2=0.95,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), update)


def _matrices(params: Any) -> Any:
    def one(path, x):
        names = [str(getattr(p, "key", p)) for p in path]
        first = 1 if "blocks" in names else 0
        if names[-1] != "kernel" or x.ndim - first < 2:
            return None
        return MuonDimensionNumbers(tuple(range(first, x.ndim - 1)), (x.ndim - 1,))

    return jax.tree_util.tree_map_with_path(one, params)
