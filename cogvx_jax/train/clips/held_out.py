"""Which videos are kept out of training, to validate with."""

import hashlib
import math
from collections.abc import Callable, Iterable


def hold_out(keys: Iterable[str], amount: float, name: Callable[[str], str] = str) -> set[str]:
    """Of videos' keys those to validate with. Which ones depends on their names alone, not on their order.

    Args:
      keys: one may stand for several clips, such as a video with several captions; they go together.
      amount: below 1 a share of the videos, from 1 on how many.
      name: of a key, by which videos are chosen.
    Raises: ValueError for an amount below 0, not whole from 1 on, or that leaves none to train on.
    """
    if not 0 <= amount < math.inf or amount > 1 and amount % 1:
        raise ValueError(f"validation must be a share of the videos below 1, or their number, got {amount:g}")
    videos = sorted(set(keys), key=lambda key: (hashlib.sha256(name(key).encode()).digest(), key))
    count = int(amount) if amount >= 1 else math.ceil(amount * len(videos))
    if count >= len(videos):
        raise ValueError(f"with {count} of {len(videos)} videos kept for validation, none is left to train on")
    return set(videos[:count])
