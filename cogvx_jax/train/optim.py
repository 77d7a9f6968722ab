"""The optimizer: AdamW with the paper's betas, a warm-up, a cosine decay and a clipped gradient."""

import optax


def adamw(peak: float, steps: int, *, warmup: int = 100, weight_decay: float = 1e-4) -> optax.GradientTransformation:
    """Learning rate 0 -> `peak` over `warmup` updates, then down to 1% of it at `steps`.

    Source: betas 0.9 and 0.95, eps 1e-8, weight decay 1e-4, clip 1.0 are those of arXiv:2408.06072.
    """
    rate = optax.warmup_cosine_decay_schedule(0, peak, warmup, steps, peak / 100)
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, b1=0.9, b2=0.95, eps=1e-8, weight_decay=weight_decay)
    )
